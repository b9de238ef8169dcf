"""Data sets as downloaded: clips whose frames lie in zips or folders, read and checked alike."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

import numpy as np

from data_prep import meta_info
from vsr_jax import image_headers, images
from vsr_jax.errors import UserError
from vsr_jax.guards import TooLarge, is_name, read_bytes
from vsr_jax.ops.resize import resize_bicubic

_IMAGES = (".png", ".jpg", ".jpeg")
_LARGEST = 256 << 20  # bytes of a file: of a frame, or a clip's landmarks
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of which a part can be unpacked
# A file is not unpacked to more than this times its bytes in the zip, which are there, and some
# more: nothing that a clip has is, and so a clip takes no more memory than its zip promises.
_RATIO, _SMALL = 100, 1 << 20


class MissingError(UserError):
  """An archive is missing; the text names it and where to get it."""


class BadClip(Exception):
  """A clip that cannot be used, alone among its fellows; the text says what is wrong and where."""


@dataclasses.dataclass(frozen=True)
class Frames:
  """One stream's frames of a clip.

  Attributes:
    source: the zip or folder that holds them.
    folder: their folder within it, "" for itself; with slashes.
    names: file names in display order.
  """

  source: pathlib.Path
  folder: str
  names: tuple[str, ...]

  def __str__(self) -> str:
    return str(self.source / self.folder)


@dataclasses.dataclass(frozen=True)
class ClipFiles:
  """A clip to be prepared: where its parts lie and what is known of it beforehand.

  Attributes:
    name: unique within its split.
    fps: frames a second; 0 if the data set does not tell.
    streams: frames by stream, those that `derived` names among them.
    length: frames that it should have; None if unknown.
    size: (height, width) that frames of a stream should have, by stream, where it is known.
    ratios: pairs of streams, the first of which is larger by a whole factor: sharp, its reduction.
    derived: stream to be made, by MATLAB's bicubic, from another by an integer factor.
    kept: streams to be written; the others only serve as sources of derived ones.
    landmarks: the zip or folder, and the file within it, of the five points by frame.
  """

  name: str
  fps: float
  streams: Mapping[str, Frames]
  length: int | None = None
  size: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  ratios: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)
  derived: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
  kept: tuple[str, ...] = ()
  landmarks: tuple[pathlib.Path, str] | None = None


@dataclasses.dataclass(frozen=True)
class ClipData:
  """A clip read and found to be whole.

  Attributes:
    fps: frames a second; 0 if unknown.
    frames: encoded frames by stream, as they were found.
    sizes: (height, width) by stream.
    landmarks: float32 [n 5 2], (x, y) in pixels of the largest stream; [0 5 2] if there are none.
  """

  fps: float
  frames: dict[str, list[bytes]]
  sizes: dict[str, tuple[int, int]]
  landmarks: np.ndarray


def locate(root: pathlib.Path, name: str, *folders: str, origin: str) -> pathlib.Path:
  """The zip NAME.zip below `root`, or else what was extracted from it.

  A zip is preferred: its end tells that it is whole.

  Args:
    root: the folder of downloads.
    name: of the archive without `.zip`, possibly below a folder.
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
  """Names of the images and texts by folder: all below a folder, or all in a zip.

  Returns:
    Folder (with slashes, "" for the source itself) -> file names, sorted. Hidden files and what
    macOS adds to zips are left out.

  Raises:
    UserError: the zip is not whole.
  """
  found: dict[str, list[str]] = {}
  if source.is_dir():
    for folder, below, names in os.walk(source, onerror=_raise, followlinks=True):
      below[:] = [name for name in below if not leads_up(folder, name)]
      relative = pathlib.Path(folder).relative_to(source).as_posix()
      found["" if relative == "." else relative] = names
  else:
    for name in _open_zip(source).namelist():
      folder, _, base = name.rpartition("/")
      found.setdefault(folder, []).append(base)
  listed = {
    # Clips share their frames' names: one copy of each for three million files.
    folder: tuple(sorted(sys.intern(name) for name in names if _wanted(name)))
    for folder, names in found.items()
    if "__MACOSX" not in folder
  }
  return {folder: names for folder, names in sorted(listed.items()) if names}


