"""The building blocks of both networks: convolutions, dense blocks, attention.

All blocks take channels-last arrays with any number of leading axes
([b h w c] or [b t h w c]), unless they say [b h w c]. Parameters are float32;
`dtype` is the type of the products; norms, softmax and statistics are float32.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.devices import computed_once
from vsr_jax.layers import (
  WIDE,
  Conv,
  bias_by_fan_in,
  convolve,
  fill_channels,
  gelu,
  join_channels,
  like_channels,
  uniform_by_fan_in,
)
from vsr_jax.resize import pixel_shuffle


def leaky_relu(x: jax.Array) -> jax.Array:
  """LeakyReLU with FMA-Net's slope of 0.2."""
  return jnp.where(x >= 0, x, x * jnp.asarray(0.2, x.dtype))


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Depthwise 3x3 convolution of [b h+2 w+2 c], its border laid on, with [3 3 c] -> [b h w c].

  Nine shifted multiply-adds: on CPU about 20 times faster than a grouped
  convolution, and what an accelerator fuses anyway. The gradient has the same
  form, which differentiating the sum does not find.
  """
  kernel = kernel.astype(x.dtype)
  taps = [tap * kernel[i, j].reshape(1, 1, 1, -1) for i, j, tap in _neighbours(x)]
  return sum(taps[1:], taps[0])


def _depthwise_backward(residuals, g):
  x, kernel = residuals
  products = [(tap * g).astype(jnp.float32).sum((0, 1, 2)) for *_, tap in _neighbours(x)]
  dkernel = jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)
  return depthwise(zero_border(g, 2), kernel[::-1, ::-1]), dkernel


depthwise.defvjp(lambda x, kernel: (depthwise(x, kernel), (x, kernel)), _depthwise_backward)


def _neighbours(x: jax.Array):
  """The nine 3x3 neighbours (i, j, [b h w c]) of every pixel inside the border of x."""
  h, w = x.shape[1] - 2, x.shape[2] - 2
  return [(i, j, x[:, i : i + h, j : j + w]) for i in range(3) for j in range(3)]


def zero_border(x: jax.Array, width: int = 1) -> jax.Array:
  """[b h w c] with `width` rows and columns of zeros around each image."""
  return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


class TwoConvs(nn.Module):
  """3x3 convolution, LeakyReLU, 3x3 convolution: the form of FMA-Net's heads."""

  hidden: int
  features: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    # XLA's CPU backend makes fewer than 8 outputs as dot products over the input channels, three
    # times slower of 27 than of 28.
    self.filling = -self.hidden % 4 if self.features < 8 else 0
    common = (self.use_bias, self.dtype)
    self.conv1 = Conv(self.hidden, 3, *common)
    self.conv2 = Conv(self.features, 3, *common, input_filling=self.filling)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv2(self.hidden_layer(x, self.filling))

  def hidden_layer(self, x: jax.Array, filling: int = 0) -> jax.Array:
    """The input of the last convolution, and as many channels of zeros as asked for."""
    return leaky_relu(self.conv1(x, filling=filling))


class DepthwiseConv(nn.Module):
  """A depthwise 3x3 convolution of channels that come in arrays, [b h+2 w+2 c_i] -> [b h w c_i]."""

  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, arrays: Sequence[jax.Array], filling: int = 0) -> tuple[jax.Array, ...]:
    """The last `filling` channels of each array are zeros, have no weights and stay zeros."""
    ends = list(itertools.accumulate(x.shape[-1] - filling for x in arrays))
    uniform = bias_by_fan_in(9)  # each output sees one channel
    kernels = jnp.split(self.param("kernel", uniform, (3, 3, ends[-1])), ends[:-1], axis=-1)
    kernels = [fill_channels(kernel, filling) for kernel in kernels]
    outputs = [depthwise(x.astype(self.dtype), k) for x, k in zip(arrays, kernels, strict=True)]
    if self.use_bias:
      bias = jnp.split(self.param("bias", uniform, (ends[-1],)), ends[:-1])
      bias = [fill_channels(b, filling) for b in bias]
      outputs = [y + like_channels(b, y) for y, b in zip(outputs, bias, strict=True)]
    return tuple(outputs)


