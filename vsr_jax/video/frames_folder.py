"""Image files as a clip: reads a folder of frames or one picture, writes PNGs or one picture."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from vsr_jax import image_headers, images
from vsr_jax.errors import UserError
from vsr_jax.video.decode import DEFAULT_RATE, VideoInfo

# A text chunk, behind the head of each PNG of a folder that we write, by which we recognise it.
_HEAD = 33  # bytes: the signature and IHDR
_TEXT = b"tEXt" + b"Software\0vsr_jax"
_MARK = struct.pack(">I", len(_TEXT) - 4) + _TEXT + struct.pack(">I", zlib.crc32(_TEXT))


def natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
  """Sorting key by which frame2 comes before frame10."""
  return [(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", name.lower())], name


def list_images(folder: str) -> list[str]:
  """The names of a folder's image files, in natural order."""
  names = [n for n in os.listdir(folder) if n.lower().endswith(images.SUFFIXES) and n[0] != "."]
  return sorted(names, key=natural_key)


def output_names(names: Sequence[str]) -> tuple[list[str], str | None]:
  """The names of a folder's images once they are PNGs.

  Args:
    names: the images' file names, each once.

  Returns:
    The names in the same order: NAME.png for each NAME.jpg and the like. Where several images
    differ in the extension alone, NAME.png keeps its name and the others keep the extension, as
    NAME.jpg.png. And a note on those images; None if there are none.
  """
  count = collections.Counter(os.path.splitext(name)[0] for name in names)
  plain = {name: os.path.splitext(name)[0] + ".png" for name in names}
  alike = [name for name in names if count[os.path.splitext(name)[0]] > 1]
  given = {n: plain[n] for n in names if n not in set(alike) or n == plain[n]}
  taken = set(given.values())
  for name in alike:
    if name not in given:
      given[name] = name + ".png"
      while given[name] in taken:
        given[name] += ".png"
      taken.add(given[name])
  told = None
  if alike:
    told = (
      f"{alike[0]} and {alike[1]} differ in the extension alone, {len(alike)} such files are all "
      f"taken as frames; as PNGs they are {given[alike[0]]} and {given[alike[1]]}"
    )
  return [given[name] for name in names], told


class ImageFiles:
  """Image files as the frames of a clip, at `DEFAULT_RATE`.

  Attributes:
    info: the clip's `VideoInfo`.
    warning: always None, as no frame is left out.
    end: always None: the last frame lasts as long as the others.
    names: the file name of each frame in a folder of PNGs.
  """

  warning = end = None

  def __init__(self, path: str, max_pixels: int = images.MAX_PIXELS):
    """Lists the frames of a folder, in natural order, or takes one image file.

    Args:
      path: the folder or file.
      max_pixels: the most pixels in an image; larger ones are refused before they are decoded.

    Raises:
      UserError: no image in the folder, or the first one cannot be read.
    """
    self._files = [path]
    if os.path.isdir(path):
      self._files = [os.path.join(path, name) for name in list_images(path)]
    if not self._files:
      raise UserError(f"{path}: no frames in this folder; it needs PNG or JPEG files")
    self._max_pixels = max_pixels
    height, width, _ = images.read_image(self._files[0], max_pixels).shape
    self.names, told = output_names([os.path.basename(file) for file in self._files])
    self.info = VideoInfo(
      path=path,
      height=height,
      width=width,
      frame_rate=DEFAULT_RATE,
      frame_count=len(self._files),
      has_audio=False,
      is_folder=True,
      start_time=Fraction(0),
      pixel_aspect=Fraction(1),
      notes=(f"{path}: {told}",) if told else (),
    )

  def frames(self) -> Iterator[tuple[Fraction, Callable[[], np.ndarray]]]:
    """Yields each frame's time in seconds and a function that reads it as uint8 RGB [h w 3]."""
    for index, file in enumerate(self._files):
      yield index / self.info.frame_rate, functools.partial(self._load, file)

  def close(self) -> None:
    """Does nothing: no file stays open."""

  def _load(self, file: str) -> np.ndarray:
    image = images.read_image(file, self._max_pixels)
    expected = self.info.height, self.info.width
    if image.shape[:2] != expected:
      sizes = [f"{w}x{h}" for h, w in (image.shape[:2], expected)]
      raise UserError(f"{file}: is {sizes[0]} but the first frame is {sizes[1]}; make them equal")
    return image


