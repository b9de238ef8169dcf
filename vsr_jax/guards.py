"""Names, sizes and places that files tell: none of them is trusted."""

from __future__ import annotations

import os
import pathlib
import shutil

from vsr_jax.errors import UserError


def is_name(text: str) -> bool:
  """Whether a text is one plain name of a file or folder, which lies where it is looked for.

  Names that come from an index or a list become paths: none of theirs may lead elsewhere.
  """
  try:
    size = len(os.fsencode(text))
  except UnicodeEncodeError:  # half a character
    return False
  return 0 < size <= 255 and text not in (".", "..") and not {"/", "\0"} & set(text)


class TooLarge(Exception):
  """A file that is not to be read whole; the text tells why."""


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
  """Reads a file of at most so many bytes.

  Raises:
    TooLarge: it has more, or it is a pipe or a device, which may not end.
    OSError: it cannot be read.
  """
  if path.exists() and not path.is_file():
    raise TooLarge("not a file")
  with path.open("rb") as f:
    data = f.read(limit + 1)
  if len(data) > limit:
    raise TooLarge(f"has more than {limit} bytes")
  return data


def read_text(path: pathlib.Path, limit: int) -> str:
  """The text of a file of at most so many bytes of UTF-8.

  Raises:
    UserError: it is something else.
    OSError: it cannot be read.
  """
  try:
    return read_bytes(path, limit).decode()
  except (TooLarge, UnicodeDecodeError) as e:
    raise UserError(f"{path}: not a text ({e}); get or make the file again") from e


def check_within(root: pathlib.Path, path: pathlib.Path) -> None:
  """Raises `UserError` if a path, links followed, leads out of a folder."""
  if not path.resolve().is_relative_to(root.resolve()):
    raise UserError(f"{path}: a link leads out of {root}; remove that link, or name another folder")


def remove_within(root: pathlib.Path, path: pathlib.Path) -> None:
  """Removes a file, or a folder with all it holds, if there is one; of a link the link alone.

  Args:
    root: the folder that all of this lies in.
    path: to be removed.

  Raises:
    UserError: a folder on the way is a link that leads out of `root`; nothing is removed.
    OSError: it cannot be removed.
  """
  check_within(root, path.parent)
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
