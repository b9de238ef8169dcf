"""Which face is in front of which, what its head covers, and who is hidden behind it.

Nothing here looks at pixels: the larger one of two faces counts as the nearer, and a head is an
ellipse about the landmarks. So a child's face before an adult's counts as behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from vsr_jax.faces import align

# A head with its hair in an aligned face of `align.SIZE`, where eyes are 126 pixels apart: from
# the chin, at 480, to a skull's height above the eyes; beyond the crop, where hair stands high.
_CENTER = np.array([256.0, 210.0])
_AXES = np.array([210.0, 270.0])
_SOFT = 0.1  # width of the outline's ramp, in half axes

# Sizes are compared as medians over so many frames: a second of most clips. A face that nods or
# opens its mouth does not change places with its neighbour.
_FRAMES = 25

# The robust fit of `align.fit` bears two landmarks that are wrong. Detectors guess where the
# landmarks of a hidden half should be, and score such faces as high as any.
_MAX_HIDDEN = 2


def sizes(matrices: np.ndarray) -> np.ndarray:
  """How large a face is over time, steadily: matrices [n 2 3] of a track -> [n].

  In frame pixels that one pixel of the crop covers, as the median over the frames around.
  """
  return ndimage.median_filter(1 / align.scale(matrices), _FRAMES, mode="nearest")


def head_radius(points: np.ndarray, size: int) -> np.ndarray:
  """How far out of a head points are: its centre has 0, its outline 1.

  Args:
    points: [... 2] (x, y) in pixels of the aligned crop; they may lie outside it.
    size: the crop's side, in pixels.
  """
  scale = size / align.SIZE
  offset = (points - scale * _CENTER) / (scale * _AXES)
  return np.hypot(offset[..., 0], offset[..., 1])


def hidden(landmarks: np.ndarray, nearer: np.ndarray, size: int) -> np.ndarray:
  """Whether too much of a face is behind a nearer head to align it.

  Args:
    landmarks: [n 5 2], the farther face over time, in pixels of the frame.
    nearer: [n 2 3], matrices of the nearer face in the same frames, from `align.fit`.
    size: the side of the crop that they lead to, in pixels.

  Returns:
    [n] bool.
  """
  points = landmarks @ nearer[:, :, :2].swapaxes(1, 2) + nearer[:, None, :, 2]
  return (head_radius(points, size) < 1).sum(1) > _MAX_HIDDEN


def steady(flags: np.ndarray) -> np.ndarray:
  """Flags [n] over time by the majority of the frames around, so that a face does not flicker."""
  return ndimage.median_filter(flags.astype(np.uint8), _FRAMES, mode="nearest").astype(bool)


def others(
  matrices: Sequence[np.ndarray], own: int, size: int, corner: tuple[int, int], shape: Sequence[int]
) -> np.ndarray | None:
  """How much of each pixel belongs to other heads than a face's own.

  A pixel belongs to the nearest head over it.

  Args:
    matrices: [2 3] each, from the image to the aligned crop; the farthest face first.
    own: index of the face in question.
    size: the crops' side, in pixels.
    corner: x and y of the part of the image that is asked for.
    shape: height and width of that part.

  Returns:
    float32 [h w] in [0, 1], or None where no other head is near.
  """
  if not any(_touches(m, size, corner, shape) for i, m in enumerate(matrices) if i != own):
    return None
  x, y = np.arange(shape[1]) + corner[0], np.arange(shape[0])[:, None] + corner[1]
  total = np.zeros(shape, np.float32)
  free = np.ones(shape, np.float32)  # 1 where there is no nearer head
  for i in reversed(range(len(matrices))):
    moved = np.stack([a * x + b * y + c for a, b, c in matrices[i]], -1)
    cover = np.float32(np.clip((1 - head_radius(moved, size)) / _SOFT + 0.5, 0, 1))
    if i != own:
      total += cover * free
    free *= 1 - cover
  return total


def _touches(matrix: np.ndarray, size: int, corner: tuple[int, int], shape: Sequence[int]) -> bool:
  """Whether a circle about a head reaches into a part of the image."""
  inverse, scale = align.invert(matrix), size / align.SIZE
  center = inverse[:, :2] @ (scale * _CENTER) + inverse[:, 2]
  radius = (1 + _SOFT) * scale * _AXES.max() / align.scale(matrix)
  low = np.array(corner)
  nearest = np.clip(center, low, low + [shape[1] - 1, shape[0] - 1])
  return bool(np.hypot(*(nearest - center)) < radius)
