"""Copies pipes that are inputs into temporary files, since a clip is read more than once."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from vsr_jax.errors import UserError

STDIN = "-"


def is_pipe(path: str) -> bool:
  """Whether a path can be read only once: `-` for standard input, or a named pipe."""
  try:
    return path == STDIN or stat.S_ISFIFO(os.stat(path).st_mode)
  except OSError:
    return False


@contextlib.contextmanager
def copied(path: str) -> Iterator[str | None]:
  """A context in which a pipe's content is in a file in the folder for temporary files (TMPDIR).

  Args:
    path: `-` for standard input, a named pipe (`<(...)` is one too), or anything else.

  Yields:
    The copy's path; the copy is removed on leaving the block. None if `path` is no pipe.

  Raises:
    UserError: the pipe is closed, is a terminal, cannot be read, or holds more than the disk can.
  """
  if not is_pipe(path):
    yield None
    return
  with contextlib.ExitStack() as stack:
    with _opened(path) as source:
      copy = stack.enter_context(_copy(path, source))
    yield copy


@contextlib.contextmanager
def _copy(path: str, source: BinaryIO) -> Iterator[str]:
  copy = None
  try:
    try:
      handle, copy = tempfile.mkstemp(prefix="clip-")
      with open(handle, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    except OSError as e:
      raise UserError(
        f"{path}: a pipe is copied to a temporary file first, which failed ({e.strerror}); "
        "free some space or set TMPDIR"
      ) from e
    yield copy
  finally:
    if copy:
      with contextlib.suppress(OSError):
        os.remove(copy)


def _opened(path: str) -> BinaryIO:
  """Opens a pipe unbuffered, so that a signal ends a read that waits."""
  if path == STDIN and sys.stdin is None:
    raise UserError("-: standard input is closed; pipe a video into it")
  if path == STDIN and os.isatty(0):
    raise UserError("-: standard input is a terminal; pipe a video into it")
  try:
    return open(0 if path == STDIN else path, "rb", buffering=0, closefd=path != STDIN)
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
