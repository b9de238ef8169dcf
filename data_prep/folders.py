"""Lists and reads frames that are files, alike in a folder and in a zip."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import overload

from vsr_jax import image_headers
from vsr_jax.errors import UserError
from vsr_jax.guards import TooLarge, read_bytes
from vsr_jax.video import frames_folder

IMAGES = (".png", ".jpg", ".jpeg")
LARGEST_SIDE = 2**16  # pixels; the largest height or width of a frame
_LARGEST = 256 << 20  # bytes that a frame's file, or that of a clip's landmarks, may have
# What zipfile raises of a damaged or unsupported archive, once it is open or while it is opened.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, RuntimeError)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # both can be unpacked in part
# A zipped file may not be larger than this times its packed bytes, plus some bytes: real frames
# never are, and so a small crafted zip cannot take much memory.
_RATIO, _SMALL = 100, 1 << 20
_PNG_HEAD, _PNG_END = 24, b"IEND\xaeB`\x82"  # the first bytes, which hold the size; the last bytes


class MissingError(UserError):
  """An archive is missing; the text names it and where to get it."""


class BadClip(Exception):
  """One clip cannot be used, while others can; the text says what is wrong and where."""


@dataclasses.dataclass(frozen=True)
class FileStream(Sequence[bytes]):
  """One stream of a clip, whose encoded frames are files; one is read when it is asked for.

  Attributes:
    source: the zip or folder that holds the files.
    folder: the files' folder within it, with slashes; "" for the source itself.
    names: file names in display order.
  """

  source: pathlib.Path
  folder: str
  names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.names)

  @overload
  def __getitem__(self, index: int) -> bytes: ...
  @overload
  def __getitem__(self, index: slice) -> list[bytes]: ...
  def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
    """The bytes of a frame's file; `BadClip` if it cannot be read."""
    if isinstance(index, slice):
      return [self[i] for i in range(len(self))[index]]
    return read_file(self.source, self.inner_path(index))

  def inner_path(self, index: int) -> str:
    """A frame's path within the source."""
    return f"{self.folder}/{self.names[index]}" if self.folder else self.names[index]

  def path(self, index: int) -> pathlib.Path:
    """A frame's path; within a zip, the zip's path joined with the one inside."""
    return self.source / self.inner_path(index)

  def __str__(self) -> str:
    return str(self.source / self.folder)


def locate(root: pathlib.Path, name: str, *folders: str, origin: str) -> pathlib.Path:
  """Finds the zip NAME.zip below `root`, or else the folder that was extracted from it.

  A zip is preferred, because it can be seen to be complete.

  Args:
    root: the folder of downloads.
    name: the archive's name without `.zip`, possibly with a folder.
    *folders: other places below `root` where it may have been extracted; the first is `name`.
    origin: where to get the archive, for the error.

  Raises:
    MissingError: neither is there.
  """
  for place in (root / f"{name}.zip", *(root / folder for folder in (name, *folders))):
    if place.is_dir() or (place.suffix == ".zip" and place.is_file()):
      return place
  raise MissingError(f"{root}: neither {name}.zip nor a folder {name}; get it from {origin}")


