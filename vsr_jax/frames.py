"""The frames of a clip: which forms are accepted, and how they pass through a restorer.

Frames are checked, and converted to uint8, before anything is compiled for them.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, TypeVar, overload

import numpy as np

Input = TypeVar("Input")
Output = TypeVar("Output")
Companion = TypeVar("Companion")

_WANTED = "give frames as uint8 RGB [h w 3], or as float in [0, 1]"


@dataclasses.dataclass(frozen=True)
class Frame:
  """One frame of a clip.

  Attributes:
    image: uint8 RGB [h w 3], upright.
    time: seconds after the clip's first frame.
    index: its number in the clip, from 0.
    duration: seconds for which the frame is shown: up to the next frame, or for the last one as the
      file states; None if it is not known.
    name: the PNG's file name if the frame comes from an image file; None for a video's frame.
    is_context: whether the frame was read only as a neighbour of those asked for.
    restored_from: the image that `image` was restored from; None for a frame as it was read.
  """

  image: np.ndarray
  time: Fraction
  index: int
  duration: Fraction | None = None
  name: str | None = None
  is_context: bool = False
  restored_from: np.ndarray | None = None


@overload
def stream_frames(
  stream: Callable[[Any], Iterator[np.ndarray]], frames: Iterable[Frame]
) -> Iterator[Frame]: ...
@overload
def stream_frames(
  stream: Callable[[Any], Iterator[np.ndarray]], frames: Any
) -> Iterator[np.ndarray]: ...
def stream_frames(
  stream: Callable[[Any], Iterator[np.ndarray]], frames: Any
) -> Iterator[np.ndarray | Frame]:
  """Restores a clip by a stream of images; where a `Frame` goes in, a `Frame` comes out.

  Args:
    stream: takes images as `as_frames` does and yields an image for each, in order.
    frames: an iterable of `Frame`, or whatever `stream` takes.

  Returns:
    For each `Frame` the same with its image restored and `restored_from`; for images what `stream`
    yields.
  """
  if not _is_iterable_of_frames(frames):
    return stream(frames)
  pairs = ((x.image, x) if isinstance(x, Frame) else (x, None) for x in frames)
  return (
    image if frame is None else dataclasses.replace(frame, image=image, restored_from=frame.image)
    for image, frame in paired(stream, pairs)
  )


def paired(
  stream: Callable[[Iterable[Input]], Iterator[Output]],
  pairs: Iterable[tuple[Input, Companion]],
) -> Iterator[tuple[Output, Companion]]:
  """Runs a stream over the first of each pair, and yields its outputs with the second of each.

  Args:
    stream: yields one output for each input, in order, however far it reads ahead.
    pairs: inputs of the stream and what belongs to each.
  """
  taken: collections.deque[Companion] = collections.deque()

  def inputs():
    for item, companion in pairs:
      taken.append(companion)
      yield item

  for output in stream(inputs()):
    yield output, taken.popleft()


def as_frame(frame: Any) -> np.ndarray:
  """Converts one frame to the form that a restorer takes.

  Args:
    frame: an array or tensor [h w 3], uint8 or float in [0, 1], RGB.

  Returns:
    uint8 [h w 3]; a uint8 array is returned as it is, not copied.

  Raises:
    ValueError: the frame is something else; the text says what.
  """
  array = _as_array(frame)
  if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
    raise ValueError(f"a frame is {_shape(array)}{_hint(array.shape)}; {_WANTED}")
  return _as_uint8(array)


def as_frames(frames: Any) -> Iterator[np.ndarray]:
  """The frames of a clip, in order, as `as_frame` makes them; one at a time.

  Args:
    frames: an iterable of frames, an array or tensor [t h w 3], or a single frame [h w 3].

  Raises:
    ValueError: the frames are none of these; or, when iteration reaches it, a frame is not.
  """
  if not (hasattr(frames, "__array__") or _is_iterable_of_frames(frames)):
    raise ValueError(f"{type(frames).__name__} holds no frames; {_WANTED}")
  return _checked_frames(frames)


def as_frames_of_one_size(frames: Any) -> Iterator[np.ndarray]:
  """`as_frames`, which also raises `ValueError` for a frame of another size than the first."""
  first = None
  for i, frame in enumerate(as_frames(frames)):
    first = frame if first is None else first
    if frame.shape != first.shape:
      sizes = (f"{x.shape[1]}x{x.shape[0]}" for x in (frame, first))
      raise ValueError("frame {} is {}, the first {}; resize them".format(i, *sizes))
    yield frame


def _is_iterable_of_frames(frames: Any) -> bool:
  """Whether `frames` is an iterable that holds frames one by one, unlike an array."""
  return (
    isinstance(frames, Iterable)
    and not isinstance(frames, str | bytes | Mapping)
    and not hasattr(frames, "__array__")
  )


def _checked_frames(frames: Any) -> Iterator[np.ndarray]:
  if hasattr(frames, "__array__"):
    shape = tuple(frames.shape) if hasattr(frames, "shape") else np.shape(frames)
    if len(shape) == 3:
      yield as_frame(frames)
      return
    if len(shape) != 4 or (shape[3] != 3 and shape[0]):
      raise ValueError(f"a clip is an array {list(shape)}{_hint(shape)}; {_WANTED}")
  for frame in frames:
    yield as_frame(frame)


def _as_array(frame: Any) -> np.ndarray:
  if isinstance(frame, np.ndarray):
    return frame
  if not hasattr(frame, "__array__"):
    image = ": its .image is one" if hasattr(frame, "image") else ""
    raise ValueError(f"a frame is a {type(frame).__name__}{image}; {_WANTED}")
  try:
    return np.asarray(frame)
  except (TypeError, RuntimeError) as e:  # a tensor on a device, or one with gradients
    raise ValueError(f"a frame cannot be read as an array ({e}); {_WANTED}") from e


def _as_uint8(array: np.ndarray) -> np.ndarray:
  if array.dtype == np.uint8:
    return array
  if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
    raise ValueError(f"a frame is of {array.dtype}; {_WANTED}")
  array = array.astype(np.float32)
  low, high = array.min(), array.max()
  if not (low >= 0 and high <= 1):  # NaN is neither
    raise ValueError(f"a frame of floats reaches from {low:g} to {high:g}; {_WANTED}")
  return np.rint(255 * array).astype(np.uint8)


def _shape(array: np.ndarray) -> str:
  return f"{array.dtype} {list(array.shape)}"


def _hint(shape: tuple[int, ...]) -> str:
  """A hint for an error on what the axes or channels seem to be; "" if there is none."""
  if len(shape) > 2 and shape[-3] == 3 and shape[-1] != 3:
    return ", channels first (permute them to the end)"
  if len(shape) > 2 and shape[-1] == 4:
    return ", RGBA (leave alpha out: [..., :3])"
  if len(shape) == 2 or (len(shape) > 2 and shape[-1] == 1):
    return ", grey (repeat it three times)"
  return ""
