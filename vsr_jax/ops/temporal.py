"""Convolution over frames, [b t h w c] with a kernel [3 k k c d], zero-padded."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.ops.convolution import Padding, convolve
from vsr_jax.ops.devices import materialise


def convolve_frames(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves [b t h w c] in time and space with [3 k k c d], k odd -> [b t h w d].

  Computed by 2-D convolutions, which are faster than XLA's 3-D convolution on CPU; taps on the zero
  frames before the first and after the last one are skipped.
  """
  kernel = kernel.astype(x.dtype)
  # Only float32 on CPU: `_convolve_three` adds frames and taps before the products, which would
  # round once more in bfloat16, and in the reduced precision of float32 products on accelerators.
  cpu = _convolve_three if x.shape[1] == 3 and x.dtype == jnp.float32 else _convolve_by_frame
  return lax.platform_dependent(x, kernel, cpu=cpu, default=_convolve_by_frame)


def convolve_frames_definition(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The definition of `convolve_frames`: a 3-D convolution."""
  numbers = ("NDHWC", "DHWIO", "NDHWC")
  kernel = kernel.astype(x.dtype)
  return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers)


def convolve_frames_strided(
  x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
  """Convolves frames with a stride in space; time keeps its length.

  XLA's CPU backend takes up to fifty times as long for the gradient of a 3-D convolution's input as
  for the convolution itself: here it computes 2-D ones.

  Args:
    x: [b t h w c].
    kernel: [n k k c d], n odd.
    stride: of rows and of columns.
    padding: zeros before and after rows and columns.

  Returns:
    [b t h' w' d], h' = (h + zeros - k) // stride + 1 and w' likewise.
  """
  # In float32 only, as in `convolve_frames`: the sum over the taps would round bfloat16 once more.
  cpu = _convolve_by_tap if x.dtype == jnp.float32 else convolve_frames_strided_definition
  forms = [
    functools.partial(form, stride=stride, padding=padding)
    for form in (cpu, convolve_frames_strided_definition)
  ]
  return lax.platform_dependent(x, kernel.astype(x.dtype), cpu=forms[0], default=forms[1])


def convolve_frames_strided_definition(
  x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
  """The definition of `convolve_frames_strided`: a 3-D convolution."""
  half = len(kernel) // 2
  return lax.conv_general_dilated(
    x, kernel, (1, stride, stride), ((half, half), *padding),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )  # fmt: skip


def _convolve_by_tap(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """`convolve_frames_strided` as one convolution of each frame with all taps in time, and a sum."""
  b, t, *frame = x.shape
  n = len(kernel)
  y = lax.conv_general_dilated(
    x.reshape(b * t, *frame), jnp.concatenate(list(kernel), axis=-1), (stride, stride), padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip
  y = y.reshape(b, t, *y.shape[1:3], n, -1)
  y = jnp.pad(y, ((0, 0), (n // 2, n // 2), (0, 0), (0, 0), (0, 0), (0, 0)))
  return functools.reduce(jnp.add, [y[:, i : i + t, :, :, i] for i in range(n)])


def _convolve_by_frame(x: jax.Array, kernel: jax.Array) -> jax.Array:
  t, frames = x.shape[1], []
  for i in range(t):
    first, end = max(i - 1, 0), min(i + 2, t)
    joined = jnp.concatenate([x[:, j] for j in range(first, end)], axis=-1)
    taps = jnp.concatenate(kernel[first - i + 1 : end - i + 1], axis=2)
    frames.append(convolve(joined, taps))
  return jnp.stack(frames, axis=1)


def _convolve_three(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`convolve_frames` of three frames by four 2-D convolutions instead of seven.

  With frames x0, x1, x2, taps K0, K1, K2 (products are 2-D convolutions), the outputs are

    y0 = K1 x0 + K2 x1,    y1 = K0 x0 + K1 x1 + K2 x2,    y2 = K0 x1 + K1 x2.

  With s, d = x2 +- x0 and P, M = K0 +- K2, they follow from four products

    A, A' = (3/2 K1 +- P)(3/2 x1 +- s),    B, B' = (1/2 K1 +- M)(1/2 x1 +- d)

  as y1 = (A + A' - B - B') / 4 and y2, y0 = (A - A') / 6 +- (B - B') / 2. Rounding errors are as
  large as those of the plain sum.
  """
  x0, x1, x2 = (x[:, i] for i in range(3))
  before, now, after = kernel
  s, p, x, k = x2 + x0, before + after, 1.5 * x1, 1.5 * now
  a, a2 = convolve(x + s, k + p), convolve(x - s, k - p)
  d, m, x, k = x2 - x0, before - after, 0.5 * x1, 0.5 * now
  b, b2 = convolve(x + d, k + m), convolve(x - d, k - m)

  def outputs(a, a2, b, b2):
    even, odd = (a - a2) / 6, (b - b2) / 2
    return jnp.stack([even - odd, (a + a2 - b - b2) / 4, even + odd], axis=1)

  return materialise(outputs, a, a2, b, b2)  # else held as four, added up by every reader
