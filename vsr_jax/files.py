"""Files that appear under their name only once they are whole."""

from __future__ import annotations

import contextlib
import os
import pathlib


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file beside its place, under its name with `.part`, then puts it there.

  Args:
    path: the file, in a folder that exists; what was there is replaced.
    content: its text, as UTF-8, or its bytes.

  Raises:
    OSError: it cannot be written (its `filename` says which); what was there still is.
  """
  part = path.with_name(f"{path.name}.part")
  try:
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)
  except BaseException as e:
    with contextlib.suppress(OSError):
      part.unlink()
    if isinstance(e, OSError) and e.filename is None:  # a full disk's names none
      raise OSError(e.errno, e.strerror, str(path)) from e
    raise
