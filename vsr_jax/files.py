"""Files that appear under their name only once they are whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
  """Lets errors of the file system name that file instead of the one beside it, or nothing."""
  try:
    yield
  except OSError as e:
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file beside its place, under its name with `.part`, then puts it there.

  Args:
    path: the file, in a folder that exists; what was there is replaced.
    content: its text, as UTF-8, or its bytes.

  Raises:
    OSError: it cannot be written; what was there still is.
  """
  part = path.with_name(f"{path.name}.part")
  try:
    with naming(path):
      part.write_bytes(content.encode() if isinstance(content, str) else content)
      os.replace(part, path)
  except BaseException:
    with contextlib.suppress(OSError):
      part.unlink()
    raise
