"""Aligned face crops: upright and of a standard size, like FFHQ's and KEEP's training faces.

A matrix [2 3] maps points (x, y) of the frame to the aligned crop; pixel centres have whole
coordinates. It is always a similarity. Images are RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

SIZE = 512  # pixels, an aligned face's side

# Where eyes, nose and mouth corners (left before right, as seen) lie in an aligned face of SIZE.
TEMPLATE = np.array(
  [
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
  ]
)

# What the crop shows outside the frame. The released code has (135, 133, 132) in BGR images.
BORDER = (132, 133, 135)

# Least spread of landmarks that can be fitted: root mean square distance from their centre, in
# pixels (79 in the template). Below it size and rotation of a face cannot be estimated.
_MIN_SPREAD = 2.0

# How far the robust fit may be from the plain one, as |ratio - 1| of their complex factors: 35 % in
# scale or 20 degrees. Frontal faces stay below a tenth.
_MAX_DISAGREEMENT = 0.35


def fit(
  landmarks: np.ndarray,
  size: int = SIZE,
  *,
  robust: bool = True,
  template: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the similarity that brings each face's landmarks to the template.

  As in the released code this is a least-median-of-squares fit, which ignores up to two landmarks
  that disagree with the rest. It can go wrong for a profile, whose landmarks are nearly collinear:
  where it fails, or is far from the least-squares fit to all five, the latter is used. Where the
  landmarks are (nearly) one point, the matrix of the nearest frame in time is used.

  Args:
    landmarks: [n 5 2], one face over time, in pixels of the frame.
    size: the crop's side, in pixels.
    robust: False uses the least-squares fit throughout. It moves smoothly with the landmarks; the
      robust fit jumps when it ignores other landmarks than in the frame before. On a moving head
      with smoothed landmarks, the crop's displacement per frame changed by up to 29 crop pixels
      from one frame to the next, with least squares by 3.
    template: where the landmarks lie in the crop, [5 2] in its pixels; None: `TEMPLATE`'s share of
      `size`.

  Returns:
    Matrices [n 2 3] float64, and whether each comes from a fallback [n].

  Raises:
    ValueError: no frame's landmarks can be fitted, or the shape is another one.
  """
  points = np.asarray(landmarks, np.float64)
  if points.ndim != 3 or points.shape[1:] != TEMPLATE.shape:
    raise ValueError(f"landmarks of shape {points.shape}, not [n 5 2]")
  if template is None:
    template = TEMPLATE * (size / SIZE)
  plain, spread = _least_squares(points, template)
  possible = np.isfinite(points).all((1, 2)) & (spread >= _MIN_SPREAD)
  if not possible.any():
    raise ValueError("no frame in which the landmarks of this face are apart from each other")
  matrices, fallback = plain, ~possible
  for i in np.flatnonzero(possible) if robust else ():
    matrix, _ = cv2.estimateAffinePartial2D(points[i], template, method=cv2.LMEDS)
    fallback[i] = matrix is None or not _agree(matrix, plain[i])
    if not fallback[i]:
      matrices[i] = matrix
  nearest = np.flatnonzero(possible)
  nearest = nearest[np.abs(np.arange(len(points))[:, None] - nearest).argmin(1)]
  return matrices[nearest], fallback


def _least_squares(points: np.ndarray, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The least-squares similarities [n 2 3] of [n 5 2] to [5 2], and the points' spreads [n]."""
  with np.errstate(divide="ignore", invalid="ignore"):  # what is no number is told by the result
    center, target = points.mean(1), template.mean(0)
    # As complex numbers a similarity is one factor and an offset.
    source = (points - center[:, None]) @ [1, 1j]
    energy = np.square(np.abs(source)).mean(1)
    factor = (source.conj() * ((template - target) @ [1, 1j])).mean(1) / energy
    linear = np.stack([factor.real, -factor.imag, factor.imag, factor.real], -1).reshape(-1, 2, 2)
    offset = target[:, None] - linear @ center[:, :, None]
  return np.concatenate([linear, offset], -1), np.sqrt(energy)


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two similarities have about the same scale and rotation."""
  ratio = complex(a[0, 0], a[1, 0]) / complex(b[0, 0], b[1, 0])
  return abs(ratio - 1) < _MAX_DISAGREEMENT  # and not for NaN


def scale(matrices: np.ndarray) -> np.ndarray:
  """The similarities' scale, in crop pixels per frame pixel: [... 2 3] -> [...]."""
  return np.hypot(matrices[..., 0, 0], matrices[..., 1, 0])


def invert(matrices: np.ndarray) -> np.ndarray:
  """The inverse similarities, from crop to frame: [... 2 3] -> [... 2 3]."""
  linear = matrices[..., :2].swapaxes(-1, -2) / scale(matrices)[..., None, None] ** 2
  return np.concatenate([linear, -linear @ matrices[..., 2:]], -1)


def move(points: np.ndarray, matrices: np.ndarray) -> np.ndarray:
  """Moves points (x, y), [k 2] or [n k 2], by matrices [n 2 3]: [n k 2]."""
  return points @ matrices[..., :2].swapaxes(-1, -2) + matrices[:, None, :, 2]


def align(
  frame: np.ndarray,
  matrix: np.ndarray,
  size: int = SIZE,
  border: tuple[int, int, int] = BORDER,
) -> np.ndarray:
  """Cuts a face out of its frame.

  Bilinear, as KEEP and its like are trained with; grey beyond the frame.

  Args:
    frame: uint8 RGB [h w 3].
    matrix: [2 3], from `fit` with the same size.
    size: the crop's side, in pixels.
    border: RGB of what lies beyond the frame.

  Returns:
    uint8 RGB [size size 3].
  """
  return cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=border)


def align_reduced(
  frame: np.ndarray,
  matrix: np.ndarray,
  size: int = SIZE,
  border: tuple[int, int, int] = BORDER,
) -> np.ndarray:
  """Cuts a face out of its frame, each pixel of the crop an average where the crop is smaller.

  `align` takes single points, so that a crop much smaller than the face has aliases. Here as many
  points are sampled as the frame has pixels, by cubic interpolation. Arguments as of `align`.

  Returns:
    uint8 RGB [size size 3].
  """
  factor = max(1, math.ceil(1 / float(scale(matrix)) - 0.01))
  finer = factor * np.asarray(matrix, np.float64)
  finer[:, 2] += (factor - 1) / 2  # centres of pixels have whole coordinates
  image = cv2.warpAffine(
    frame, finer, (factor * size, factor * size), flags=cv2.INTER_CUBIC, borderValue=border
  )
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def align_frames(
  frames: Sequence[np.ndarray], matrices: np.ndarray, size: int = SIZE
) -> np.ndarray:
  """`align` for one face over n frames: [h w 3] each and [n 2 3] -> uint8 [n size size 3]."""
  faces = np.empty((len(matrices), size, size, 3), np.uint8)
  for frame, matrix, face in zip(frames, matrices, faces, strict=True):
    face[...] = align(frame, matrix, size)
  return faces
