"""Clips of faces for evaluation, as streams: good and low-quality frames, aligned or whole.

  source = face_clip(clip, PRESETS["mild"], size=512)
  for good, low in zip(source.good(), source.low(), strict=True): ...

Memory does not grow with the clip, and a clip of one name gets the same low-quality frames in every
run, whoever restores them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from vsr_jax.data_prep import face_pipeline
from vsr_jax.data_prep.clip import SHARP, Clip
from vsr_jax.data_prep.face_degrade import Degradation
from vsr_jax.errors import UserError
from vsr_jax.faces.align import SIZE, TEMPLATE, invert, move


@dataclasses.dataclass(frozen=True, eq=False)
class FaceClip:
  """A clip for evaluation; `face_clip` makes it.

  Attributes:
    clip: the clip.
    low_quality: the stream that has the low-quality frames, or how they are made.
    scale: how many times smaller those are.
    shape: (height, width) of the good frames as they are scored.
    matrices: [t 2 3] from the frame to the aligned face; None where frames stay as they are.
    landmarks: [t 5 2] in pixels of the good frames as they are scored; None where they are not
      known, which is for whole frames only.
  """

  clip: Clip
  low_quality: str | Degradation
  scale: int
  shape: tuple[int, int]
  matrices: np.ndarray | None
  landmarks: np.ndarray | None

  def good(self) -> Iterator[np.ndarray]:
    """The good frames, one by one: uint8 RGB [h w 3]; raises `UserError` for a damaged one."""
    frames = self.clip.decode_each(SHARP, range(self.clip.length))
    return self._aligned(frames, 1)

  def low(self) -> Iterator[np.ndarray]:
    """The low-quality frames, likewise: uint8 RGB [h/scale w/scale 3].

    As in training whole frames are degraded, and then aligned.
    """
    frames = range(self.clip.length)
    if isinstance(self.low_quality, str):
      return self._aligned(self.clip.decode_each(self.low_quality, frames), self.scale)
    made = face_pipeline.low_quality_frames(
      self.clip,
      self.clip.decode_each(SHARP, frames),
      face_pipeline.evaluation_rng(self.clip),
      self.low_quality,
    )
    return self._aligned(made, self.scale)

  def _aligned(self, frames: Iterator[np.ndarray], scale: int) -> Iterator[np.ndarray]:
    if self.matrices is None:
      yield from frames
      return
    for image, matrix in zip(frames, self.matrices, strict=True):
      yield face_pipeline.align(image, matrix, self.shape[0], scale)


def face_clip(clip: Clip, low_quality: str | Degradation, size: int | None) -> FaceClip:
  """Opens a clip for evaluation; its first frames are decoded.

  Args:
    clip: a clip of faces: with landmarks, or aligned already.
    low_quality: the stream that has the low-quality frames, or how to make them of frames whose
      faces are of 512 pixels; for clips that are aligned at another size, see `at_size`.
    size: side of the aligned faces, in pixels; None for whole frames.

  Raises:
    UserError: a frame is damaged or has no landmarks, the frames are neither aligned nor alignable,
      or the low-quality frames are of a size that does not belong to the good ones.
  """
  height, width, _ = clip.decode(SHARP, 0).shape
  if isinstance(low_quality, str):
    low_height, low_width, _ = clip.decode(low_quality, 0).shape
    scale = height // low_height
    if (height, width) != (scale * low_height, scale * low_width):
      raise UserError(
        f"clip {clip.name}: {low_quality} has frames of {low_width}x{low_height}, which do not "
        f"belong to {width}x{height}; extract it again"
      )
  else:
    scale = low_quality.scale
  aligned = clip.aligned or (size is not None and not len(clip.landmarks))
  if aligned and isinstance(low_quality, Degradation):
    low_quality = low_quality.at_size(height)
  if size is None:
    points = _landmarks(clip)
    return FaceClip(clip, low_quality, scale, (height, width), None, points)
  if size % scale:
    raise UserError(f"--size {size}: must be a multiple of the scale, {scale}")
  matrices = face_pipeline.fit(clip, range(clip.length), size, (height, width))
  points = _landmarks(clip)
  if matrices is None:
    if (height, width) != (size, size):
      raise UserError(f"clip {clip.name}: its faces are {width}x{height}, not {size}x{size}")
    points = np.tile(template(size), (clip.length, 1, 1)) if points is None else points
  else:
    assert points is not None  # the matrices come from it
    points = move(points, matrices)
  return FaceClip(clip, low_quality, scale, (size, size), matrices, points)


def _landmarks(clip: Clip) -> np.ndarray | None:
  """A clip's landmarks, [t 5 2]; where they are (nearly) one point, from the nearest frame's."""
  points = face_pipeline.landmarks_of(clip, range(clip.length))
  if points is None:
    return None
  matrices, unusable = face_pipeline.fit_landmarks(clip, points, SIZE, robust=False)
  return np.where(unusable[:, None, None], move(TEMPLATE, invert(matrices)), points)


def aligned_size(clip: Clip) -> int | None:
  """The side of a clip of faces that are aligned already; None for one to be aligned.

  Raises:
    UserError: its frames are damaged, or not square.
  """
  if not face_pipeline.is_aligned(clip):
    return None
  height, width, _ = clip.decode(SHARP, 0).shape
  if height != width:
    raise UserError(
      f"clip {clip.name}: {width}x{height} without landmarks is no aligned face; make landmarks "
      "first, or score whole frames"
    )
  return height


def template(size: int) -> np.ndarray:
  """Where the five landmarks lie in an aligned face: [5 2], in pixels of its `size`."""
  return TEMPLATE * (size / SIZE)
