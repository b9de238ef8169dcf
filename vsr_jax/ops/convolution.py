"""Convolutions of images [... h w c], zero-padded to the same size."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.ops.channels import pad_channels
from vsr_jax.ops.devices import by_device, materialise, with_cpu_form

WIDE = 64  # channels from which products on CPU are made in whole vector registers


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves [... h w c] with [k k c d], k odd, in the images' dtype -> [... h w d]."""
  *lead, h, w, c = x.shape
  x = x.reshape(-1, h, w, c)
  return _convolve(x, kernel.astype(x.dtype)).reshape(*lead, h, w, -1)


def convolve_definition(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves [b h w c] with [k k c d] of the same type -> [b h w d]."""
  if kernel.shape[:2] == (1, 1):
    return jnp.dot(x, kernel[0, 0])
  return lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
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


def _convolve_padded(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`convolve_definition` with channel padding of the output, which is cut off again."""
  d = kernel.shape[-1]
  padding = channel_padding(d, kernel.shape[0], has_avx512())
  return convolve_definition(x, pad_channels(kernel, padding))[..., :d]


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


def _convolve_forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.platform_dependent(x, kernel, cpu=_convolve_padded, default=convolve_definition)


@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[b h w c] with [k k c d] -> [b h w d]."""
  return _convolve_forward(x, kernel)


def _convolve_backward(residuals, g):
  x, kernel = residuals
  dx = _convolve_forward(g, kernel[::-1, ::-1].swapaxes(2, 3))
  size = kernel.shape[0]
  if kernel.shape[:2] == (1, 1):  # one matrix product, no faster form is needed
    product = jnp.einsum("bhwc,bhwd->cd", x, g, preferred_element_type=jnp.float32)
    return dx, product[None, None].astype(kernel.dtype)
  dkernel = lax.platform_dependent(
    x,
    g,
    cpu=lambda *xg: by_device(functools.partial(kernel_gradient_by_image, size), *xg).sum(0),
    default=functools.partial(kernel_gradient_definition, size),
  )
  return dx, dkernel


_convolve.defvjp(lambda x, kernel: (_convolve_forward(x, kernel), (x, kernel)), _convolve_backward)


def kernel_gradient_definition(size: int, x: jax.Array, g: jax.Array) -> jax.Array:
  """A kernel's gradient [k k c d] from the input x [b h w c] and the gradient g [b h w d] of y."""
  kernel = jnp.zeros((size, size, x.shape[-1], g.shape[-1]), x.dtype)
  return jax.vjp(lambda kernel: convolve_definition(x, kernel), kernel)[1](g)[0]


def kernel_gradient_by_image(size: int, x: jax.Array, g: jax.Array) -> jax.Array:
  """`kernel_gradient_definition` as [1 k k c d]: one matrix product per image, summed over images.

  The product is over patches of x or g, whichever has fewer channels. XLA's CPU backend computes
  the definition as a convolution with an image-sized kernel, up to seven times slower.
  """
  flip = g.shape[-1] < x.shape[-1]  # taps of the gradient are those of the input, reversed
  wide, narrow = (x, g) if flip else (g, x)
  pad = (size // 2, size // 2)
  narrow = jnp.pad(narrow, ((0, 0), pad, pad, (0, 0)))

  def add_image(total, images):
    narrow, wide = images
    h, w, channels = wide.shape
    shifts = [narrow[i : i + h, j : j + w] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(shifts, axis=-1).reshape(h * w, -1)
    product = jnp.dot(patches.T, wide.reshape(h * w, channels), preferred_element_type=jnp.float32)
    return total + product, None

  total = jnp.zeros((size**2 * narrow.shape[-1], wide.shape[-1]), jnp.float32)
  total, _ = lax.scan(add_image, total, (narrow, wide))
  total = total.reshape(1, size, size, -1, wide.shape[-1]).astype(x.dtype)
  return total[:, ::-1, ::-1].swapaxes(3, 4) if flip else total
