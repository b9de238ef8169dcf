"""Frames that another method has restored, found by the name of their clip."""

from __future__ import annotations

import pathlib
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

from vsr_jax import video
from vsr_jax.errors import UserError
from vsr_jax.images import SUFFIXES, read_image
from vsr_jax.video.frames_folder import list_images


class GivenOutputs(NamedTuple):
  """The restored frames of a clip.

  Attributes:
    place: a folder of images, or a video or image file.
    span: numbers of the frames that are scored.
    length: number of the clip's frames.
    images: the scored frames' files; None for a video, which begins with the clip's first frame.
  """

  place: pathlib.Path
  span: range
  length: int
  images: list[pathlib.Path] | None

  def read(self) -> Generator[tuple[int, np.ndarray], None, None]:
    """Yields the scored frames' numbers and the frames, uint8 RGB [h w 3].

    Raises:
      UserError: a frame cannot be read, or the video has too few frames, or more than the clip.
    """
    if self.images is not None:
      for number, path in zip(self.span, self.images, strict=True):
        yield number, read_image(path)
      return
    count = 0
    with video.open_reader(str(self.place)) as reader:
      for frame in reader:
        count += 1
        if frame.index in self.span:
          yield frame.index, frame.image
        if count > self.length:
          break
    if not self.span.stop <= count <= self.length:
      told = f"{count} frames" if count < self.length else f"more than {self.length} frames"
      raise UserError(f"{self.place}: {told}, but the clip has {self.length}; restore all of it")


def find(
  folder: pathlib.Path,
  clip: str,
  span: range,
  length: int,
  names: Sequence[str] | None = None,
) -> GivenOutputs:
  """Finds the restored frames of a clip: FOLDER/CLIP/*.png (or other images), or FOLDER/CLIP.mp4.

  Either all images are named as the truth's frames; or, in natural order of their names, there is
  one for each frame of the clip, or one for each frame that is scored.

  Args:
    folder: where a method's outputs are.
    clip: the clip's name.
    span: numbers of the frames that are scored.
    length: number of the clip's frames.
    names: file names of the truth's frames, where they have some.

  Raises:
    UserError: there are no such outputs, or their names and number fit neither.
  """
  place = folder / clip
  if place.is_dir():
    images = [place / name for name in list_images(str(place))]
  else:
    found = [path for path in folder.glob("*.*") if path.stem == clip and path.is_file()]
    if len(found) > 1:
      raise UserError(f"{found[0]}: {found[1].name} is there too; leave one of them")
    if not found:
      raise UserError(f"{place}: no such folder or video; restore {clip} or leave it out (--clips)")
    (place,) = images = found
    if place.suffix.lower() not in SUFFIXES:
      return GivenOutputs(place, span, length, None)
  if names is not None and {path.name for path in images} <= set(names):
    wanted = [place / name for name in names[span.start : span.stop]]
    if set(wanted) <= set(images):
      return GivenOutputs(place, span, length, wanted)
  if len(images) not in (len(span), length):
    raise UserError(
      f"{place}: {len(images)} images, but the clip has {length} frames of which {len(span)} are "
      "scored; name them as the truth's"
    )
  images = images if len(images) == len(span) else images[span.start : span.stop]
  return GivenOutputs(place, span, length, images)
