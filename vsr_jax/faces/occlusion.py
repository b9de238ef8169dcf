"""Occlusion between faces: which is nearer, what its head covers, and which are hidden.

Nothing here looks at pixels: of two faces the larger counts as the nearer, and a head is an ellipse
around the landmarks. So a child in front of an adult counts as behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from vsr_jax.faces import align

# Centre and half axes (x, y) of a head with hair, as an ellipse in an aligned face of `align.SIZE`.
# It reaches from the chin, at y = 480, to 60 pixels above the crop; the eyes are 126 pixels apart.
_CENTER = np.array([256.0, 210.0])
_AXES = np.array([210.0, 270.0])
_SOFT = 0.1  # width of the outline's ramp, in half axes

# Frames over which medians are taken, of sizes and of flags: about a second. So a face that nods or
# opens its mouth does not become the nearer one for a moment.
_FRAMES = 25

# The robust fit of `align.fit` bears two landmarks that are wrong. Detectors guess where the
# landmarks of a hidden half should be, and score such faces as high as any.
_MAX_HIDDEN = 2


def running_sizes(matrices: np.ndarray) -> np.ndarray:
  """The size of a face over time: matrices [n 2 3] of a track -> [n], frame pixels per crop pixel.

  A running median over `_FRAMES` frames.
  """
  return ndimage.median_filter(1 / align.scale(matrices), _FRAMES, mode="nearest")


def head_radius(points: np.ndarray, size: int) -> np.ndarray:
  """Elliptical distance of points from a head's centre, in radii: 1 on the outline.

  Args:
    points: [... 2] (x, y) in pixels of the aligned crop; they may lie outside it.
    size: the crop's side, in pixels.
  """
  scale = size / align.SIZE
  offset = (points - scale * _CENTER) / (scale * _AXES)
  return np.hypot(offset[..., 0], offset[..., 1])


def hidden_behind(landmarks: np.ndarray, nearer: np.ndarray, size: int) -> np.ndarray:
  """In which frames more than `_MAX_HIDDEN` landmarks of a face lie behind a nearer head.

  Args:
    landmarks: [n 5 2], the farther face over time, in pixels of the frame.
    nearer: [n 2 3], matrices of the nearer face in the same frames, from `align.fit`.
    size: the side of these matrices' crop, in pixels.

  Returns:
    [n] bool.
  """
  return (head_radius(align.move(landmarks, nearer), size) < 1).sum(1) > _MAX_HIDDEN


def running_majority(flags: np.ndarray) -> np.ndarray:
  """Running majority of flags [n] over `_FRAMES` frames, so that a face does not come and go."""
  return ndimage.median_filter(flags.astype(np.uint8), _FRAMES, mode="nearest").astype(bool)


def covered_by_others(
  matrices: Sequence[np.ndarray], own: int, size: int, corner: tuple[int, int], shape: Sequence[int]
) -> np.ndarray | None:
  """Share of each pixel that belongs to other heads than face `own`'s.

  A pixel belongs to the nearest head over it.

  Args:
    matrices: [2 3] each, from the image to the aligned crop; the farthest face first.
    own: index of the face in question.
    size: the crops' side, in pixels.
    corner: x and y of the top left pixel of the part of the image to compute.
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
