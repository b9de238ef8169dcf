"""The building blocks of both networks: heads, dense blocks, attention.

All blocks take channels-last arrays with any number of leading axes
([b h w c] or [b t h w c]), unless they say [b h w c]. Parameters are float32;
`dtype` is the type of the products; norms, softmax and statistics are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fmanet_jax.architecture import DenseSpec
from vsr_jax.layers import Conv, ConvWeights, bias_by_fan_in, uniform_by_fan_in
from vsr_jax.ops.activations import leaky_relu
from vsr_jax.ops.attention import channel_attention
from vsr_jax.ops.channels import broadcast_channels
from vsr_jax.ops.convolution import convolve_concatenated
from vsr_jax.ops.dense import dense_block
from vsr_jax.ops.depthwise import pointwise_depthwise
from vsr_jax.ops.feed_forward import gated_feed_forward
from vsr_jax.ops.resize import pixel_shuffle


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
  """The block or, with `remat`, one whose activations the backward pass computes again."""
  return nn.remat(block) if remat else block


class TwoConvs(nn.Module):
  """3x3 convolution, LeakyReLU, 3x3 convolution: the form of FMA-Net's heads."""

  hidden: int
  features: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.conv1 = Conv(self.hidden, 3, self.use_bias, self.dtype)
    self.conv2 = Conv(self.features, 3, self.use_bias, self.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv2(self.hidden_layer(x))

  def hidden_layer(self, x: jax.Array) -> jax.Array:
    """The input of the last convolution, [... h w hidden]."""
    return leaky_relu(self.conv1(x))


class DenseBlock(nn.Module):
  """Residual dense block (RDB), [... h w c] -> [... h w c].

  Layer i convolves the input and the outputs of the layers before it; all of them are fused by a
  1x1 convolution and added to the input.
  """

  dense_spec: DenseSpec
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c, g, n = x.shape[-1], self.dense_spec.growth, self.dense_spec.layers
    widths = [c + g * i for i in range(n + 1)]
    kernels = [
      self.param(f"layer_{i}_kernel", uniform_by_fan_in, (3, 3, width, g))
      for i, width in enumerate(widths[:-1])
    ]
    biases = None
    if self.use_bias:
      biases = [
        self.param(f"layer_{i}_bias", bias_by_fan_in(9 * width), (g,))
        for i, width in enumerate(widths[:-1])
      ]
    fuse = self.param("fuse_kernel", uniform_by_fan_in, (1, 1, widths[-1], c))
    # It has a bias whatever `use_bias`: the released code leaves PyTorch's default here.
    fuse_bias = self.param("fuse_bias", bias_by_fan_in(widths[-1]), (c,))
    return dense_block(x.astype(self.dtype), kernels, biases, fuse, fuse_bias, leaky_relu)


class Fuse(nn.Module):
  """A 1x1 convolution over the channels of several arrays [... h w c_i] -> [... h w features].

  Kernel rows are ordered (array, channel).
  """

  features: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, arrays: Sequence[jax.Array]) -> jax.Array:
    inputs = sum(x.shape[-1] for x in arrays)
    kernel = self.param("kernel", uniform_by_fan_in, (1, 1, inputs, self.features))
    y = convolve_concatenated([x.astype(self.dtype) for x in arrays], kernel)
    if self.use_bias:
      y += broadcast_channels(self.param("bias", bias_by_fan_in(inputs), (self.features,)), y)
    return y


class ResidualInResidualDenseBlock(nn.Module):
  """The RRDB encoder body: a chain of RDBs, all their outputs fused, plus the input."""

  blocks: int
  dense_spec: DenseSpec
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    block = rematerialised(DenseBlock, self.remat)
    y, outputs = x, []
    for i in range(self.blocks):
      y = block(self.dense_spec, self.use_bias, self.dtype, name=f"rdb_{i}")(y)
      outputs.append(y)
    y = Fuse(c, self.use_bias, self.dtype, name="fuse1")(outputs)
    return x + Conv(c, 3, self.use_bias, self.dtype, name="fuse2")(y)


class RestormerLayerNorm(nn.Module):
  """Restormer's layer norm over channels, epsilon 1e-5, biased variance.

  Without a bias (BiasFree) the mean is not subtracted, yet the variance is taken about the mean.
  """

  with_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype, c = x.dtype, x.shape[-1]
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    y = (centred if self.with_bias else x) * inverse
    y *= broadcast_channels(self.param("scale", nn.initializers.ones, (c,)), y)
    if self.with_bias:
      y += broadcast_channels(self.param("bias", nn.initializers.zeros, (c,)), y)
    return y.astype(dtype)


class ChannelAttention(nn.Module):
  """Transposed attention between channels (MDTA of Restormer, Sec. 3.1), x and query [b h w c].

  Keys and values come from x, queries from `query`: F^0_c in centre-oriented (CO) attention, k^D in
  degradation-aware (DA) attention (FMA-Net, Sec. 3.2). MDTA takes the place of the paper's
  SoftMax(QK^T / sqrt(d))V. Q, K and V are each made by a 1x1 and a depthwise 3x3 convolution.
  """

  heads: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, query: jax.Array) -> jax.Array:
    b, h, w, c = x.shape

    def projected(x, name, parts):
      d = parts * c
      pointwise = ConvWeights((1, 1, c, d), self.use_bias, name=name)()
      depthwise = ConvWeights((3, 3, d), self.use_bias, name=f"{name}_depthwise")()
      arrays = pointwise_depthwise(x.astype(self.dtype), pointwise, depthwise, parts)
      return [array.reshape(b, h * w, c) for array in arrays]

    (q,), (k, v) = projected(query, "query", 1), projected(x, "key_value", 2)
    temperature = self.param("temperature", nn.initializers.ones, (self.heads,))
    kernel = self.param("project_kernel", uniform_by_fan_in, (1, 1, c, c))
    y = channel_attention(q, k, v, temperature, kernel[0, 0]).reshape(b, h, w, c)
    if self.use_bias:
      y += broadcast_channels(self.param("project_bias", bias_by_fan_in(c), (c,)), y)
    return y


class GDFN(nn.Module):
  """Gated-dconv feed-forward network (GDFN of Restormer, Sec. 3.2), [b h w c] -> [b h w c]."""

  hidden: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c, d = x.shape[-1], 2 * self.hidden
    expand = ConvWeights((1, 1, c, d), self.use_bias, name="expand")()
    depthwise = ConvWeights((3, 3, d), self.use_bias, name="depthwise")()
    project = ConvWeights((1, 1, self.hidden, c), self.use_bias, name="project")()
    return gated_feed_forward(x.astype(self.dtype), expand, depthwise, project)


class PixelShuffleUpsampler(nn.Module):
  """Enlarges [b h w c] to [b sh sw dim] by pixel shuffles and a 3x3 convolution with LeakyReLU.

  Scale 4 shuffles twice by 2, as released; 2 and 3 shuffle once, 1 never.
  """

  dim: int
  scale: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.factors = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[self.scale]
    self.expand = [
      Conv(self.dim * factor**2, 3, self.use_bias, self.dtype) for factor in self.factors
    ]
    self.smooth = Conv(self.dim, 3, self.use_bias, self.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(len(self.factors)):
      x = self.shuffle(x, i)
    return leaky_relu(self.smooth(x))

  def shuffle(self, x: jax.Array, i: int) -> jax.Array:
    """One stage: 3x3 convolution, LeakyReLU and the i-th pixel shuffle."""
    return pixel_shuffle(leaky_relu(self.expand[i](x)), self.factors[i])