def leads_up(folder: str, name: str) -> bool:
  """Whether a folder's entry is a link to one that it lies in, to be walked without end."""
  path = os.path.join(folder, name)
  above = pathlib.Path(os.path.realpath(folder))
  return os.path.islink(path) and above.is_relative_to(os.path.realpath(path))


def _raise(error: OSError) -> None:
  raise error


def _wanted(name: str) -> bool:
  return not name.startswith(".") and name.lower().endswith((*_IMAGES, ".txt"))


def find_clips(source: pathlib.Path, pattern: str) -> dict[str, Frames]:
  """The folders of frames in a zip or folder that are clips.

  Args:
    source: from `locate`.
    pattern: regular expression of the end of such a folder's path; its group "clip" is the name.

  Returns:
    Frames by clip, sorted by name.

  Raises:
    UserError: two folders hold a clip of the same name; the zip is not whole.
  """
  found: dict[str, Frames] = {}
  expression = re.compile(f"(?:^|/){pattern}$")
  for folder, names in list_files(source).items():
    frames = tuple(name for name in names if name.lower().endswith(_IMAGES))
    if frames and (match := expression.search(folder)):
      clip = Frames(source, folder, frames)
      add_clip(found, match["clip"], clip)
  return dict(sorted(found.items()))


def add_clip(clips: dict[str, Frames], name: str, clip: Frames) -> None:
  """Adds a clip to those found.

  Raises:
    UserError: there is one of that name already.
  """
  if name in clips:
    raise UserError(f"{clip}: a clip {name} is in {clips[name]} too; remove one of them")
  clips[name] = clip


def pair_streams(found: Mapping[str, Mapping[str, Frames]]) -> dict[str, dict[str, Frames]]:
  """From clips by stream to streams by clip, sorted by name.

  A stream that a clip lacks has no frames in it, which `read_clip` finds.
  """
  names = sorted({name for clips in found.values() for name in clips})
  none = {stream: Frames(pathlib.Path(stream), "", ()) for stream in found}
  return {
    name: {stream: clips.get(name, none[stream]) for stream, clips in found.items()}
    for name in names
  }


def check_complete(
  source: pathlib.Path, found: Collection[str], expected: Collection[str], origin: str
) -> None:
  """Raises UserError if clips are missing, as they are from a half-extracted archive."""
  if missing := sorted(set(expected) - set(found)):
    some = " ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
    raise UserError(
      f"{source}: {len(missing)} of {len(expected)} clips are missing ({some}); extract the "
      f"archive again, get it from {origin}, or use what is there with --partial"
    )


@functools.lru_cache(maxsize=16)
def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(path)
  except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as e:
    raise UserError(f"{path}: not a whole zip ({e}); download it again") from e
  except OSError as e:
    if e.filename:  # it cannot be opened, and tells which
      raise
    raise UserError(f"{path}: not a whole zip (its ends do not fit); download it again") from e


def read_file(source: pathlib.Path, name: str) -> bytes:
  """One file's bytes.

  Raises:
    BadClip: it is missing or damaged, or in a zip not as frames are.
  """
  try:
    if source.is_dir():
      return read_bytes(source / name, _LARGEST)
    return _read_zipped(_open_zip(source), name)
  except (FileNotFoundError, KeyError):
    raise BadClip(f"{source / name} is missing") from None
  except TooLarge as e:
    raise BadClip(f"{source / name}: {e}") from e
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, RuntimeError) as e:
    raise BadClip(f"{source / name} is damaged ({e})") from e
  except OSError as e:
    if e.filename:  # it cannot be opened, and tells which
      raise
    raise BadClip(f"{source / name} is damaged (not where the zip says)") from e


def _read_zipped(archive: zipfile.ZipFile, name: str) -> bytes:
  """A file of a zip; of one that tells a wrong size no more than that is unpacked."""
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


def image_size(data: bytes, label: object) -> tuple[int, int]:
  """(height, width) of an encoded frame that is found to be whole.

  Of a PNG every chunk's checksum is verified, which is far cheaper than decoding
  it; a JPEG, which has none, is decoded.

  Args:
    data: the file.
    label: its name for the error.

  Raises:
    BadClip: it is damaged or neither PNG nor JPEG.
  """
  header = image_headers.read_header(data)
  if header is None or header.kind not in ("PNG", "JPEG"):
    raise BadClip(f"{label} is damaged or neither PNG nor JPEG")
  if fault := image_headers.damage(data):
    raise BadClip(f"{label} {fault}")
  try:
    images.check_header(header, label)
    if header.kind == "JPEG":
      images.decode_image(data, label)
  except UserError as e:
    raise BadClip(str(e)) from e
  return images.image_size(data, label)