def pointwise_depthwise(
  x: jax.Array, pointwise: Conv, depthwise: DepthwiseConv, parts: int = 1, filling: int = 0
) -> tuple[jax.Array, ...]:
  """A 1x1 convolution and the depthwise one after it, zero-padded.

  Without a bias, zeros stay zeros: laid around the narrow input, the border costs no copy of what
  is between the two convolutions. Wide parts are made one by one: those of the released model, of
  90 and 239 channels, are faster so on CPU than cut out of one array.

  Args:
    x: [b h w c].
    pointwise: to d features.
    depthwise: of these.
    parts: into how many arrays the features are divided.
    filling: channels of zeros to add to each; of wide parts only.

  Returns:
    `parts` arrays [b h w d/parts+filling].
  """
  made = parts if pointwise.features >= WIDE * parts else 1
  if pointwise.use_bias:
    y = depthwise([zero_border(y) for y in pointwise(x, made, filling)], filling)
  else:
    y = depthwise(pointwise(zero_border(x), made, filling), filling)
  return y if made == parts else tuple(jnp.split(y[0], parts, axis=-1))


class DenseBlock(nn.Module):
  """Residual dense block (RDB), [... h w c] -> [... h w c].

  Layer i convolves the input and the outputs of the layers before it. The
  convolutions are linear in their inputs, so that the input is convolved once
  for all layers: the same sums in a wider, faster product.
  """

  growth: int
  layers: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c, g, n = x.shape[-1], self.growth, self.layers
    x = x.astype(self.dtype)
    widths = [c + g * i for i in range(n)]
    kernels = [
      self.param(f"layer_{i}_kernel", uniform_by_fan_in, (3, 3, width, g))
      for i, width in enumerate(widths)
    ]
    of_input = convolve(x, jnp.concatenate([k[:, :, :c] for k in kernels], axis=-1))
    if self.use_bias:
      bias = [
        self.param(f"layer_{i}_bias", bias_by_fan_in(9 * w), (g,)) for i, w in enumerate(widths)
      ]
      of_input += like_channels(jnp.concatenate(bias), of_input)
    outputs = []
    for i, kernel in enumerate(kernels):
      terms = [of_input, convolve(join_channels(outputs), kernel[:, :, c:])] if i else [of_input]
      outputs.append(computed_once(functools.partial(self._output, i), *terms))
    fuse = self.param("fuse_kernel", uniform_by_fan_in, (1, 1, c + g * n, c))
    # The one convolution with a bias in every released configuration.
    fuse_bias = self.param("fuse_bias", bias_by_fan_in(c + g * n), (c,))
    joined = join_channels([x, *outputs])

    def fused(x, joined, fuse, bias):
      return x + convolve(joined, fuse) + bias

    return computed_once(fused, x, joined, fuse, like_channels(fuse_bias, x))

  def _output(self, i: int, of_input: jax.Array, *of_outputs: jax.Array) -> jax.Array:
    y = of_input[..., i * self.growth : (i + 1) * self.growth]
    return leaky_relu(sum(of_outputs, y))


def _add_product(y: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
  return y + convolve(x, kernel)


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
  """The block or, with `remat`, one whose activations the backward pass computes again."""
  return nn.remat(block) if remat else block


class FuseArrays(nn.Module):
  """A 1x1 convolution over the channels of several arrays [... h w c_i] -> [... h w features].

  Kernel rows are ordered (array, channel). A sum of products, added up one by one: the arrays are
  never joined, and each is let go once its product is there.
  """

  features: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, arrays: Sequence[jax.Array]) -> jax.Array:
    ends = list(itertools.accumulate(x.shape[-1] for x in arrays))
    kernel = self.param("kernel", uniform_by_fan_in, (1, 1, ends[-1], self.features))
    rows = jnp.split(kernel, ends[:-1], axis=2)
    y = convolve(arrays[0].astype(self.dtype), rows[0])
    for x, kernel in zip(arrays[1:], rows[1:], strict=True):
      y = computed_once(_add_product, y, x.astype(self.dtype), kernel)
    if self.use_bias:
      bias = self.param("bias", bias_by_fan_in(ends[-1]), (self.features,))
      y += like_channels(bias, y)
    return y


class ResidualInResidualDenseBlock(nn.Module):
  """The RRDB encoder body: a chain of RDBs, all their outputs fused, plus the input."""

  blocks: int
  growth: int
  layers: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    block = rematerialised(DenseBlock, self.remat)
    y, outputs = x, []
    for i in range(self.blocks):
      y = block(self.growth, self.layers, self.use_bias, self.dtype, name=f"rdb_{i}")(y)
      outputs.append(y)
    common = (self.use_bias, self.dtype)
    if x.ndim == 4:  # frames of a stream: each output is let go once it is fused
      y = FuseArrays(c, *common, name="fuse1")(outputs)
    # Windows that are trained on: the gradients hold all outputs anyway, and of a sum of products
    # their norm at T = 5 was 1.4e-3 from the released one, more than parity allows.
    else:
      y = Conv(c, 1, *common, name="fuse1")(jnp.concatenate(outputs, axis=-1))
    return x + Conv(c, 3, self.use_bias, self.dtype, name="fuse2")(y)


