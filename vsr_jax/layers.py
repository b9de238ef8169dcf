"""What several networks use: convolutions that are fast on CPU, too, joining, GELU, a norm."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vsr_jax.devices import by_device, has_avx512

WIDE = 64  # output channels from which products on CPU are made in whole vector registers


def uniform_by_fan_in(
  key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default, which both papers train from."""
  bound = 1 / np.sqrt(np.prod(shape[:-1]))
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def bias_by_fan_in(fan_in: int) -> Callable[..., jax.Array]:
  """The same bound for a bias, whose shape does not tell the fan-in."""
  bound = 1 / np.sqrt(fan_in)
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolution of [... h w c] with a kernel [k k c d], k odd, zero-padded to the same size."""
  *lead, h, w, c = x.shape
  x = x.reshape(-1, h, w, c)
  return _conv(x, kernel.astype(x.dtype)).reshape(*lead, h, w, -1)


def gelu(x: jax.Array) -> jax.Array:
  """GELU by erf in float32, as PyTorch has it; JAX's, by erfc, takes twice as long on CPU."""
  y = x.astype(jnp.float32)
  return (y * (0.5 + 0.5 * lax.erf(y * np.sqrt(0.5).astype(np.float32)))).astype(x.dtype)


def join_channels(arrays: Sequence[jax.Array]) -> jax.Array:
  """Arrays [... c_i] of the same leading axes -> [... sum of c_i]."""
  return lax.platform_dependent(arrays, cpu=_join_groups, default=lambda a: jnp.concatenate(a, -1))


def _join_groups(arrays: Sequence[jax.Array]) -> jax.Array:
  """The same; in groups of channels it is a loop on all cores, without them a copy on one."""
  lead = arrays[0].shape[:-1]
  group = math.gcd(*(x.shape[-1] for x in arrays))
  joined = jnp.concatenate([x.reshape(*lead, -1, group) for x in arrays], axis=-2)
  return joined.reshape(*lead, -1)


def like_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
  """[c] -> [1 ... 1 c], of x's rank and type."""
  return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def fill_channels(x: jax.Array, count: int) -> jax.Array:
  """[... c] -> [... c+count], with zeros."""
  return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, count),))


def _plain_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  if kernel.shape[:2] == (1, 1):
    return jnp.dot(x, kernel[0, 0])
  return lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _filled_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The same, the output's channels filled up and cut again."""
  d = kernel.shape[-1]
  filling = _output_filling(d, kernel.shape[0], has_avx512())
  return _plain_conv(x, fill_channels(kernel, filling))[..., :d]


def _output_filling(channels: int, size: int, avx512: bool) -> int:
  """How many output channels to add for speed, as measured on convolutions of both models.

  XLA's CPU convolutions take whole pairs of vector registers at a time. With AVX-512 they are up to
  1.7 times faster at multiples of 32 channels. Without it they are up to a seventh faster at
  multiples of 16, if the last pair is more than half full or little is added to many channels; else
  up to a third slower. Products are up to a fifth faster at multiples of 16 with AVX-512, and the
  same without it.
  """
  if size == 1:
    return -channels % 16 if channels >= WIDE else 0
  if channels <= 16:
    return 0
  if avx512:
    return -channels % 32
  filling = -channels % 16
  return filling if filling < max(8, channels / 20) else 0


def _fast_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.platform_dependent(x, kernel, cpu=_filled_conv, default=_plain_conv)


@jax.custom_vjp
def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[b h w c] with [k k c d] -> [b h w d]."""
  return _fast_conv(x, kernel)


def _conv_backward(residuals, g):
  x, kernel = residuals
  dx = _fast_conv(g, kernel[::-1, ::-1].swapaxes(2, 3))
  size = kernel.shape[0]
  if kernel.shape[:2] == (1, 1):  # a product, as fast as any
    product = jnp.einsum("bhwc,bhwd->cd", x, g, preferred_element_type=jnp.float32)
    return dx, product[None, None].astype(kernel.dtype)
  dkernel = lax.platform_dependent(
    x,
    g,
    cpu=lambda *xg: by_device(functools.partial(_kernel_gradient_by_image, size), *xg).sum(0),
    default=functools.partial(_kernel_gradient, size),
  )
  return dx, dkernel


_conv.defvjp(lambda x, kernel: (_fast_conv(x, kernel), (x, kernel)), _conv_backward)


def _kernel_gradient(size: int, x: jax.Array, g: jax.Array) -> jax.Array:
  kernel = jnp.zeros((size, size, x.shape[-1], g.shape[-1]), x.dtype)
  return jax.vjp(lambda kernel: _plain_conv(x, kernel), kernel)[1](g)[0]


def _kernel_gradient_by_image(size: int, x: jax.Array, g: jax.Array) -> jax.Array:
  """The same, [1 k k c d], as one matrix product an image over patches of the narrower of the two.

  XLA's CPU backend computes it as a convolution with an image-sized kernel, up
  to seven times slower.
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


class Conv(nn.Module):
  """A k x k convolution, [... h w c] -> [... h w features], or the same in several arrays.

  Of the input's channels, the last `input_filling` are zeros and have no weights.
  """

  features: int
  size: int = 3
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = uniform_by_fan_in
  input_filling: int = 0

  @nn.compact
  def __call__(
    self, x: jax.Array, parts: int | None = None, filling: int = 0
  ) -> jax.Array | list[jax.Array]:
    """With `parts`, a list of so many arrays, among which the features are divided.

    Each output has `filling` channels of zeros more.
    """
    shape = (self.size, self.size, x.shape[-1] - self.input_filling, self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, self.input_filling), (0, 0)))
    x = x.astype(self.dtype)
    outputs = [
      convolve(x, fill_channels(part, filling)) for part in jnp.split(kernel, parts or 1, axis=-1)
    ]
    if self.use_bias:
      bias = self.param("bias", bias_by_fan_in(np.prod(shape[:-1])), (self.features,))
      bias = [fill_channels(b, filling) for b in jnp.split(bias, parts or 1)]
      outputs = [y + like_channels(b, y) for y, b in zip(outputs, bias, strict=True)]
    return outputs if parts else outputs[0]


class FrozenBatchNorm(nn.Module):
  """Batch normalisation of [b h w c] with stored statistics, which are parameters here.

  Inference only; epsilon is 1e-5, PyTorch's default.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[-1:]
    mean = self.param("mean", nn.initializers.zeros, shape)
    var = self.param("var", nn.initializers.ones, shape)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    factor = scale * lax.rsqrt(var + 1e-5)
    return x * factor[None, None, None] + (bias - mean * factor)[None, None, None]
