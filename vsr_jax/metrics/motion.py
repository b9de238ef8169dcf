"""tOF: how far the motion of restored frames is from the truth's."""

from __future__ import annotations

import cv2
import numpy as np

from vsr_jax.metrics.pictures import check_frames


def tof(
  previous_truth: np.ndarray,
  truth: np.ndarray,
  previous_output: np.ndarray,
  output: np.ndarray,
) -> float:
  """Temporal consistency: how far the output's motion is from the truth's.

  The mean end-point difference of two optical flows (Farneback's, on the luma
  of consecutive frames), as in TecoGAN's evaluation: only the centre counts,
  the largest multiple of 32 pixels that leaves at least 8 along every edge.

  Args:
    previous_truth: [h w 3] uint8, RGB.
    truth: [h w 3] uint8, RGB, the next frame of the truth.
    previous_output: [h w 3] uint8, RGB, of the clip that is scored.
    output: [h w 3] uint8, RGB, its next frame.

  Returns:
    The mean end-point difference in pixels; 0 is best.

  Raises:
    ValueError: the frames do not match or are smaller than 48 pixels, so that
      the centre would be empty.
  """
  check_frames(previous_truth, truth, previous_output, output)
  return motion_distance(motion(previous_truth, truth), motion(previous_output, output))


def motion(previous: np.ndarray, frame: np.ndarray) -> np.ndarray:
  """The optical flow that `tof` compares: float32 [h w 2], in pixels, of uint8 RGB [h w 3]."""
  check_frames(previous, frame)
  return cv2.calcOpticalFlowFarneback(
    cv2.cvtColor(previous, cv2.COLOR_RGB2GRAY),
    cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY),
    None,
    pyr_scale=0.5,
    levels=3,
    winsize=15,
    iterations=3,
    poly_n=5,
    poly_sigma=1.2,
    flags=0,
  )


def motion_distance(truth: np.ndarray, output: np.ndarray) -> float:
  """The tOF, in pixels, of two flows [h w 2] from `motion`; raises `ValueError` as `tof` does."""
  h, w = truth.shape[:2]
  if min(h, w) < 48:
    raise ValueError(f"frames of {w}x{h} are too small for tOF: it needs 48 pixels each way")
  rows, columns = (h - 16) // 32 * 32, (w - 16) // 32 * 32
  top, left = (h - rows) // 2, (w - columns) // 2
  centre = (truth - output)[top : top + rows, left : left + columns]
  return float(np.linalg.norm(centre, axis=-1).mean(dtype=np.float64))
