"""Errors that a user can mend, and how a command ends.

A command prints one line and exits with 2 for a `UserError`, a file that cannot
be used, a full disk or SIGTERM, with 130 for Ctrl-C; any other exception is a
bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
  """A mistake the user can mend; its text is one line: the file and the remedy."""


class Terminated(BaseException):
  """SIGTERM arrived; a BaseException, like KeyboardInterrupt, so that it unwinds."""


class Parser(argparse.ArgumentParser):
  """A command's arguments; what is wrong with them is told in one line, as all bad input is."""

  def error(self, message: str) -> NoReturn:
    """Raises `UserError`."""
    raise UserError(f"{message}; --help tells what is possible")


def _raise_terminated(signum, frame):
  del signum, frame
  raise Terminated


def run(main: Callable[[], None]) -> None:
  """Runs a command's main function and exits with the documented code.

  Args:
    main: the command, without arguments; it raises `UserError` for bad input.

  Raises:
    SystemExit: code 0, 2 (`UserError`, a file that cannot be used, no space left, SIGTERM) or 130
      (Ctrl-C).
  """
  signal.signal(signal.SIGTERM, _raise_terminated)
  try:
    main()
  except UserError as e:
    code = _fail(f"error: {e}", 2)
  except KeyboardInterrupt:
    code = _fail("interrupted", 130)
  except Terminated:
    code = _fail("terminated by SIGTERM", 2)
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      where = f" while writing {e.filename}" if e.filename else ""
      code = _fail(f"error: no space left on the disk{where}; free some and run again", 2)
    elif e.filename:
      reason = e.strerror or type(e).__name__
      code = _fail(f"error: {e.filename}: {reason}; mend that or name another path", 2)
    else:
      raise
  else:
    code = 0
  sys.exit(code)


def _fail(line: str, code: int) -> int:
  sys.stdout.flush()
  print(" ".join(line.split()), file=sys.stderr, flush=True)
  return code
