"""Linen layers that several networks use."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vsr_jax.ops.channels import broadcast_channels
from vsr_jax.ops.convolution import convolve
from vsr_jax.ops.depthwise import KernelAndBias, depthwise_convolve_strided


def uniform_by_fan_in(
  key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default, as FMA-Net's code does.

  The fan-in is the product of all axes of `shape` but the last.
  """
  bound = 1 / np.sqrt(np.prod(shape[:-1]))
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def bias_by_fan_in(fan_in: int) -> Callable[..., jax.Array]:
  """An initializer like `uniform_by_fan_in` for a bias, whose shape lacks the fan-in."""
  bound = 1 / np.sqrt(fan_in)
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class ConvWeights(nn.Module):
  """Declares and returns a convolution's weights, for operations that fuse several convolutions.

  Attributes:
    shape: the kernel's, [k k c d], or [k k d] for a depthwise one.
    use_bias: whether there is a bias [d].
    kernel_init: initializer of the kernel; that of a bias is always `bias_by_fan_in`.
  """

  shape: tuple[int, ...]
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer = uniform_by_fan_in

  @nn.compact
  def __call__(self) -> KernelAndBias:
    kernel, bias = self.param("kernel", self.kernel_init, self.shape), None
    if self.use_bias:
      bias = self.param("bias", bias_by_fan_in(int(np.prod(self.shape[:-1]))), self.shape[-1:])
    return KernelAndBias(kernel, bias)


class Conv(nn.Module):
  """A size x size convolution, zero-padded to the same size, [... h w c] -> [... h w features]."""

  features: int
  size: int = 3
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = uniform_by_fan_in

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.size, self.size, x.shape[-1], self.features)
    y = convolve(x.astype(self.dtype), self.param("kernel", self.kernel_init, shape))
    if self.use_bias:
      bias = self.param("bias", bias_by_fan_in(int(np.prod(shape[:-1]))), shape[-1:])
      y += broadcast_channels(bias, y)
    return y


class PRelu(nn.Module):
  """Leaky ReLU with a learned slope a channel, [... c] -> [... c]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:])
    return jnp.where(x >= 0, x, x * broadcast_channels(slope, x))


class FrozenBatchNorm(nn.Module):
  """Batch normalisation of [... c] with stored statistics, which are parameters here.

  Inference only; epsilon is PyTorch's default.
  """

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[-1:]
    mean = self.param("mean", nn.initializers.zeros, shape)
    var = self.param("var", nn.initializers.ones, shape)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    factor = scale * lax.rsqrt(var + self.epsilon)
    return x * broadcast_channels(factor, x) + broadcast_channels(bias - mean * factor, x)


class ConvNorm(nn.Module):
  """A size x size convolution, zero-padded by size // 2, and a batch norm: [b h w c]."""

  features: int
  size: int = 3
  stride: int = 1
  use_bias: bool = False  # the convolution's
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size, stride, pad = (self.size,) * 2, (self.stride,) * 2, self.size // 2
    x = nn.Conv(self.features, size, stride, pad, use_bias=self.use_bias, name="conv")(x)
    return FrozenBatchNorm(self.epsilon, name="norm")(x)


class DepthwiseNorm(nn.Module):
  """A depthwise 3x3 convolution without bias, zero-padded, and a batch norm: [b h w c]."""

  stride: int = 1
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1]))
    x = depthwise_convolve_strided(x, kernel, self.stride)
    return FrozenBatchNorm(self.epsilon, name="norm")(x)


class DenseOfImage(nn.Module):
  """A vector of `features` from all of an image: [n h w c] -> [n features]."""

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (*x.shape[1:], self.features))
    y = jnp.einsum("nhwc,hwcd->nd", x, kernel)
    if self.use_bias:
      y += self.param("bias", nn.initializers.zeros, (self.features,))[None]
    return y
