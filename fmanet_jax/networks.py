"""Net^D and Net^R, the two networks of FMA-Net (Sec. 3.2, Fig. 2), as Linen modules.

Each has a part by frame (`encode`: the features F^0..F^M that depend on one
frame only) and a part by window; model.py joins them to the whole system.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmanet_jax.blocks import (
  PixelShuffleUpsampler,
  ResidualInResidualDenseBlock,
  TwoConvs,
  leaky_relu,
)
from fmanet_jax.frma import FRMA, Frames, Query
from vsr_jax.devices import computed_once
from vsr_jax.layers import Conv, bias_by_fan_in, convolve, like_channels, uniform_by_fan_in


class Encoder(nn.Module):
  """3x3 convolution, LeakyReLU and an RRDB: frames to F^0, [... h w k] -> [... h w dim]."""

  dim: int
  rdb_blocks: int
  growth: int
  dense_layers: int
  use_bias: bool
  dtype: jnp.dtype
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    common = (self.use_bias, self.dtype)
    x = leaky_relu(Conv(self.dim, 3, *common, name="stem")(x))
    sizes = (self.rdb_blocks, self.growth, self.dense_layers)
    return ResidualInResidualDenseBlock(*sizes, *common, self.remat, name="rrdb")(x)


class TemporalConv(nn.Module):
  """A 3x3x3 convolution over [b t h w c], zero-padded, as a 2-D convolution a frame.

  Faster than XLA's 3-D convolution on CPU, and the taps that would read frames
  before the first or after the last one are left out.
  """

  features: int
  use_bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype)
    c = x.shape[-1]
    shape = (3, 3, 3, c, self.features)
    y = temporal_convolve(x, self.param("kernel", uniform_by_fan_in, shape))
    if self.use_bias:
      y += like_channels(self.param("bias", bias_by_fan_in(27 * c), (self.features,)), y)
    return y


def temporal_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Zero-padded convolution of [b t h w c] with a kernel [3 k k c d] -> [b t h w d]."""
  t = x.shape[1]
  if t == 3 and x.dtype == jnp.float32:  # sums of frames and taps would round bfloat16 once more
    return _convolve_three_frames(x, kernel)
  frames = []
  for i in range(t):
    first, end = max(i - 1, 0), min(i + 2, t)
    joined = jnp.concatenate([x[:, j] for j in range(first, end)], axis=-1)
    taps = jnp.concatenate(kernel[first - i + 1 : end - i + 1], axis=2)
    frames.append(convolve(joined, taps))
  return jnp.stack(frames, axis=1)