def read_clip(clip: ClipFiles) -> ClipData:
  """Reads a clip's parts, checks that they belong together, and makes the derived streams.

  Raises:
    BadClip: streams of unequal length or of other frames, frames of several sizes, a damaged
      frame, or landmarks that do not fit.
  """
  _check_names(clip)
  frames, sizes = {}, {}
  for stream, listed in clip.streams.items():
    frames[stream], sizes[stream] = _read_stream(listed)
  for stream, size in clip.size.items():
    if sizes[stream] != size:
      raise BadClip(f"{clip.streams[stream]}: {_by(sizes[stream])} instead of {_by(size)} pixels")
  for (large, small), ratio in clip.ratios.items():
    if sizes[large] != tuple(ratio * side for side in sizes[small]):
      raise BadClip(
        f"{clip.streams[large]}: frames of {_by(sizes[large])}, which are not {ratio} times "
        f"the {_by(sizes[small])} of {clip.streams[small]}"
      )
  for stream, (source, factor) in clip.derived.items():
    frames[stream] = [_reduce(data, factor) for data in frames[source]]
    sizes[stream] = tuple(-(-side // factor) for side in sizes[source])
  fps, points = clip.fps, np.zeros((0, 5, 2), np.float32)
  if clip.landmarks:
    names = next(iter(clip.streams.values())).names
    fps, points = _read_landmarks(clip, names)
  kept = clip.kept or (*clip.streams, *clip.derived)
  return ClipData(fps, {s: frames[s] for s in kept}, {s: sizes[s] for s in kept}, points)


def _check_names(clip: ClipFiles) -> None:
  if not (is_name(clip.name) and is_name(f"{clip.name}.array_record") and clip.name.isprintable()):
    raise BadClip(f"{clip.name[:80]!r} cannot be the name of files")
  first, *others = clip.streams.values()
  for other in others:
    if len(other.names) != len(first.names):
      raise BadClip(f"{first} has {len(first.names)} frames, {other} {len(other.names)}")
    for one, two in zip(first.names, other.names, strict=True):
      if pathlib.PurePath(one).stem != pathlib.PurePath(two).stem:
        raise BadClip(f"{first} has a frame {one} where {other} has {two}")
  if clip.length is not None and len(first.names) != clip.length:
    raise BadClip(f"{first} has {len(first.names)} frames instead of {clip.length}")
  if not first.names:
    raise BadClip(f"{first} has no frames")


def _read_stream(listed: Frames) -> tuple[list[bytes], tuple[int, int]]:
  frames, size = [], None
  for name in listed.names:
    path = f"{listed.folder}/{name}" if listed.folder else name
    data = read_file(listed.source, path)
    found = image_size(data, listed.source / path)
    if size is not None and found != size:
      raise BadClip(
        f"{listed.source / path} has {_by(found)} pixels, the frames before it {_by(size)}"
      )
    size = found
    frames.append(data)
  return frames, size


def _by(size: tuple[int, int]) -> str:
  return f"{size[1]}x{size[0]}"


def _reduce(data: bytes, factor: int) -> bytes:
  image = images.decode_image(data, "a frame")
  return images.encode_image(resize_bicubic(image, Fraction(1, factor)))


def _read_landmarks(clip: ClipFiles, names: Sequence[str]) -> tuple[float, np.ndarray]:
  source, path = clip.landmarks
  try:
    meta = meta_info.parse_clip(read_file(source, path).decode(), source / path)
  except UnicodeDecodeError as e:
    raise BadClip(f"{source / path} is not a text ({e})") from e
  except UserError as e:
    raise BadClip(str(e)) from e
  if missing := [name for name in names if name not in meta.landmarks]:
    raise BadClip(f"{source / path} has no landmarks of frame {missing[0]}")
  return meta.fps or clip.fps, np.stack([meta.landmarks[name] for name in names])