def list_files(source: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """Lists the image and text files below a folder, or in a zip, by folder.

  Returns:
    File names, sorted, by folder (with slashes, "" for the source itself). Hidden files and what
    macOS adds to zips are left out.

  Raises:
    UserError: the zip is damaged or incomplete.
  """
  found: dict[str, list[str]] = {}
  if source.is_dir():
    for folder, below, names in os.walk(source, onerror=_raise_error, followlinks=True):
      below[:] = [name for name in below if not _leads_up(folder, name)]
      relative = pathlib.Path(folder).relative_to(source).as_posix()
      found["" if relative == "." else relative] = names
  else:
    for name in _open_zip(source).namelist():
      folder, _, base = name.rpartition("/")
      found.setdefault(folder, []).append(base)
  listed = {
    # Clips share their frames' names: one copy of each name saves memory for millions of files.
    folder: tuple(sorted(sys.intern(name) for name in names if _wanted(name)))
    for folder, names in found.items()
    if "__MACOSX" not in folder
  }
  return {folder: names for folder, names in sorted(listed.items()) if names}


def _leads_up(folder: str, name: str) -> bool:
  """Whether an entry of a folder is a link to a folder above it, which would never end."""
  path = os.path.join(folder, name)
  above = pathlib.Path(os.path.realpath(folder))
  return os.path.islink(path) and above.is_relative_to(os.path.realpath(path))


def _raise_error(error: OSError) -> None:
  raise error


def _wanted(name: str) -> bool:
  return not name.startswith(".") and name.lower().endswith((*IMAGES, ".txt"))


def find_streams(source: pathlib.Path, pattern: str) -> dict[str, FileStream]:
  """Finds the folders of frames in a zip or folder whose path follows a pattern.

  Args:
    source: from `locate`.
    pattern: a regular expression for the end of the folders' paths; its group "clip" is the clip's
      name.

  Returns:
    Frames by clip, sorted by name.

  Raises:
    UserError: two folders hold clips of one name, or the zip is damaged or incomplete.
  """
  found: dict[str, FileStream] = {}
  expression = re.compile(f"(?:^|/){pattern}$")
  for folder, names in list_files(source).items():
    frames = tuple(name for name in names if name.lower().endswith(IMAGES))
    if frames and (match := expression.search(folder)):
      add_stream(found, match["clip"], FileStream(source, folder, frames))
  return dict(sorted(found.items()))


def add_stream(found: dict[str, FileStream], name: str, frames: FileStream) -> None:
  """Adds a clip's frames to those found.

  Raises:
    UserError: there is a clip of that name already.
  """
  if name in found:
    raise UserError(f"{frames}: a clip {name} is in {found[name]} too; remove one of them")
  found[name] = frames


def find_plain_streams(path: pathlib.Path) -> dict[str, FileStream]:
  """Finds the clips of a folder of frames, of a zip, or of a folder of such folders and zips.

  A folder's images, of any kind that can be decoded, are in natural order.

  Returns:
    Frames by clip, which is named as their folder; an empty dict if there are no frames.

  Raises:
    UserError: two clips have one name, or a zip is damaged or incomplete.
  """
  found: dict[str, FileStream] = {}
  for name, frames in _plain_streams(path):
    if name in found:
      raise UserError(f"{frames}: named like {found[name]}; clips need unique names")
    found[name] = frames
  return found


def _plain_streams(path: pathlib.Path) -> Iterator[tuple[str, FileStream]]:
  if path.suffix == ".zip" and path.is_file():
    yield from find_streams(path, "(?P<clip>[^/]+)").items()
  elif names := frames_folder.list_images(str(path)):
    yield path.name, FileStream(path, "", tuple(names))
  else:
    for entry in sorted(path.iterdir()):
      if (entry.is_dir() or entry.suffix == ".zip") and not _leads_up(str(path), entry.name):
        yield from _plain_streams(entry)


@functools.lru_cache(maxsize=16)
def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(path)
  except _DAMAGED as e:
    raise UserError(f"{path}: not a whole zip ({e}); download it again") from e
  except OSError as e:
    if e.filename:  # it cannot be opened; the error names it
      raise
    raise UserError(f"{path}: not a whole zip (its ends do not fit); download it again") from e


def read_file(source: pathlib.Path, name: str) -> bytes:
  """Reads the bytes of one file.

  Args:
    source: the zip or folder that holds it.
    name: the file's path within the source, with slashes.

  Raises:
    BadClip: the file is missing, damaged or too large, or is packed in a way that is not supported.
  """
  with _bad_if_unreadable(source / name):
    if source.is_dir():
      return read_bytes(source / name, _LARGEST)
    return _read_zipped(_open_zip(source), name)


@contextlib.contextmanager
def _bad_if_unreadable(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (FileNotFoundError, KeyError):
    raise BadClip(f"{path} is missing") from None
  except TooLarge as e:
    raise BadClip(f"{path}: {e}") from e
  except _DAMAGED as e:
    raise BadClip(f"{path} is damaged ({e})") from e
  except OSError as e:
    if e.filename:  # it cannot be opened; the error names it
      raise
    raise BadClip(f"{path} is damaged (not where the zip says)") from e


def _read_zipped(archive: zipfile.ZipFile, name: str) -> bytes:
  """Reads a file in a zip; unpacks no more bytes than the size that the zip states."""
  info = archive.getinfo(name)
  if info.flag_bits & 1:
    raise TooLarge("encrypted; make the zip again without a password")
  if info.compress_type not in _METHODS:
    raise TooLarge("packed otherwise than by deflate; make the zip again")
  if info.file_size > min(_LARGEST, _RATIO * info.compress_size + _SMALL):
    raise TooLarge(f"{info.file_size} bytes, packed to {info.compress_size}, which no frame is")
  with archive.open(info) as f:
    data = f.read(info.file_size)
  if len(data) != info.file_size:
    raise EOFError("cut short")
  return data


def common_size(frames: FileStream) -> tuple[int, int]:
  """Reads the (height, width) that all PNGs of a stream share, from their headers.

  Raises:
    BadClip: there are no frames, one is cut short or no PNG, or they differ in size.
  """
  sizes = {png_size(frames, i) for i in range(len(frames))}
  if not sizes:
    raise BadClip("has no frames")
  if len(sizes) > 1:
    raise BadClip(f"{frames}: frames of different sizes")
  return sizes.pop()


def png_size(frames: FileStream, index: int) -> tuple[int, int]:
  """Reads the (height, width) of a PNG from its header, and checks its end; the rest is not read.

  Raises:
    BadClip: the file is cut short, no PNG, or of an impossible size.
  """
  path = frames.path(index)
  if not frames.source.is_dir():  # its end could only be read by unpacking all of it
    with _bad_if_unreadable(path), _open_zip(frames.source).open(frames.inner_path(index)) as f:
      head, end = f.read(_PNG_HEAD), _PNG_END
  elif path.is_file():
    with path.open("rb") as f:
      head = f.read(_PNG_HEAD)
      f.seek(max(0, os.fstat(f.fileno()).st_size - len(_PNG_END)))
      end = f.read()
  else:  # opening a pipe would block
    raise BadClip(f"{path} is no file")
  header = image_headers.read_header(head)
  if header is None or header.kind != "PNG" or end != _PNG_END:
    raise BadClip(f"{path} is cut short or no PNG")
  if max(header.height, header.width) > LARGEST_SIDE:
    raise BadClip(f"{path} has {header.width}x{header.height} pixels")
  return header.height, header.width
