"""A clip, independent of how it is stored, for training, evaluation and the preparing commands.

Streams have these names in every data set; the frames i of all streams belong together:

  sharp           the truth, [s*h s*w]; in sets of faces the good frames
  sharp_bicubic   its bicubic reduction, [h w]
  blur_bicubic    the input of joint restoration: the reduction of the blurry frame, [h w]
  blur            the blurry frame of full size
  low_quality     the input of face restoration
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from vsr_jax import images
from vsr_jax.data_prep.flow_store import Labels
from vsr_jax.data_prep.folders import BadClip, FileStream
from vsr_jax.errors import UserError

SHARP, SHARP_BICUBIC, BLUR_BICUBIC = STREAMS = ("sharp", "sharp_bicubic", "blur_bicubic")
BLUR, LOW_QUALITY = "blur", "low_quality"
_AGAIN = "extract, prepare or build the clip again"


class Landmarks(Protocol):
  """Landmarks by frame, such as an array [n 5 2]."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip. Nothing of it is read before it is asked for.

  Attributes:
    name: unique within the set it comes from.
    length: number of frames; each stream has so many, or none, such as the truth of a test set.
    streams: encoded frames, PNG or JPEG, in display order, by stream.
    rate: frames per second; 0 if unknown.
    sizes: (height, width) of a stream's frames, where it is known without decoding them.
    landmarks: by frame float32 [5 2]: eyes, nose and mouth's corners, (x, y) in pixels of the
      sharp frames; empty if there are none.
    flow: flow labels; None when there are none.
    aligned: whether the frames are aligned faces, although they have landmarks.
  """

  name: str
  length: int
  streams: Mapping[str, Sequence[bytes]]
  rate: float = 0.0
  sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  landmarks: Landmarks = ()
  flow: Labels | None = None
  aligned: bool = False

  @property
  def scale(self) -> int:
    """How many times larger `sharp` is than `blur_bicubic`; 0 if one of them is missing."""
    if not {SHARP, BLUR_BICUBIC} <= self.sizes.keys():
      return 0
    return self.sizes[SHARP][0] // self.sizes[BLUR_BICUBIC][0]

  def stream(self, name: str) -> Sequence[bytes]:
    """The encoded frames of a stream; `UserError` if there are none."""
    frames = self.streams.get(name, ())
    if not len(frames):
      others = ", ".join(other for other, frames in self.streams.items() if len(frames))
      raise UserError(
        f"clip {self.name} has no stream {name}, only {others}; name another set or split"
      )
    return frames

  def label(self, stream: str, index: int) -> str:
    """The name of a frame for errors: its file, or its number and stream."""
    frames = self.streams[stream]
    if isinstance(frames, FileStream):
      return str(frames.path(index))
    return f"clip {self.name}, frame {index} of {stream}"

  def decode(self, stream: str, index: int) -> np.ndarray:
    """Decodes a frame: uint8 RGB [h w 3].

    Raises:
      UserError: the stream or the frame is missing, damaged, or of another size than the stream.
    """
    frames = self.stream(stream)
    if index >= len(frames):
      raise UserError(f"clip {self.name} ends before frame {index} of {stream}; {_AGAIN}")
    label = self.label(stream, index)
    try:
      data = frames[index]
    except BadClip as e:
      raise UserError(f"{e}; {_AGAIN}") from e
    except OSError as e:
      raise UserError(f"{label}: cannot be read ({e.strerror}); check its permissions") from e
    image = images.decode_image(data, label, damaged=f"cannot be decoded; {_AGAIN}")
    size = self.sizes.get(stream, image.shape[:2])
    if image.shape[:2] != tuple(size):
      raise UserError(
        f"{label}: has {image.shape[1]}x{image.shape[0]} pixels, not the {size[1]}x{size[0]} of "
        f"its clip; {_AGAIN}"
      )
    return image

  def decode_each(self, stream: str, indices: Iterable[int]) -> Iterator[np.ndarray]:
    """Decodes frames of one size one after the other; see `decode`."""
    first = None
    for index in indices:
      image = self.decode(stream, index)
      first = image.shape if first is None else first
      if image.shape != first:
        raise UserError(f"clip {self.name}: frames of {stream} differ in size; {_AGAIN}")
      yield image

  def decode_all(self, stream: str, indices: Iterable[int]) -> np.ndarray:
    """Decodes frames of one size: uint8 RGB [n h w 3]; see `decode`."""
    return np.stack(list(self.decode_each(stream, indices)))


def check_frames(clip: Clip) -> None:
  """Raises `UserError` for a clip's first frame, of any stream, that cannot be decoded."""
  for stream, frames in clip.streams.items():
    for index in range(len(frames)):
      clip.decode(stream, index)
