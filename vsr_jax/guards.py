"""Checks of names, sizes, numbers and paths that come from files, none of which are trusted."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import numpy as np

from vsr_jax import paths
from vsr_jax.errors import UserError

_LISTED = 10  # arrays named in an error; the rest are counted


def is_name(text: str) -> bool:
  """Whether a text is one plain name of a file or folder, without a separator or a "..".

  Names that come from an index or a list become paths, which must not lead to another folder.
  """
  try:
    size = len(os.fsencode(text))
  except UnicodeEncodeError:  # a lone surrogate
    return False
  return 0 < size <= 255 and text not in (".", "..") and not {"/", "\0"} & set(text)


def shorten(text: str, limit: int = 60) -> str:
  """Makes untrusted text fit for an error: printable, cut after `limit` characters."""
  text = text[: limit + 1]
  text = text if text.isprintable() else ascii(text)[1:-1]
  return text if len(text) <= limit else f"{text[:limit]}..."


@contextlib.contextmanager
def reading(path: str | pathlib.Path, kind: str, example: str) -> Iterator[None]:
  """A context in which whatever a damaged file raises becomes a `UserError` that names the file.

  Bytes that are not what they should be can raise anything at all while they are read as it.

  Args:
    path: the file.
    kind: what it should be, such as "PyTorch file".
    example: what to give instead, such as "a .pt or .pth file".
  """
  try:
    yield
  except UserError:
    raise
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror or e}; give {example}") from e
  except Exception as e:
    reason = shorten(str(e.args[0] if e.args else type(e).__name__), 200)
    raise UserError(f"{path} is damaged or no {kind} ({reason}); fetch it again") from e


class TooLarge(Exception):
  """A file that is too large to be read whole, or is no file; the text says which."""


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
  """Reads a file of at most `limit` bytes.

  Raises:
    TooLarge: the file has more, or is a pipe or a device, which may not end.
    UserError: its bucket cannot be used.
    OSError: the file cannot be read.
  """
  if not paths.in_bucket(path) and path.exists() and not path.is_file():
    raise TooLarge("not a file")
  with paths.reaching(path), path.open("rb") as f:
    data = f.read(limit + 1)
  if len(data) > limit:
    raise TooLarge(f"has more than {limit} bytes")
  return data


def read_text(path: pathlib.Path, limit: int) -> str:
  """Reads a UTF-8 text file of at most `limit` bytes.

  Raises:
    UserError: the file has more bytes, is not UTF-8, or is no file.
    OSError: the file cannot be read.
  """
  try:
    return read_bytes(path, limit).decode()
  except (TooLarge, UnicodeDecodeError) as e:
    raise UserError(f"{path}: not a text ({e}); get or make the file again") from e


def check_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
  """Raises `UserError`, which names the first ten arrays, if any hold NaN or infinite numbers."""
  names = [shorten(name) for name, x in arrays.items() if not np.isfinite(x).all()]
  if names:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise UserError(
      f"{source} holds NaN or infinite numbers in {', '.join(names[:_LISTED])}{more}; "
      "fetch it again, or take weights from before its training failed"
    )


def check_within(root: pathlib.Path, path: pathlib.Path) -> None:
  """Raises `UserError` if `path`, with links followed, leads out of the folder `root`."""
  if not path.resolve().is_relative_to(root.resolve()):
    raise UserError(f"{path}: a link leads out of {root}; remove that link, or name another folder")


def remove_within(root: pathlib.Path, path: pathlib.Path) -> None:
  """Removes a file, or a folder with its contents, if it exists; a link is removed, not its target.

  Args:
    root: the folder that `path` lies in.
    path: what to remove.

  Raises:
    UserError: a folder on the way is a link that leads out of `root`; nothing is removed.
    OSError: the file or folder cannot be removed.
  """
  check_within(root, path.parent)
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