class LayerNorm(nn.Module):
  """Restormer's layer norm over channels, epsilon 1e-5, biased variance.

  Without a bias the mean is not subtracted (though the variance is about it).
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
    y *= like_channels(self.param("scale", nn.initializers.ones, (c,)), y)
    if self.with_bias:
      y += like_channels(self.param("bias", nn.initializers.zeros, (c,)), y)
    return y.astype(dtype)


class ChannelAttention(nn.Module):
  """Transposed attention between channels (MDTA of Restormer, Sec. 3.1), x and query [b h w c].

  Keys and values come from x, queries from `query`: the centre frame's
  features in centre-oriented attention, kernel features in degradation-aware
  attention (FMA-Net, Eq. 5 and 6).
  """

  heads: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, query: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    common = (self.use_bias, self.dtype)
    (q,) = pointwise_depthwise(
      query, Conv(c, 1, *common, name="query"), DepthwiseConv(*common, name="query_depthwise")
    )
    k, v = pointwise_depthwise(
      x,
      Conv(2 * c, 1, *common, name="key_value"),
      DepthwiseConv(*common, name="key_value_depthwise"),
      parts=2,
    )
    q, k, v = (a.reshape(b, h * w, c) for a in (q, k, v))

    # One product of all channel pairs, of which the heads' blocks are kept,
    # is cheaper than splitting the long axis by head. Two halves keep two cores busy.
    halves = (b, 2 - h * w % 2, -1, c)
    gram = jnp.einsum(
      "bspc,bspd->bscd", q.reshape(halves), k.reshape(halves), preferred_element_type=jnp.float32
    ).sum(1)
    size = c // self.heads
    gram = jnp.einsum("bncnd->bncd", gram.reshape(b, self.heads, size, self.heads, size))
    squares = [jnp.square(a.astype(jnp.float32)).sum(1) for a in (q, k)]
    # At least 1e-12, as PyTorch's `normalize` has it; the root of 0 has no gradient.
    norms = [jnp.sqrt(jnp.maximum(s, 1e-24)) for s in squares]
    qn, kn = (a.reshape(b, self.heads, size) for a in norms)
    temperature = self.param("temperature", nn.initializers.ones, (self.heads,))
    logits = gram / (qn[..., :, None] * kn[..., None, :]) * temperature.reshape(1, -1, 1, 1)
    attention = jax.nn.softmax(logits, axis=-1)

    # Attention and output projection are one c x c matrix an image.
    project = self.param("project_kernel", uniform_by_fan_in, (1, 1, c, c))
    project = project.reshape(self.heads, size, c)
    mix = jnp.einsum("bncd,nco->bndo", attention, project).reshape(b, c, c).astype(self.dtype)
    y = jnp.einsum("bpd,bdo->bpo", v, mix).reshape(b, h, w, c)
    if self.use_bias:
      y += like_channels(self.param("project_bias", bias_by_fan_in(c), (c,)), y)
    return y


class GatedFeedForward(nn.Module):
  """Gated-dconv feed-forward network (GDFN of Restormer, Sec. 3.2), [b h w c] -> [b h w c]."""

  hidden: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    common = (self.use_bias, self.dtype)
    # Whole vector registers: on CPU 239 channels take half as long again as 240.
    filling = -self.hidden % 16 if self.hidden >= WIDE else 0
    expand = Conv(2 * self.hidden, 1, *common, name="expand")
    of_expanded = DepthwiseConv(*common, name="depthwise")
    gate, y = pointwise_depthwise(x, expand, of_expanded, 2, filling)
    y *= gelu(gate)
    return Conv(x.shape[-1], 1, *common, input_filling=filling, name="project")(y)


class PixelShuffleUpsampler(nn.Module):
  """Features to scale times their size by pixel shuffles, with a last 3x3 convolution.

  Scale 4 shuffles twice by 2, as released; 2 and 3 shuffle once, 1 never.
  """

  dim: int
  scale: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.factors = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[self.scale]
    common = (self.use_bias, self.dtype)
    self.expand = [Conv(self.dim * factor**2, 3, *common) for factor in self.factors]
    self.smooth = Conv(self.dim, 3, *common)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.end(self.start(x))

  def start(self, x: jax.Array) -> jax.Array:
    """All shuffles but the last."""
    for i in range(len(self.factors) - 1):
      x = self._shuffle(i, x)
    return x

  def end(self, x: jax.Array) -> jax.Array:
    """The last shuffle and what follows; an output row depends on rows at most two away."""
    if self.factors:
      x = self._shuffle(len(self.factors) - 1, x)
    return leaky_relu(self.smooth(x))

  def _shuffle(self, i: int, x: jax.Array) -> jax.Array:
    return pixel_shuffle(leaky_relu(self.expand[i](x)), self.factors[i])
