"""How sharp an aligned face is: whether restoring it has anything to add."""

from __future__ import annotations

import cv2
import numpy as np

from vsr_jax.faces import align

# From here on a face is sharp; see docs/faces.md for what real clips have.
THRESHOLD = 0.33

# Standard deviations of two differences of Gaussians, band-pass filters, in pixels of a crop of
# `align.SIZE`: fine detail, which blur, enlargement and coding remove first, and what they leave.
_FINE = 1, 2
_COARSE = 4, 8

# From the brows to the mouth: centre and half axes in the crop, without hair and background.
_CENTER = 256, 310
_AXES = 130, 150
_MARGIN = 24  # three deviations of the widest Gaussian


def measure(face: np.ndarray) -> float:
  """Ratio of the luma's contrast in fine detail to that in coarse structure, from brows to mouth.

  A small face, enlarged to the crop, has little fine detail however sharp it was, so that it counts
  as not sharp. Exposure and contrast cancel out. Noise counts as detail.

  Args:
    face: uint8 RGB [512 512 3], aligned.

  Returns:
    the ratio of standard deviations: about 0.1 for a strong blur, 0.4 for a sharp photograph; 0
    where there is no structure at all.

  Raises:
    ValueError: the face is of another size.
  """
  if face.shape != (align.SIZE, align.SIZE, 3):
    raise ValueError(f"a face of shape {face.shape}, not [{align.SIZE} {align.SIZE} 3]")
  (x, y), (width, height) = _CENTER, _AXES
  rows, columns = (slice(c - a - _MARGIN, c + a + _MARGIN) for c, a in ((y, height), (x, width)))
  luma = cv2.cvtColor(np.ascontiguousarray(face[rows, columns]), cv2.COLOR_RGB2GRAY)
  inside = cv2.ellipse(
    np.zeros_like(luma), (width + _MARGIN, height + _MARGIN), _AXES, 0, 0, 360, 1, cv2.FILLED
  ).astype(bool)
  fine, coarse = (_band(luma.astype(np.float32), *band)[inside].std() for band in (_FINE, _COARSE))
  return float(fine / coarse) if coarse > 0 else 0.0


def _band(luma: np.ndarray, low: float, high: float) -> np.ndarray:
  return cv2.GaussianBlur(luma, (0, 0), low) - cv2.GaussianBlur(luma, (0, 0), high)
