"""Random arrays, convolution as it is defined, and what "equal but for rounding" means."""

from __future__ import annotations

import numpy as np

# Values and sums are of order 1: float32 rounding of a few hundred terms.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conv(x: np.ndarray, kernel: np.ndarray, bias=None) -> np.ndarray:
  """The definition: [b h w c] with [k k c d] -> [b h w d], zeros outside."""
  h, w = x.shape[1:3]
  k = kernel.shape[0]
  pad = (k // 2, k // 2)
  x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
  y = sum(x[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(k) for j in range(k))
  return y if bias is None else y + bias


def assert_same_sums(got, want):
  """Equal but for the rounding of sums over all pixels."""
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
