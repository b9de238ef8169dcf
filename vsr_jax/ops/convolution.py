"""Convolutions of images [... h w c] with stride 1, zero-padded."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.ops.channels import pad_channels
from vsr_jax.ops.devices import by_device, materialise, with_cpu_form

Padding = tuple[tuple[int, int], tuple[int, int]]  # of rows, of columns; before and after

STRIP_BYTES = 3 * 2**19  # of patches, in a kernel's gradient: less than a core's cache

WIDE = 64  # channels from which products on CPU are made in whole vector registers


def convolve(x: jax.Array, kernel: jax.Array, padding: Padding | None = None) -> jax.Array:
  """Convolves images with a kernel, in the images' dtype.

  Args:
    x: [... h w c].
    kernel: [k k c d].
    padding: zeros before and after rows and columns, at most k - 1 each; None: as many as keep the
      size, for an odd k.

  Returns:
    [... h w d], or other sides if `padding` says so.
  """
  *lead, h, w, c = x.shape
  half = kernel.shape[0] // 2
  padding = ((half, half), (half, half)) if padding is None else padding
  y = _convolve(padding, x.reshape(-1, h, w, c), kernel.astype(x.dtype))
  return y.reshape(*lead, *y.shape[1:])


def convolve_definition(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """Convolves [b h w c] with [k k c d] of the same type -> [b h w d]."""
  if kernel.shape[:2] == (1, 1):
    return jnp.dot(x, kernel[0, 0])
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def convolve_concatenated(arrays: Sequence[jax.Array], kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution of concatenated arrays [... h w c_i] with [1 1 sum(c_i) d] -> [... h w d].

  On CPU, unless it is differentiated, it is a sum of products: the arrays are never concatenated,
  and each can be freed after its product.
  """
  return with_cpu_form(_convolve_in_turn, convolve_concatenated_definition)(list(arrays), kernel)


def convolve_concatenated_definition(arrays: Sequence[jax.Array], kernel: jax.Array) -> jax.Array:
  """The definition of `convolve_concatenated`."""
  return convolve(jnp.concatenate(arrays, axis=-1), kernel)


def _convolve_in_turn(arrays: Sequence[jax.Array], kernel: jax.Array) -> jax.Array:
  widths = [x.shape[-1] for x in arrays]
  rows = jnp.split(kernel, [sum(widths[:i]) for i in range(1, len(widths))], axis=2)
  y = convolve(arrays[0], rows[0])
  for x, x_rows in zip(arrays[1:], rows[1:], strict=True):
    y = materialise(lambda y, x, x_rows: y + convolve(x, x_rows), y, x, x_rows)
  return y


