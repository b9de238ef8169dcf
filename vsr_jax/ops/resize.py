"""Changes of size with exact semantics: bilinear, pixel shuffle, MATLAB's bicubic.

The bilinear and the shuffle are layers of the models and equal PyTorch's; the
bicubic is how the data sets' low-resolution frames are made, on NumPy in the
data workers or on JAX arrays.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def resize_bilinear(x: jax.Array, scale: int) -> jax.Array:
  """Enlarges images by an integer factor, bilinearly.

  Equals PyTorch's `F.interpolate(mode="bilinear", align_corners=False)`: pixel
  centres lie at half-integers, and edge pixels extend outwards. For an integer
  factor every output is a fixed blend of a pixel and one neighbour per axis,
  so no gather is needed.

  Args:
    x: [... h w c], floating point.
    scale: factor of both axes, at least 1.

  Returns:
    [... scale*h scale*w c] in the dtype of `x`.

  Raises:
    ValueError: `scale` is not a positive integer.
  """
  _check_scale(scale)
  return _enlarge_axis(_enlarge_axis(x, scale, x.ndim - 2), scale, x.ndim - 3)


def _enlarge_axis(x: jax.Array, scale: int, axis: int) -> jax.Array:
  size = x.shape[axis]
  first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
  last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
  before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
  after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
  phases = []
  for i in range(scale):
    offset = (2 * i + 1 - scale) / (2 * scale)  # of the output's centre from the input's
    neighbour = before if offset < 0 else after
    phases.append(x if offset == 0 else (1 - abs(offset)) * x + abs(offset) * neighbour)
  shape = x.shape[:axis] + (scale * size,) + x.shape[axis + 1 :]
  return jnp.stack(phases, axis + 1).reshape(shape)


def pixel_shuffle(x: jax.Array, scale: int) -> jax.Array:
  """Moves channels into space, in the channel order of PyTorch's `PixelShuffle`.

  Args:
    x: [... h w c*scale*scale]; channel `(k * scale + i) * scale + j` becomes
      channel k of the output's pixel (scale*y + i, scale*x + j).
    scale: factor of both axes, at least 1.

  Returns:
    [... scale*h scale*w c].

  Raises:
    ValueError: `scale` is not a positive integer, or its square does not divide
      the channels.
  """
  _check_scale(scale)
  *lead, h, w, channels = x.shape
  if channels % scale**2:
    raise ValueError(f"{channels} channels cannot be shuffled by a factor of {scale}")
  x = x.reshape(*lead, h, w, channels // scale**2, scale, scale)
  n = len(lead)
  x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)  # ... h i w j c
  return x.reshape(*lead, h * scale, w * scale, channels // scale**2)


def _check_scale(scale: int) -> None:
  if not isinstance(scale, int) or scale < 1:
    raise ValueError(f"scale must be a positive integer, not {scale!r}")


@functools.lru_cache(maxsize=16)
def bicubic_matrix(in_size: int, out_size: int, scale: Fraction | float) -> np.ndarray:
  """Weights of MATLAB's antialiased bicubic `imresize` along one axis.

  The kernel is Keys' cubic with a = -0.5, widened by 1/scale when shrinking;
  each output's weights sum to 1. The image is mirrored about its edge (the edge
  pixel comes twice), as MATLAB has done since at least R2015b; old versions
  repeated the edge pixel.

  Args:
    in_size: pixels of the input.
    out_size: pixels of the output.
    scale: output pixels per input pixel; places the output's pixel centres.

  Returns:
    [out_size in_size] float64, read-only (it is cached).

  Raises:
    ValueError: a size or the scale is not positive.
  """
  if in_size < 1 or out_size < 1 or scale <= 0:
    raise ValueError(f"cannot resize {in_size} pixels to {out_size} at scale {scale}")
  scale = float(scale)
  shrink = min(scale, 1.0)
  centre = (np.arange(out_size) + 0.5) / scale - 0.5
  reach = 2 / shrink
  taps = np.floor(centre - reach)[:, None] + np.arange(math.ceil(2 * reach) + 2)
  weights = _keys_cubic(shrink * (centre[:, None] - taps))
  weights /= weights.sum(axis=1, keepdims=True)
  source = taps.astype(np.int64) % (2 * in_size)
  source = np.minimum(source, 2 * in_size - 1 - source)
  matrix = np.zeros((out_size, in_size))
  np.add.at(matrix, (np.arange(out_size)[:, None], source), weights)
  matrix.flags.writeable = False
  return matrix


def _keys_cubic(x: np.ndarray) -> np.ndarray:
  x = np.abs(x)
  near = (1.5 * x - 2.5) * x**2 + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def resize_bicubic(
  x: Array, scale: Fraction | float | None = None, *, size: tuple[int, int] | None = None
) -> Array:
  """Resizes images as MATLAB's `imresize(x, scale)` or `imresize(x, size)` does.

  This is the bicubic, antialiased when shrinking, of the REDS and GoPro
  protocols. As in MATLAB the dtype stays: uint8 images are rounded (halves
  away from zero) and clipped after each axis, the smaller scale first; floating
  images are neither rounded nor clipped, and may overshoot.

  Args:
    x: [... h w c], NumPy or JAX; uint8 or floating.
    scale: factor of both axes; the output has ceil(scale * h) rows. Give a
      `Fraction` where a float would be inexact.
    size: (rows, columns) of the output, instead of `scale`.

  Returns:
    [... H W c], of the kind and dtype of `x`. NumPy is computed in float64 (in
    float32 for float32), JAX in float32.

  Raises:
    ValueError: both or neither of `scale` and `size` given; one is not positive.
    TypeError: `x` is neither uint8 nor floating.
  """
  if (scale is None) == (size is None):
    raise ValueError("give either a scale or a size")
  xp = jnp if isinstance(x, jax.Array) else np
  if x.dtype != np.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f"bicubic resizing needs uint8 or floating images, not {x.dtype}")
  steps: list[tuple[Fraction | float, int, np.ndarray]] = []
  for i, axis in enumerate((x.ndim - 3, x.ndim - 2)):
    in_size = x.shape[axis]
    axis_scale: Fraction | float
    if size:
      axis_scale, out_size = Fraction(size[i], in_size), size[i]
    else:
      assert scale is not None  # one of the two was given
      axis_scale, out_size = scale, math.ceil(scale * in_size)
    steps.append((axis_scale, axis, bicubic_matrix(in_size, out_size, axis_scale)))
  for _, axis, matrix in sorted(steps, key=lambda step: step[0]):
    x = _resize_axis(x, matrix, axis, xp)
  return x


def _resize_axis(x: Array, matrix: np.ndarray, axis: int, xp: ModuleType) -> Array:
  y: Any  # of the kind of x, whatever that is
  if xp is jnp:
    # The default precision of a TPU's products is bfloat16: too coarse for pixels.
    y = jnp.tensordot(
      jnp.asarray(matrix, jnp.float32),
      x.astype(jnp.float32),
      (1, axis),
      precision=jax.lax.Precision.HIGHEST,
    )
  else:
    dtype = np.float32 if x.dtype == np.float32 else np.float64
    y = np.tensordot(matrix.astype(dtype), x.astype(dtype), (1, axis))
  y = xp.moveaxis(y, 0, axis)
  if x.dtype == np.uint8:
    y = xp.clip(xp.floor(y + 0.5), 0, 255)
  return y.astype(x.dtype)
