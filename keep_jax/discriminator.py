"""The discriminators of stage I (patches of images) and stage III (space-time)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.ops.channels import broadcast_channels
from vsr_jax.ops.convolution import Padding
from vsr_jax.ops.temporal import convolve_frames_strided

_SLOPE = 0.2  # below zero, in every LeakyReLU
_EPSILON = 1e-12  # least norm that a power iteration divides by


class BatchNorm(nn.Module):
  """Batch normalisation of [b h w c], whose running variance is the unbiased one, as in PyTorch.

  The statistics are those of the global batch, however it is split over devices.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (c,))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
    mean, var = running_mean.value, running_var.value
    if train:
      y = x.astype(jnp.float32)
      mean = y.mean((0, 1, 2))
      var = jnp.square(y - mean.reshape(1, 1, 1, c)).mean((0, 1, 2))
      count = x.size // c
      running_mean.value = 0.9 * running_mean.value + 0.1 * lax.stop_gradient(mean)
      unbiased = lax.stop_gradient(var) * (count / max(count - 1, 1))
      running_var.value = 0.9 * running_var.value + 0.1 * unbiased
    factor = scale * lax.rsqrt(var + 1e-5)
    y = x * factor.reshape(1, 1, 1, c) + (bias - mean * factor).reshape(1, 1, 1, c)
    return y.astype(x.dtype)


class PatchDiscriminator(nn.Module):
  """PatchGAN of VQGAN: images [b h w 3] in [-1, 1] -> a map of scores [b h' w' 1].

  Batch norms keep their statistics in the collection "batch_stats".

  Attributes:
    width: channels of the first layer.
    layers: how many have stride 2.
  """

  width: int = 64
  layers: int = 4

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    def conv(features, stride, **options):
      pad = ((1, 1), (1, 1))
      return nn.Conv(features, (4, 4), (stride, stride), padding=pad, **options)

    x = nn.leaky_relu(conv(self.width, 2, name="conv_0")(x), _SLOPE)
    for i in range(1, self.layers + 1):
      stride = 2 if i < self.layers else 1
      features = min(2**i, 8) * self.width
      x = conv(features, stride, use_bias=False, name=f"conv_{i}")(x)
      x = BatchNorm(name=f"norm_{i}")(x, train)
      x = nn.leaky_relu(x, _SLOPE)
    return conv(1, 1, name="scores")(x)


class SpectralConv(nn.Module):
  """A 3x5x5 convolution of stride (1, 2, 2) whose kernel is divided by its spectral norm.

  The largest singular value is u^T W v; the vectors live in the collection "spectral", and each
  application with `train` improves them by one power iteration.
  """

  features: int
  padding: Padding  # of rows and of columns

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    shape = (3, 5, 5, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    matrix = kernel.reshape(-1, self.features)

    def unit(name, size):
      def init():
        key = self.make_rng("params")
        return _normalise(jax.random.normal(key, (size,)))

      return self.variable("spectral", name, init)

    u, v = unit("u", self.features), unit("v", len(matrix))
    if train:
      v.value = _normalise(lax.stop_gradient(matrix) @ u.value)
      u.value = _normalise(lax.stop_gradient(matrix).T @ v.value)
    sigma = v.value @ matrix @ u.value
    return convolve_frames_strided(x, kernel / sigma, 2, self.padding)


def _normalise(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x), _EPSILON)


class VideoConv(nn.Module):
  """A 3x5x5 convolution of stride (1, 2, 2) with a bias."""

  features: int
  padding: Padding  # of rows and of columns

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (3, 5, 5, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    y = convolve_frames_strided(x, kernel, 2, self.padding)
    return y + broadcast_channels(self.param("bias", nn.initializers.zeros, shape[-1:]), y)


class VideoDiscriminator(nn.Module):
  """Stage III's discriminator: clips [b t h w 3] in [-1, 1] -> scores [b t h/64 w/64 4*width]."""

  width: int = 32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    first, others = ((1, 1), (1, 1)), ((2, 2), (2, 2))
    for i, multiple in enumerate((1, 2, 4, 4, 4)):
      padding = others if i else first
      x = SpectralConv(multiple * self.width, padding, name=f"conv_{i}")(x, train)
      x = nn.leaky_relu(x, _SLOPE)
    return VideoConv(4 * self.width, others, name="scores")(x)