def _convolve_padded(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """`convolve_definition` with channel padding of the output, which is cut off again."""
  d = kernel.shape[-1]
  extra = channel_padding(d, kernel.shape[0], has_avx512())
  return convolve_definition(x, pad_channels(kernel, extra), padding)[..., :d]


def channel_padding(channels: int, size: int, avx512: bool) -> int:
  """How many output channels to add to a size x size convolution on CPU for speed.

  XLA's CPU convolutions take whole pairs of vector registers at a time. With AVX-512 they are up to
  1.7 times faster at multiples of 32 channels. Without it they are up to a seventh faster at
  multiples of 16, if the last pair is more than half full; else up to a third slower. 1x1
  convolutions, which are matrix products, are up to a fifth faster at multiples of 16 with AVX-512,
  and as fast without it.
  """
  if size == 1:
    return -channels % 16 if channels >= WIDE else 0
  if channels <= 16:
    return 0
  if avx512:
    return -channels % 32
  padding = -channels % 16
  return padding if padding < 8 else 0


@functools.cache
def has_avx512() -> bool:
  """Whether the CPU has AVX-512, registers of 16 floats; False on systems other than Linux."""
  cpus = pathlib.Path("/proc/cpuinfo")
  return cpus.is_file() and " avx512f" in cpus.read_text()


def _convolve_forward(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_convolve_padded, padding=padding),
    default=functools.partial(convolve_definition, padding=padding),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(padding: Padding, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[b h w c] with [k k c d] -> [b h w d]."""
  return _convolve_forward(x, kernel, padding)


def _convolve_backward(padding: Padding, residuals: Any, g: jax.Array):
  x, kernel = residuals
  size = kernel.shape[0]
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  dx = _convolve_forward(g, turned, _reversed(padding, size))
  if kernel.shape[:2] == (1, 1):  # one matrix product, no faster form is needed
    product = jnp.einsum("bhwc,bhwd->cd", x, g, preferred_element_type=jnp.float32)
    return dx, product[None, None].astype(kernel.dtype)
  by_strip = functools.partial(kernel_gradient_by_strip, size, padding)
  dkernel = lax.platform_dependent(
    x,
    g,
    cpu=lambda *xg: by_device(by_strip, *xg).sum(0),
    default=functools.partial(kernel_gradient_definition, size, padding),
  )
  return dx, dkernel


_convolve.defvjp(
  lambda padding, x, kernel: (_convolve_forward(x, kernel, padding), (x, kernel)),
  _convolve_backward,
)


def _reversed(padding: Padding, size: int) -> Padding:
  """The zeros around a gradient of the output for it to give one of the input."""
  (top, bottom), (left, right) = padding
  last = size - 1
  return (last - top, last - bottom), (last - left, last - right)


def kernel_gradient_definition(
  size: int, padding: Padding, x: jax.Array, g: jax.Array
) -> jax.Array:
  """A kernel's gradient [k k c d]: input x [b h w c], gradient g [b h' w' d] of the output."""
  kernel = jnp.zeros((size, size, x.shape[-1], g.shape[-1]), x.dtype)
  return jax.vjp(lambda kernel: convolve_definition(x, kernel, padding), kernel)[1](g)[0]


def kernel_gradient_by_strip(size: int, padding: Padding, x: jax.Array, g: jax.Array) -> jax.Array:
  """`kernel_gradient_definition` as [1 k k c d]: a matrix product per strip of rows, all summed.

  The product is over patches of x or g, whichever has fewer channels. XLA's CPU backend computes
  the definition as a convolution with an image-sized kernel, up to seven times slower at 3x3, and
  at 2x2 fifty times. Strips whose patches stay in the cache are up to twice as fast as images.
  """
  flip = g.shape[-1] < x.shape[-1]  # taps of the gradient are those of the input, reversed
  wide, narrow = (x, g) if flip else (g, x)
  zeros = _reversed(padding, size) if flip else padding
  narrow = jnp.pad(narrow, ((0, 0), *zeros, (0, 0)))
  b, h, w, channels = wide.shape
  few = narrow.shape[-1]
  rows = _strip_rows(h, w * size**2 * few * x.dtype.itemsize)

  def add_strip(total, i):
    start = (i // (h // rows), i % (h // rows) * rows, 0, 0)
    strip = lax.dynamic_slice(narrow, start, (1, rows + size - 1, *narrow.shape[2:]))[0]
    shifts = [strip[i : i + rows, j : j + w] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(shifts, axis=-1).reshape(rows * w, -1)
    other = lax.dynamic_slice(wide, start, (1, rows, w, channels)).reshape(rows * w, channels)
    return total + jnp.dot(patches.T, other, preferred_element_type=jnp.float32), None

  total = jnp.zeros((size**2 * few, channels), jnp.float32)
  total, _ = lax.scan(add_strip, total, jnp.arange(b * (h // rows), dtype=jnp.int32))
  total = total.reshape(1, size, size, -1, channels).astype(x.dtype)
  return total[:, ::-1, ::-1].swapaxes(3, 4) if flip else total


def _strip_rows(height: int, row_bytes: int) -> int:
  """The most rows of a strip that divide the height and take at most `STRIP_BYTES`, at least 1."""
  most = max(1, STRIP_BYTES // row_bytes)
  return max(rows for rows in range(1, min(height, most) + 1) if height % rows == 0)