class FolderSink:
  """Writes PNG frames into a new folder, by default as 00000000.png, 00000001.png, ..."""

  def __init__(self, folder: str):
    os.mkdir(folder)
    self._folder = folder
    self._count = 0

  def write(
    self, image: np.ndarray, time: Fraction, duration: Fraction | None, name: str | None = None
  ) -> None:
    del time, duration  # image files have none
    data = images.encode_image(image)
    with open(os.path.join(self._folder, name or f"{self._count:08d}.png"), "xb") as f:
      f.write(data[:_HEAD] + _MARK + data[_HEAD:])
    self._count += 1

  def finish(self) -> None:
    """Does nothing: each frame is complete once written."""

  def abort(self) -> None:
    """Does nothing: no file is open."""


class ImageSink:
  """Writes a clip of one frame as one image file."""

  def __init__(self, file: str, suffix: str, path: str):
    """Opens `file`, which will be renamed to the output `path`."""
    self._file, self._suffix, self._path = file, suffix, path
    self._count = 0

  def write(self, image: np.ndarray, time: Fraction, duration: Fraction | None) -> None:
    del time, duration
    self._count += 1
    if self._count > 1:
      raise several_frames(self._path)
    with open(self._file, "wb") as f:
      f.write(images.encode_image(image, self._suffix))

  def finish(self) -> None:
    """Does nothing: the image is complete once written."""

  def abort(self) -> None:
    """Does nothing: no file is open."""


def several_frames(path: str) -> UserError:
  """The error for a picture as the output of a clip of several frames."""
  return UserError(
    f"{path}: one image cannot hold several frames; name a folder or an .mp4 as output"
  )


def holds_only_frames(folder: str) -> bool:
  """Whether everything in a folder was written by `FolderSink`, so that it may be replaced."""
  return all(_is_ours(os.path.join(folder, name)) for name in os.listdir(folder))


def remove_frames(folder: str, remains: bool = False) -> None:
  """Removes what `FolderSink` wrote, if there is any, and nothing else.

  Args:
    folder: where the frames are; it need not exist.
    remains: whether to remove also what may be the beginning of a frame, left by a killed run.
  """
  if os.path.isdir(folder):
    for name in os.listdir(folder):
      path = os.path.join(folder, name)
      if _is_ours(path) or (remains and _is_unfinished(path)):
        os.remove(path)
    with contextlib.suppress(OSError):  # other files are in it: they stay
      os.rmdir(folder)


def remove(path: str) -> None:
  """Removes an unfinished output, be it a file or a folder of frames, if it is there."""
  if os.path.isdir(path):
    remove_frames(path, remains=True)
  elif os.path.lexists(path):
    os.remove(path)


def _is_ours(path: str) -> bool:
  """Whether a file is a PNG of `FolderSink`."""
  return (_first_bytes(path) or b"")[_HEAD:] == _MARK


def _is_unfinished(path: str) -> bool:
  """Whether a file has a PNG's name, but does not even hold the head of an image."""
  begin = _first_bytes(path) if path.endswith(".png") else None
  return begin is not None and image_headers.read_header(begin) is None


def _first_bytes(path: str) -> bytes | None:
  """The first bytes of a file, up to the end of `_MARK`; None if it is no file or a link."""
  if os.path.islink(path) or not os.path.isfile(path):
    return None
  try:
    with pathlib.Path(path).open("rb") as f:
      return f.read(_HEAD + len(_MARK))
  except OSError:
    return None