def _convolve_three_frames(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`temporal_convolve` of three frames by four 2-D convolutions instead of seven.

  With s, d = x2 +- x0 and P, M = K0 +- K2, and of four products

    A, A' = (3/2 K1 +- P)(3/2 x1 +- s),    B, B' = (1/2 K1 +- M)(1/2 x1 +- d)

  the outputs are y1 = (A + A' - B - B') / 4 and y2, y0 = (A - A') / 6 +- (B - B') / 2.
  (Taps, frames and outputs enter alike, so that this is a sum of four cubes: that of the form
  v^3 + 6uvw.) Its rounding is as large as the plain sum's.
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

  return computed_once(outputs, a, a2, b, b2)  # else held as four, added up by every reader


def kernel_passage(x: jax.Array, last: jax.Array, first: jax.Array) -> jax.Array:
  """The last convolution of K^D's head and the first of Net^R's entry, as one.

  Nothing non-linear lies between the two, so that restoring needs the channels of
  K^D, 400 in the released model, only inside a product of kernels: there about a
  third of the work, and none of the memory. Between them the image is continued by zeros, which
  the outermost pixels feel: these are computed in two steps.

  Args:
    x: [b t h w c], the input of the last convolution.
    last: its kernel [3 3 c k], without bias.
    first: the 3x3x3 kernel [3 3 3 k d] after it, without bias.

  Returns:
    [b t h w d].
  """

  def two_steps(x):
    return temporal_convolve(convolve(x, last), first)

  h, w = x.shape[2:4]
  if min(h, w) < 4:
    return two_steps(x)
  # The kernel of both, [3 5 5 c d]: `last` as images [c 3 3 k], filtered by `first`.
  images = jnp.pad(last.transpose(2, 0, 1, 3), ((0, 0), (1, 1), (1, 1), (0, 0)))
  both = jnp.stack([convolve(images, step[::-1, ::-1]) for step in first])
  y = temporal_convolve(x, both.transpose(0, 2, 3, 1, 4))
  y = jnp.concatenate(
    [two_steps(x[:, :, :3])[:, :, :1], y[:, :, 1:-1], two_steps(x[:, :, -3:])[:, :, -1:]], axis=2
  )
  left, right = two_steps(x[:, :, :, :3])[:, :, :, :1], two_steps(x[:, :, :, -3:])[:, :, :, -1:]
  return jnp.concatenate([left, y[:, :, :, 1:-1], right], axis=3)


def split_time(aligned: jax.Array, frames: int) -> jax.Array:
  """[b h w (c t)] -> [b t h w c]: the aligned feature's channels, shared out to the frames."""
  b, h, w, _ = aligned.shape
  return jnp.moveaxis(aligned.reshape(b, h, w, -1, frames), -1, 1)


def centre_frame(frames: Frames) -> jax.Array:
  """[b h w c] of the centre of T frames."""
  if isinstance(frames, tuple):
    return frames[len(frames) // 2]
  return frames[:, frames.shape[1] // 2]


class NetD(nn.Module):
  """The degradation learning network: flow-mask pairs, kernels K^D and anchors.

  Attributes as in `fmanet_jax.architecture.Architecture`.
  """

  dim: int
  kernel_down: int
  flows: int
  frma_blocks: int
  rdb_blocks: int
  growth: int
  dense_layers: int
  attention_blocks: int
  heads: int
  hidden: int
  norm_bias: bool
  use_bias: bool
  flow_guided: bool
  query: Query
  dtype: jnp.dtype
  remat: bool = False  # blocks whose activations the backward pass computes again

  def setup(self):
    common = (self.use_bias, self.dtype)
    dense = (self.growth, self.dense_layers)
    self.encoder = Encoder(self.dim, self.rdb_blocks, *dense, *common, self.remat)
    attention = (self.attention_blocks, self.heads, self.hidden, self.norm_bias, *common)
    self.frma = [
      FRMA(self.dim, self.flows, *dense, *attention, self.query, remat=self.remat)
      for _ in range(self.frma_blocks)
    ]
    self.kernel_head = TwoConvs(self.dim, self.kernel_down**2, *common)
    self.anchor_head = TwoConvs(self.dim, 3, *common)
    if self.flow_guided:
      self.flow_head = TwoConvs(3 * self.flows, 3, *common)

  def encode(self, frames: jax.Array) -> tuple[jax.Array, ...]:
    """Frames [... h w 3] in [0, 1] -> F^0..F^M, M + 1 arrays [... h w dim]."""
    features = [self.encoder(frames)]
    for block in self.frma:
      features.append(block.anchor(features[-1]))
    return tuple(features)

  def align(self, features: tuple[Frames, ...]) -> tuple[jax.Array, jax.Array]:
    """Features F^0..F^M of a window -> F_w^M [b h w dim] and f^M [b t h w 3n]."""
    centre = centre_frame(features[0])
    aligned = flow_mask = None
    for block, anchored in zip(self.frma, features[1:], strict=True):
      aligned, flow_mask = block(anchored, centre, aligned, flow_mask)
    return aligned, flow_mask

  def kernels(self, aligned: jax.Array, frames: int) -> jax.Array:
    """F_w^M -> the logits of K^D, [b t h w k_d^2]."""
    return self.kernel_head(split_time(aligned, frames))

  def kernels_before_last(self, aligned: jax.Array, frames: int) -> jax.Array:
    """The input of the last convolution of `kernels`, [b t h w dim]."""
    return self.kernel_head.hidden_layer(split_time(aligned, frames))

  def image_flow(self, flow_mask: jax.Array) -> jax.Array:
    """f^M -> f^Y [b t h w 3], one (dx, dy, mask logit) a frame, in LR pixels."""
    return self.flow_head(flow_mask)

  def anchors(self, features: jax.Array) -> jax.Array:
    """F^M -> the temporal anchors [b t h w 3], trained towards the sharp LR frames."""
    return self.anchor_head(features)


class NetR(nn.Module):
  """The restoration network: flow-mask pairs, kernels K^R, the residual and anchors."""

  dim: int
  scale: int
  kernel_down: int
  kernel_up: int
  flows: int
  frma_blocks: int
  rdb_blocks: int
  growth: int
  dense_layers: int
  attention_blocks: int
  heads: int
  hidden: int
  norm_bias: bool
  use_bias: bool
  flow_guided: bool
  query: Query
  modulation: type[nn.Module]
  dtype: jnp.dtype
  remat: bool = False  # blocks whose activations the backward pass computes again

  def setup(self):
    common = (self.use_bias, self.dtype)
    dense = (self.growth, self.dense_layers)
    self.encoder = Encoder(self.dim, self.rdb_blocks, *dense, *common, self.remat)
    attention = (self.attention_blocks, self.heads, self.hidden, self.norm_bias, *common)
    self.frma = [
      FRMA(self.dim, self.flows, *dense, *attention, self.query, self.modulation, self.remat)
      for _ in range(self.frma_blocks)
    ]
    self.flow_entry = TwoConvs(3 * self.flows, 3 * self.flows, *common)
    self.kernel_entry1 = TemporalConv(self.dim, *common)
    self.kernel_entry2 = TemporalConv(self.dim, *common)
    self.residual_entry = Conv(self.dim, 3, *common)
    self.upsampler = PixelShuffleUpsampler(self.dim, self.scale, *common)
    self.residual_exit = Conv(3, 3, *common)
    self.kernel_head = TwoConvs(self.dim, (self.kernel_up * self.scale) ** 2, *common)
    self.anchor_head = TwoConvs(self.dim, 3, *common)
    if self.flow_guided:
      self.first_flow_head = TwoConvs(3 * self.flows, 3, *common)
      self.flow_head = TwoConvs(3 * self.flows, 3, *common)

  def encode(self, frames: jax.Array, features_d: jax.Array) -> tuple[jax.Array, ...]:
    """Frames [... h w 3] and Net^D's F^M [... h w dim] -> F^0..F^M, [... h w dim] each."""
    x = jnp.concatenate([frames.astype(self.dtype), features_d.astype(self.dtype)], axis=-1)
    features = [self.encoder(x)]
    for block in self.frma:
      features.append(block.anchor(features[-1]))
    return tuple(features)

  def kernel_features(self, kernel_logits: jax.Array) -> jax.Array:
    """Logits of K^D [b t h w k_d^2] -> k^D [b t h w dim]."""
    return self.kernel_features_after_first(self.kernel_entry1(kernel_logits))

  def kernel_features_after_first(self, entered: jax.Array) -> jax.Array:
    """`kernel_features` from the output of its first convolution, [b t h w dim]."""
    return self.kernel_entry2(leaky_relu(entered))

  def align(
    self, features: tuple[Frames, ...], flow_mask: jax.Array, kernel_features: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """F^0..F^M of a window, Net^D's f^M and k^D -> F_w^M [b h w dim] and f^M [b t h w 3n]."""
    centre = centre_frame(features[0])
    aligned, flow_mask = None, self.flow_entry(flow_mask)
    for block, anchored in zip(self.frma, features[1:], strict=True):
      aligned, flow_mask = block(anchored, centre, aligned, flow_mask, kernel_features)
    return aligned, flow_mask

  def first_image_flow(self, flow_mask: jax.Array) -> jax.Array:
    """f^M -> a first f^X [b t h w 3]."""
    return self.first_flow_head(flow_mask)

  def image_flow(self, flow_mask: jax.Array, warped: jax.Array, frames: jax.Array) -> jax.Array:
    """f^M, frames warped by the first f^X, and the frames [b t h w 3] -> f^X [b t h w 3]."""
    t = frames.shape[1]
    centre = jnp.broadcast_to(frames[:, t // 2, None], frames.shape)
    x = [flow_mask.astype(self.dtype), warped.astype(self.dtype), centre.astype(self.dtype)]
    return self.flow_head(jnp.concatenate(x, axis=-1))

  def kernels(self, aligned: jax.Array, frames: int) -> jax.Array:
    """F_w^M -> K^R before normalisation, [b t h w k_r^2 s^2]."""
    y = self.kernel_head(split_time(aligned, frames))
    return y.reshape(*y.shape[:-1], self.kernel_up**2, self.scale**2)

  def residual(self, aligned: jax.Array) -> jax.Array:
    """F_w^M -> the high-frequency residual [b sh sw 3]."""
    return self.residual_end(self.residual_start(aligned))

  def residual_start(self, aligned: jax.Array) -> jax.Array:
    """`residual` up to the last pixel shuffle, [b h' w' dim]; h' is h, or 2h for scale 4."""
    return self.upsampler.start(leaky_relu(self.residual_entry(aligned)))

  def residual_end(self, x: jax.Array) -> jax.Array:
    """The rest of it; rows of [b sh sw 3] depend on rows of x at most two away."""
    return self.residual_exit(self.upsampler.end(x))

  def anchors(self, features: jax.Array) -> jax.Array:
    """F^M -> the temporal anchors [b t h w 3], trained towards the sharp LR frames."""
    return self.anchor_head(features)
