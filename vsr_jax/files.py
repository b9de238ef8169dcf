"""Files that appear under their name only once they are whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from vsr_jax.errors import UserError


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
  """Lets errors of the file system name that file instead of the one beside it, or nothing."""
  try:
    yield
  except OSError as e:
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


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


def replace_folder(new: str, folder: str, remove: Callable[[str], None]) -> None:
  """Puts a whole folder in the place of an older one, if there is any, which stays if that fails.

  Args:
    new: the folder, beside its place.
    folder: its place.
    remove: removes the older one, or does nothing where there is none.
  """
  old = folder + ".old.part"
  remove(old)
  if os.path.isdir(folder):
    os.rename(folder, old)
  try:
    os.rename(new, folder)
  except BaseException:
    if os.path.isdir(old):
      os.rename(old, folder)
    raise
  remove(old)
