"""Errors that a user can mend, and how a command ends.

A command prints one line and exits with 2 for a `UserError`, a file that cannot
be used, a full disk or SIGTERM, with 130 for Ctrl-C; any other exception is a
bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_INTERRUPTED, _TERMINATED = "interrupted", "terminated by SIGTERM"


class UserError(Exception):
  """A mistake the user can mend; its text is one line: the file and the remedy."""


class Terminated(BaseException):
  """SIGTERM arrived; a BaseException, like KeyboardInterrupt, so that it unwinds."""


class Parser(argparse.ArgumentParser):
  """A command's arguments; what is wrong with them is told in one line, as all bad input is."""

  def __init__(self, command: str, doc: str, **options: Any):
    """Takes the command's module, as `python -m` does, and its docstring, for `--help`."""
    doc = doc.partition("\n")[0].removeprefix("Command: ")
    description = doc[:1].upper() + doc[1:]
    super().__init__(prog=f"python -m {command}", description=description, **options)

  def error(self, message: str) -> NoReturn:
    """Raises `UserError`."""
    raise UserError(f"{message}; --help tells what is possible")


def catch_signals_of_a_command() -> None:
  """Has Ctrl-C and SIGTERM end `python -m PACKAGE.COMMAND` in one line while it imports, too.

  For a package's own module, which Python imports first; once all is there, `run` takes over.
  """
  if sys.argv[:1] == ["-m"]:  # not so when somebody's program imports the package
    for number in (signal.SIGINT, signal.SIGTERM):
      if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, _end)


def silence_xla_of_a_command() -> None:
  """Has XLA say nothing in `python -m PACKAGE.COMMAND`, such as that it compiles very slowly.

  What goes wrong comes as an exception; that compiling takes its time is told by `compiling`. For
  a package's own module: XLA reads it as it loads.
  """
  if sys.argv[:1] == ["-m"]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no errors, the level of that message


def _end(number, frame):
  del frame
  interrupted = number == signal.SIGINT
  os._exit(_fail(_INTERRUPTED, 130) if interrupted else _fail(_TERMINATED, 2))


def _raise_terminated(number, frame):
  del frame
  # It may come twice, to a process and to its group; the second would disturb the tidying up.
  signal.signal(number, signal.SIG_IGN)
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
  if signal.getsignal(signal.SIGINT) is _end:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    main()
  except UserError as e:
    code = _fail(f"error: {e}", 2)
  except KeyboardInterrupt:
    code = _fail(_INTERRUPTED, 130)
  except Terminated:
    code = _fail(_TERMINATED, 2)
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
