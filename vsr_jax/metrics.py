"""Metrics of restored frames against the truth: RGB PSNR, SSIM and tOF.

The definitions are those of the released FMA-Net evaluation, on uint8 frames
as they would be read back from PNG files. Scores are sums that merge, so that
totals are means over all frames of all clips, not means of clip means.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

_SSIM_WINDOW = cv2.getGaussianKernel(11, 1.5)
_SSIM_C1 = (0.01 * 255) ** 2
_SSIM_C2 = (0.03 * 255) ** 2


def rgb_psnr(a: np.ndarray, b: np.ndarray, border: int = 4) -> float:
  """Peak signal-to-noise ratio over all pixels and channels.

  Args:
    a: [h w 3] uint8.
    b: likewise.
    border: pixels left out along each edge.

  Returns:
    Decibels; infinite for equal frames.

  Raises:
    ValueError: the frames do not match or nothing is left inside the border.
  """
  a, b = _inside(a, b, border, least=1)
  mse = np.mean(np.square(a - b))
  return math.inf if mse == 0 else 20 * math.log10(255 / math.sqrt(mse))


def ssim(a: np.ndarray, b: np.ndarray, border: int = 4) -> float:
  """Structural similarity (Wang et al., 2004), the mean over channels.

  The window is Gaussian, 11x11 with sigma 1.5, and used only where it lies
  wholly inside; variances are of the population; the dynamic range is 255.

  Args:
    a: [h w 3] uint8.
    b: likewise.
    border: pixels left out along each edge before the window is applied.

  Returns:
    The similarity, from -1 to 1; 1 for equal frames.

  Raises:
    ValueError: the frames do not match or are too small for the window.
  """
  a, b = _inside(a, b, border, least=11)
  mean_a, mean_b = _blur(a), _blur(b)
  product = mean_a * mean_b
  squares = np.square(mean_a) + np.square(mean_b)
  covariance = _blur(a * b) - product
  variances = _blur(np.square(a) + np.square(b)) - squares
  similarity = (2 * product + _SSIM_C1) * (2 * covariance + _SSIM_C2)
  similarity /= (squares + _SSIM_C1) * (variances + _SSIM_C2)
  return float(similarity.mean())


def _blur(x: np.ndarray) -> np.ndarray:
  return cv2.sepFilter2D(x, -1, _SSIM_WINDOW, _SSIM_WINDOW)[5:-5, 5:-5]


def _inside(a: np.ndarray, b: np.ndarray, border: int, least: int) -> tuple[np.ndarray, ...]:
  _check_frames(a, b)
  h, w = a.shape[:2]
  if min(h, w) - 2 * border < least:
    raise ValueError(
      f"frames of {w}x{h} are too small: they need {least} pixels within a border of {border}"
    )
  inside = np.s_[border : h - border, border : w - border]
  return a[inside].astype(np.float64), b[inside].astype(np.float64)


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
  _check_frames(previous_truth, truth, previous_output, output)
  return motion_distance(motion(previous_truth, truth), motion(previous_output, output))


def motion(previous: np.ndarray, frame: np.ndarray) -> np.ndarray:
  """The optical flow that `tof` compares: float32 [h w 2], in pixels, of uint8 RGB [h w 3]."""
  _check_frames(previous, frame)
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


def _check_frames(*frames: np.ndarray) -> None:
  for frame in frames:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
      raise ValueError(f"expected a uint8 frame [h w 3], got {frame.dtype} {list(frame.shape)}")
    if frame.shape != frames[0].shape:
      raise ValueError(f"frames of different sizes: {frames[0].shape[:2]} and {frame.shape[:2]}")


@dataclasses.dataclass(frozen=True)
class Score:
  """Sums over frames and over pairs of consecutive frames; add scores to merge them."""

  psnr_sum: float = 0.0
  ssim_sum: float = 0.0
  frames: int = 0
  tof_sum: float = 0.0
  pairs: int = 0

  def __add__(self, other: Score) -> Score:
    return Score(
      psnr_sum=self.psnr_sum + other.psnr_sum,
      ssim_sum=self.ssim_sum + other.ssim_sum,
      frames=self.frames + other.frames,
      tof_sum=self.tof_sum + other.tof_sum,
      pairs=self.pairs + other.pairs,
    )

  def compute(self) -> dict[str, float]:
    """The means: psnr (dB) and ssim over frames, tof (pixels) over pairs.

    One frame that equals its truth has an infinite PSNR and makes the mean
    infinite too, as in the released evaluation. A mean over nothing (tof of a
    single frame) is NaN.
    """
    return {
      "psnr": self.psnr_sum / self.frames if self.frames else math.nan,
      "ssim": self.ssim_sum / self.frames if self.frames else math.nan,
      "tof": self.tof_sum / self.pairs if self.pairs else math.nan,
    }


class ClipScore:
  """Scores one clip frame by frame, holding no more than the previous frame."""

  def __init__(self):
    self.score = Score()
    self._previous: tuple[np.ndarray, np.ndarray] | None = None

  def add(
    self, truth: np.ndarray, output: np.ndarray, truth_motion: np.ndarray | None = None
  ) -> Score:
    """Takes the clip's next frame.

    Args:
      truth: [h w 3] uint8, RGB; not to be changed afterwards, since the next call reads it again.
      output: likewise.
      truth_motion: `motion` from the previous truth to this one, where several
        outputs are scored against it; None to find it here.

    Returns:
      What this frame and its pair with the previous one added to `score`.

    Raises:
      ValueError: the frames do not match, or are too small for a metric.
    """
    added = Score(rgb_psnr(truth, output), ssim(truth, output), frames=1)
    if self._previous is not None:
      previous_truth, previous_output = self._previous
      if truth_motion is None:
        truth_motion = motion(previous_truth, truth)
      distance = motion_distance(truth_motion, motion(previous_output, output))
      added += Score(tof_sum=distance, pairs=1)
    self._previous = truth, output
    self.score += added
    return added
