"""Metrics of single frames against the truth: RGB PSNR and SSIM."""

from __future__ import annotations

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
  check_frames(a, b)
  h, w = a.shape[:2]
  if min(h, w) - 2 * border < least:
    raise ValueError(
      f"frames of {w}x{h} are too small: they need {least} pixels within a border of {border}"
    )
  inside = np.s_[border : h - border, border : w - border]
  return a[inside].astype(np.float64), b[inside].astype(np.float64)


def check_frames(*frames: np.ndarray) -> None:
  """Raises `ValueError` unless all are uint8 RGB [h w 3] of one size."""
  for frame in frames:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
      raise ValueError(f"expected a uint8 frame [h w 3], got {frame.dtype} {list(frame.shape)}")
    if frame.shape != frames[0].shape:
      raise ValueError(f"frames of different sizes: {frames[0].shape[:2]} and {frame.shape[:2]}")
