"""KEEP's samples: aligned faces, good and degraded, for its three stages and for evaluation.

  clips -> one frame of a clip -> frames around it -> decode -> degrade -> align both alike

Stage I takes single images, stages II and III clips:

  source = open_clips("data/vfhq/512/1.0.0", streams=("sharp",)).clips
  images = batching.batch(face_pipeline.images(source, seed=0), 8)
  clips = batching.batch(face_pipeline.clips(source, seed=0), 2)
  with batching.BatchReader(clips, workers=8) as batches: ...
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from vsr_jax.data_prep.batching import Padded, Windows, batch
from vsr_jax.data_prep.clip import SHARP, Clip
from vsr_jax.data_prep.face_degrade import PRESETS, Degradation, degrade_frames
from vsr_jax.errors import UserError
from vsr_jax.faces import align as face_align
from vsr_jax.faces.align import SIZE

INTERVALS = (1, 2, 3, 4, 5, 6)  # distances in frames between neighbours of a training clip
CHUNK = 20  # frames that KEEP restores at once
# The colour of an aligned image beyond the frame, in RGB: the released data sets convert images to
# RGB before they align them, unlike the released restoration of videos, whose border is BGR.
BORDER = (135, 133, 132)


def images(
  source: Sequence[Clip],
  *,
  seed: int,
  size: int = SIZE,
  epochs: int | None = None,
) -> grain.MapDataset:
  """Makes samples of single aligned faces: every frame of every clip, in another order each epoch.

  Args:
    source: the clips.
    seed: determines the order.
    size: side of the faces, in pixels.
    epochs: passes over the frames; None for an endless data set.

  Returns:
    Samples, dicts of NumPy arrays: "gt" uint8 RGB [size size 3].

  Raises:
    UserError: there is no frame; later, a frame is damaged or neither aligned nor alignable.
  """
  frames = grain.MapDataset.source(Windows(_lengths(source), 1)).seed(seed).shuffle()
  return frames.repeat(epochs).map(_LoadImage(source, size))


def clips(
  source: Sequence[Clip],
  *,
  seed: int,
  num_frames: int = 8,
  intervals: Sequence[int] = INTERVALS,
  reverse: float = 0.5,
  degradation: Degradation = PRESETS["train"],
  size: int = SIZE,
  epochs: int | None = None,
) -> grain.MapDataset:
  """Makes samples of aligned face clips, good and degraded: one around every frame of every clip.

  Args:
    source: the clips; those too short for the smallest of the intervals are not used.
    seed: determines the order and all that is random.
    num_frames: t, the frames of a sample.
    intervals: distances in frames, of which one is drawn per sample, among those that fit the clip.
    reverse: probability of the reverse order.
    degradation: how the low-quality frames are made, and the scale s; see `degradation_of`.
    size: side of the good faces, in pixels.
    epochs: passes over the frames; None for an endless data set.

  Returns:
    Samples, dicts of NumPy arrays:
      gt: uint8 RGB [t size size 3].
      lq: uint8 RGB [t size/s size/s 3].

  Raises:
    UserError: no clip is long enough; later, a frame is damaged or neither aligned nor alignable.
  """
  if not intervals or min(intervals) < 1 or not 0 <= reverse <= 1:
    raise UserError(
      f"intervals = {tuple(intervals)}, reverse = {reverse}: positive ones; a probability"
    )
  shortest = min(intervals) * (num_frames - 1) + 1
  lengths = _lengths(source)
  if not any(length >= shortest for length in lengths):
    raise UserError(f"no clip has the {shortest} frames of a training clip")
  usable = [length if length >= shortest else 0 for length in lengths]
  load = _LoadClip(source, num_frames, tuple(intervals), reverse, degradation, size)
  frames = grain.MapDataset.source(Windows(usable, 1)).seed(seed).shuffle()
  return frames.repeat(epochs).random_map(load)


def evaluation_batches(
  source: Sequence[Clip],
  *,
  low_quality: str | Degradation,
  batch_size: int = 1,
  chunk: int = CHUNK,
  interval: int = 1,
  size: int = SIZE,
  rows: Sequence[int] | None = None,
) -> grain.MapDataset:
  """Makes evaluation batches: the frames of every clip once, in chunks without overlap.

  A clip's last chunk is filled up with its last frame, the last batches with the last chunk. (The
  released code makes the last chunk shorter; the model's output for a chunk's real frames may
  depend on those that fill it up.)

  Args:
    source: the clips.
    low_quality: the stream that has the low-quality frames, or how to make them from a
      whole clip at once; the random seed is the clip's name, so that they are always the same.
    batch_size: chunks of a batch, of all hosts together.
    chunk: t, the frames of a chunk.
    interval: distance in frames between neighbours of a chunk; with 15 every 15th frame is taken,
      as in the released validation.
    size: side of the good faces, in pixels.
    rows: which b chunks of a batch this host makes, see `batching.batch`; None: all.

  Returns:
    Batches, dicts of NumPy arrays:
      gt: uint8 RGB [b t size size 3].
      lq: uint8 RGB [b t size/s size/s 3].
      mask: bool [b t]; False for a frame that only fills up.
      clip: int32 [b], index into `source`.

  Raises:
    UserError: there is no frame; later, a frame is damaged or neither aligned nor alignable.
  """
  lengths = enumerate(_lengths(source))
  starts = [(i, first) for i, length in lengths for first in range(0, length, chunk * interval)]
  if not starts:
    raise UserError("no clip has a frame to evaluate")
  load = _LoadChunk(source, low_quality, chunk, interval, size)
  chunks = grain.MapDataset.source(Padded(starts, batch_size)).map(load)
  return batch(chunks, batch_size, rows=rows)


def _lengths(clips: Sequence[Clip]) -> list[int]:
  return [clip.length for clip in clips]


def draw_frames(
  rng: np.random.Generator,
  length: int,
  centre: int,
  num_frames: int,
  intervals: Sequence[int],
  reverse: float,
) -> np.ndarray:
  """Draws the frame numbers of a sample, [t]: around `centre`, or anywhere if they do not fit."""
  fitting = [interval for interval in intervals if interval * (num_frames - 1) < length]
  interval = fitting[rng.integers(len(fitting))]
  first, last = centre - num_frames // 2 * interval, length - 1 - interval * (num_frames - 1)
  if not 0 <= first <= last:
    first = int(rng.integers(last + 1))
  frames = first + interval * np.arange(num_frames)
  return frames[::-1] if rng.random() < reverse else frames


def fit(
  clip: Clip, frames: Sequence[int] | np.ndarray, size: int, shape: tuple[int, int]
) -> np.ndarray | None:
  """Finds the similarity transforms that move a face's landmarks to FFHQ's places, as in restoring.

  Args:
    clip: a clip, with landmarks if its frames are not aligned yet.
    frames: the numbers of t frames.
    size: side of an aligned frame, in pixels.
    shape: (height, width) of its frames; single landmarks may lie beyond, their middle may not.

  Returns:
    float64 [t 2 3], see `faces.align.fit`; None for a clip that is aligned or without landmarks.

  Raises:
    UserError: a frame has no landmarks, they leave it, or no frame has those of a face.
  """
  points = None if clip.aligned else landmarks_of(clip, frames)
  if points is None:
    return None
  middle, (height, width) = points.mean(1), shape
  outside = ((middle < 0) | (middle > (width, height))).any(1)
  if outside.any():
    raise UserError(
      f"clip {clip.name}, frame {frames[int(outside.argmax())]}: its landmarks leave the frame of "
      f"{width}x{height}; make landmarks again, or leave the clip out"
    )
  return fit_landmarks(clip, points, size)[0]


def landmarks_of(clip: Clip, frames: Sequence[int] | np.ndarray) -> np.ndarray | None:
  """The landmarks of t frames, [t 5 2] in their pixels; None for a clip without landmarks.

  Raises:
    UserError: a frame has none, while others do.
  """
  count = len(clip.landmarks)
  if not count:
    return None
  if missing := [index for index in frames if index >= count]:
    raise UserError(f"clip {clip.name}, frame {missing[0]}: has no landmarks; make landmarks again")
  return np.stack([clip.landmarks[index] for index in frames])


def fit_landmarks(
  clip: Clip, points: np.ndarray, size: int, *, robust: bool = True
) -> tuple[np.ndarray, np.ndarray]:
  """`faces.align.fit` for landmarks of a clip; `UserError` where none are those of a face."""
  try:
    return face_align.fit(points, size, robust=robust)
  except ValueError as e:
    raise UserError(f"clip {clip.name}: its landmarks are no face; make landmarks again") from e


def align(image: np.ndarray, matrix: np.ndarray, size: int, scale: int) -> np.ndarray:
  """Moves, turns and enlarges a face to where FFHQ has it.

  Args:
    image: uint8 RGB [h w 3]: a frame, or one reduced by `scale`.
    matrix: float64 [2 3], from `fit` for the frame.
    size: side of an aligned frame, in pixels.
    scale: how many times smaller the image is than the frame.

  Returns:
    uint8 RGB [size/scale size/scale 3].
  """
  # As in the released code, the coordinates are divided by the scale. That keeps pixel 0 in place
  # and ignores that centres of reduced pixels are shifted by a fraction of a pixel.
  matrix = np.concatenate([matrix[:, :2], matrix[:, 2:] / scale], 1)
  return face_align.align(image, matrix, size // scale, BORDER)


def _align_all(
  clip: Clip,
  frames: Sequence[int] | np.ndarray,
  images: Sequence[np.ndarray] | np.ndarray,
  matrices: np.ndarray | None,
  size: int,
  scale: int,
) -> np.ndarray:
  """Aligns images of a clip; without matrices they have to be aligned already."""
  if matrices is not None:
    pairs = zip(images, matrices, strict=True)
    return np.stack([align(image, matrix, size, scale) for image, matrix in pairs])
  side = size // scale
  for index, image in zip(frames, images, strict=True):
    if image.shape != (side, side, 3):
      what = f"clip {clip.name}, frame {index}: {image.shape[1]}x{image.shape[0]}"
      if clip.aligned:
        raise UserError(f"{what} is aligned at another size than {side}x{side}; make it at that")
      raise UserError(
        f"{what} without landmarks is no aligned face of {side}x{side}; make landmarks first"
      )
  return np.array(images)


class _LoadImage:
  """Decodes and aligns a frame."""

  def __init__(self, source: Sequence[Clip], size: int):
    self._source = source
    self._size = size

  def __call__(self, position: tuple[int, int]) -> dict[str, np.ndarray]:
    clip, index = self._source[position[0]], position[1]
    image = clip.decode(SHARP, index)
    matrices = fit(clip, [index], self._size, image.shape[:2])
    return {"gt": _align_all(clip, [index], [image], matrices, self._size, 1)[0]}


class _LoadClip:
  """Draws frames around one, decodes, degrades and aligns them."""

  def __init__(
    self,
    source: Sequence[Clip],
    num_frames: int,
    intervals: tuple[int, ...],
    reverse: float,
    degradation: Degradation,
    size: int,
  ):
    self._source = source
    self._drawn = num_frames, intervals, reverse
    self._degradation = degradation
    self._size = size

  def __call__(self, position: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    clip, centre = self._source[position[0]], position[1]
    frames = draw_frames(rng, clip.length, centre, *self._drawn)
    good = clip.decode_all(SHARP, frames)
    matrices = fit(clip, frames, self._size, good[0].shape[:2])
    degradation = degradation_of(clip, self._degradation, self._size)
    low = list(low_quality_frames(clip, good, rng, degradation))
    return {
      "gt": _align_all(clip, frames, good, matrices, self._size, 1),
      "lq": _align_all(clip, frames, low, matrices, self._size, self._degradation.scale),
    }


class _LoadChunk:
  """Decodes and aligns a chunk's frames; caches the low-quality frames made for the last clip."""

  def __init__(
    self,
    source: Sequence[Clip],
    low_quality: str | Degradation,
    chunk: int,
    interval: int,
    size: int,
  ):
    self._source = source
    self._low_quality = low_quality
    self._offsets = interval * np.arange(chunk)
    self._size = size
    self._made: tuple[int, np.ndarray] | None = None

  def __call__(self, position: tuple[tuple[int, int], bool]) -> dict[str, np.ndarray | np.generic]:
    (i, first), real = position
    clip = self._source[i]
    wanted = first + self._offsets
    inside = wanted < clip.length
    frames = np.where(inside, wanted, wanted[inside][-1])
    good = clip.decode_all(SHARP, frames)
    low = self._low_quality_frames(i, clip, frames)
    scale = good[0].shape[0] // low[0].shape[0]
    matrices = fit(clip, frames, self._size, good[0].shape[:2])
    return {
      "gt": _align_all(clip, frames, good, matrices, self._size, 1),
      "lq": _align_all(clip, frames, low, matrices, self._size, scale),
      "mask": inside & real,
      "clip": np.int32(i),
    }

  def _low_quality_frames(self, i: int, clip: Clip, frames: np.ndarray) -> np.ndarray:
    if isinstance(self._low_quality, str):
      return clip.decode_all(self._low_quality, frames)
    if self._made is None or self._made[0] != i:
      good = clip.decode_each(SHARP, range(clip.length))
      degradation = degradation_of(clip, self._low_quality, self._size)
      made = low_quality_frames(clip, good, evaluation_rng(clip), degradation)
      self._made = i, np.stack(list(made))
    return self._made[1][frames]


def evaluation_rng(clip: Clip) -> np.random.Generator:
  """What draws an evaluated clip's degradation: seeded by its name, hence always the same."""
  return np.random.default_rng(zlib.crc32(clip.name.encode()))


def degradation_of(clip: Clip, degradation: Degradation, size: int) -> Degradation:
  """The degradation of a clip's frames, whose blur is told in pixels of a face of 512.

  Aligned frames have faces of `size` pixels. Frames that are aligned after they are degraded are
  taken to have faces of 512 pixels, as VFHQ's have.
  """
  return degradation.at_size(size) if is_aligned(clip) else degradation


def is_aligned(clip: Clip) -> bool:
  """Whether a clip's frames are taken as aligned faces: it says so, or it has no landmarks."""
  return clip.aligned or not len(clip.landmarks)


def low_quality_frames(
  clip: Clip, good: Iterable[np.ndarray], rng: np.random.Generator, degradation: Degradation
) -> Iterator[np.ndarray]:
  """`degrade_frames` for frames of a clip; `UserError` where they cannot be reduced."""
  try:
    yield from degrade_frames(good, rng, degradation)
  except ValueError as e:
    raise UserError(f"clip {clip.name}: {e}; prepare it at another size") from e
