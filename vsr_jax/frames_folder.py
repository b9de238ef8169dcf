"""Image files as a clip: reading a folder of frames or one picture, writing PNG frames."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

import cv2
import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.video_decode import DEFAULT_RATE, VideoFile, VideoInfo

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_STRICT_SUFFIXES = (".png", ".jpg", ".jpeg")  # FFmpeg's TIFF reader calls sound files damaged
_OUR_FRAME = re.compile(r"\d{8}\.png")


def natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
  """Sorting key by which frame2 comes before frame10."""
  return [(text, int(n or 0)) for text, n in re.findall(r"(\D*)(\d*)", name.lower())], name


def list_images(folder: str) -> list[str]:
  """The names of a folder's image files, in natural order."""
  names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_SUFFIXES) and n[0] != "."]
  return sorted(names, key=natural_key)


def read_image(path: str) -> np.ndarray:
  """Reads one image file.

  Args:
    path: PNG, JPEG, BMP, TIFF or WebP; grey, palette, alpha (dropped) and 16 bits are fine.

  Returns:
    uint8 RGB [h w 3].

  Raises:
    UserError: the file is no image, or damaged.
  """
  # PyAV and not OpenCV, which prints what it dislikes about a damaged file to the terminal.
  strict = path.lower().endswith(_STRICT_SUFFIXES)
  try:
    file = VideoFile(path, strict)
    try:
      _, load = next(file.frames())
      return load()
    finally:
      file.close()
  except UserError as e:
    raise UserError(f"{path}: not a readable image; replace it or take it away") from e


class ImageFiles:
  """Image files as the frames of a clip, at `DEFAULT_RATE`.

  Attributes:
    info: the clip's `VideoInfo`.
    warning: None, always.
  """

  warning = None

  def __init__(self, path: str):
    """Lists the frames of a folder, in natural order, or takes one image file.

    Raises:
      UserError: no image in the folder, or the first one cannot be read.
    """
    self._files = [path]
    if os.path.isdir(path):
      self._files = [os.path.join(path, name) for name in list_images(path)]
    if not self._files:
      raise UserError(f"{path}: no frames in this folder; it needs PNG or JPEG files")
    height, width, _ = read_image(self._files[0]).shape
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
    )

  def frames(self) -> Iterator[tuple[Fraction, Callable[[], np.ndarray]]]:
    """Yields each frame's time in seconds and a function that reads it as uint8 RGB [h w 3]."""
    for index, file in enumerate(self._files):
      yield index / self.info.frame_rate, lambda file=file: self._load(file)

  def close(self) -> None:
    """Does nothing: no file stays open."""

  def _load(self, file: str) -> np.ndarray:
    image = read_image(file)
    expected = self.info.height, self.info.width
    if image.shape[:2] != expected:
      sizes = [f"{w}x{h}" for h, w in (image.shape[:2], expected)]
      raise UserError(f"{file}: is {sizes[0]} but the first frame is {sizes[1]}; make them equal")
    return image


class FolderSink:
  """Writes frames as 00000000.png, 00000001.png, ... into a new folder."""

  def __init__(self, folder: str):
    os.mkdir(folder)
    self._folder = folder
    self._count = 0

  def write(self, image: np.ndarray, time: Fraction) -> None:
    del time  # image files have none
    _write_image(os.path.join(self._folder, f"{self._count:08d}.png"), ".png", image)
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

  def write(self, image: np.ndarray, time: Fraction) -> None:
    del time
    self._count += 1
    if self._count > 1:
      raise several_frames(self._path)
    _write_image(self._file, self._suffix, image)

  def finish(self) -> None:
    """Does nothing: the image is complete once written."""

  def abort(self) -> None:
    """Does nothing: no file is open."""


def several_frames(path: str) -> UserError:
  """What is wrong with a picture as the output of a clip."""
  return UserError(
    f"{path}: one image cannot hold several frames; name a folder or an .mp4 as output"
  )


def holds_only_frames(folder: str) -> bool:
  """Whether everything in a folder was written by `FolderSink`, so that it may be replaced."""
  return all(_OUR_FRAME.fullmatch(name) for name in os.listdir(folder))


def remove_frames(folder: str) -> None:
  """Removes what `FolderSink` wrote, if there is any, and nothing else."""
  if os.path.isdir(folder):
    for name in os.listdir(folder):
      if _OUR_FRAME.fullmatch(name):
        os.remove(os.path.join(folder, name))
    with contextlib.suppress(OSError):  # somebody put other files there: they stay
      os.rmdir(folder)


def remove(path: str) -> None:
  """Removes an unfinished output, be it a file or a folder of frames, if it is there."""
  if os.path.isdir(path):
    remove_frames(path)
  elif os.path.lexists(path):
    os.remove(path)


def _write_image(file: str, suffix: str, image: np.ndarray) -> None:
  _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
  with open(file, "wb") as f:
    f.write(data)
