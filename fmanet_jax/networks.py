"""Net^D and Net^R, the two networks of FMA-Net (Sec. 3.4, Fig. 3), as Linen modules.

`encode` runs per frame: each of F^0..F^M depends on one frame only. The other methods run per
window; model.py composes them into the whole system.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmanet_jax.architecture import Architecture, DenseSpec
from fmanet_jax.blocks import PixelShuffleUpsampler, ResidualInResidualDenseBlock, TwoConvs
from fmanet_jax.frma import (
  FRMA,
  DegradationAttention,
  SpatialFeatureTransform,
  centre_query,
  self_query,
)
from vsr_jax.layers import Conv, bias_by_fan_in, uniform_by_fan_in
from vsr_jax.ops.activations import leaky_relu
from vsr_jax.ops.channels import broadcast_channels
from vsr_jax.ops.temporal import convolve_frames

QUERIES = {"centre": centre_query, "self": self_query}
PerBlock = tuple[jax.Array, ...]  # one array per FRMA block; for features F^0 before them


class Encoder(nn.Module):
  """3x3 convolution, LeakyReLU and an RRDB: frames to F^0, [... h w k] -> [... h w dim]."""

  dim: int
  rdb_blocks: int
  dense_spec: DenseSpec
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    common = (self.use_bias, self.dtype)
    x = leaky_relu(Conv(self.dim, 3, *common, name="stem")(x))
    rrdb = ResidualInResidualDenseBlock(
      self.rdb_blocks, self.dense_spec, *common, self.remat, name="rrdb"
    )
    return rrdb(x)


class TemporalConv(nn.Module):
  """A 3x3x3 convolution, zero-padded, [b t h w c] -> [b t h w features]."""

  features: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    kernel = self.param("kernel", uniform_by_fan_in, (3, 3, 3, c, self.features))
    y = convolve_frames(x.astype(self.dtype), kernel)
    if self.use_bias:
      y += broadcast_channels(self.param("bias", bias_by_fan_in(27 * c), (self.features,)), y)
    return y


def split_time(aligned: jax.Array, frames: int) -> jax.Array:
  """Fig. 3's Reshape 3->4 of F_w, [b h w (c t)] -> [b t h w c]: channels divided among frames."""
  b, h, w, _ = aligned.shape
  return jnp.moveaxis(aligned.reshape(b, h, w, -1, frames), -1, 1)


def centre_frame(frames: jax.Array) -> jax.Array:
  """The centre frame of a window, [b t h w c] -> [b h w c]."""
  return frames[:, frames.shape[1] // 2]


def encoder_and_blocks(
  arch: Architecture, dtype: jnp.dtype, remat: bool, modulated: bool
) -> tuple[Encoder, list[FRMA]]:
  """The encoder and the M FRMA blocks; `modulated` blocks (Net^R) attend to k^D (or use SFT)."""
  attention_spec = arch.attention_spec
  common: dict[str, Any] = {"use_bias": arch.use_bias, "dtype": dtype}
  modulations = {
    "degradation_attention": functools.partial(DegradationAttention, attention_spec, **common),
    "sft": functools.partial(SpatialFeatureTransform, **common),
  }
  encoder = Encoder(arch.dim, arch.rdb_blocks, arch.dense_spec, **common, remat=remat)
  make_block = functools.partial(
    FRMA,
    dim=arch.dim,
    flows=arch.flows,
    dense_spec=arch.dense_spec,
    attention_blocks=arch.attention_blocks,
    attention_spec=attention_spec,
    query=QUERIES[arch.attention],
    make_modulation=modulations[arch.modulation] if modulated else None,
    **common,
    remat=remat,
  )
  return encoder, [make_block() for _ in range(arch.frma_blocks)]


class NetD(nn.Module):
  """The degradation learning network: flow-mask pairs, kernels K^D and anchors.

  Attributes:
    arch: sizes and choices of the model.
    dtype: type in which convolutions and matrix products are computed.
    remat: recompute the activations of blocks in the backward pass.
  """

  arch: Architecture
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def setup(self):
    a, common = self.arch, (self.arch.use_bias, self.dtype)
    self.encoder, self.frma = encoder_and_blocks(a, self.dtype, self.remat, modulated=False)
    self.kernel_head = TwoConvs(a.dim, a.kernel_down**2, *common)
    self.anchor_head = TwoConvs(a.dim, 3, *common)
    if a.filtering == "flow_guided":
      self.flow_head = TwoConvs(3 * a.flows, 3, *common)

  def encode(self, frames: jax.Array) -> PerBlock:
    """Frames [... h w 3] in [0, 1] -> F^0..F^M, M + 1 arrays [... h w dim]."""
    features = [self.encoder(frames)]
    for block in self.frma:
      features.append(block.refine(features[-1]))
    return tuple(features)

  def align(self, features: PerBlock) -> tuple[PerBlock, PerBlock]:
    """F^0..F^M of a window -> F_w^1..F_w^M [b h w dim] and f^1..f^M [b t h w 3n]."""
    centre = centre_frame(features[0])
    aligned, flow_mask, refined = None, None, []
    for block, anchored in zip(self.frma, features[1:], strict=True):
      aligned, flow_mask = block(anchored, centre, aligned, flow_mask)
      refined.append((aligned, flow_mask))
    all_aligned, flow_masks = zip(*refined, strict=True)
    return all_aligned, flow_masks

  def kernel_logits(self, aligned: jax.Array) -> jax.Array:
    """F_w^M -> K^D before its softmax, [b t h w k_d^2]."""
    return self.kernel_head(split_time(aligned, self.arch.frames))

  def image_flow(self, flow_mask: jax.Array) -> jax.Array:
    """f^M -> f^Y [b t h w 3], one (dx, dy, mask logit) a frame, in LR pixels."""
    return self.flow_head(flow_mask)

  def anchors(self, features: jax.Array) -> jax.Array:
    """F^M -> X_Sharp^D [b t h w 3], which the TA loss compares with the sharp LR frames (Eq. 8)."""
    return self.anchor_head(features)


class NetR(nn.Module):
  """The restoration network: flow-mask pairs, kernels K^R, the residual and anchors.

  Its attributes are those of `NetD`.
  """

  arch: Architecture
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def setup(self):
    a, common = self.arch, (self.arch.use_bias, self.dtype)
    self.encoder, self.frma = encoder_and_blocks(a, self.dtype, self.remat, modulated=True)
    self.flow_entry = TwoConvs(3 * a.flows, 3 * a.flows, *common)  # as released; paper: identity
    self.kernel_entry1 = TemporalConv(a.dim, *common)
    self.kernel_entry2 = TemporalConv(a.dim, *common)
    self.residual_entry = Conv(a.dim, 3, *common)
    self.upsampler = PixelShuffleUpsampler(a.dim, a.scale, *common)
    self.residual_exit = Conv(3, 3, *common)
    self.kernel_head = TwoConvs(a.dim, (a.kernel_up * a.scale) ** 2, *common)
    self.anchor_head = TwoConvs(a.dim, 3, *common)
    if a.filtering == "flow_guided":
      self.first_flow_head = TwoConvs(3 * a.flows, 3, *common)
      self.flow_head = TwoConvs(3 * a.flows, 3, *common)

  def encode(self, frames: jax.Array, features_d: jax.Array) -> PerBlock:
    """Frames [... h w 3] and Net^D's F^M [... h w dim] -> F^0..F^M, [... h w dim] each."""
    x = jnp.concatenate([frames.astype(self.dtype), features_d.astype(self.dtype)], axis=-1)
    features = [self.encoder(x)]
    for block in self.frma:
      features.append(block.refine(features[-1]))
    return tuple(features)

  def kernel_features(self, kernel_logits: jax.Array) -> jax.Array:
    """K^D before its softmax [b t h w k_d^2] -> k^D [b t h w dim], common to all blocks."""
    return self.kernel_entry2(leaky_relu(self.kernel_entry1(kernel_logits)))

  def align(
    self, features: PerBlock, flow_mask: jax.Array, kernel_features: jax.Array
  ) -> tuple[PerBlock, PerBlock]:
    """F^0..F^M of a window, Net^D's f^M and k^D -> F_w^1..F_w^M and f^1..f^M; see `NetD.align`."""
    centre = centre_frame(features[0])
    aligned, flow_mask, refined = None, self.flow_entry(flow_mask), []
    for block, anchored in zip(self.frma, features[1:], strict=True):
      aligned, flow_mask = block(anchored, centre, aligned, flow_mask, kernel_features)
      refined.append((aligned, flow_mask))
    all_aligned, flow_masks = zip(*refined, strict=True)
    return all_aligned, flow_masks

  def first_image_flow(self, flow_mask: jax.Array) -> jax.Array:
    """f^M -> a first estimate of f^X [b t h w 3], with which the frames are warped once."""
    return self.first_flow_head(flow_mask)

  def image_flow(self, flow_mask: jax.Array, warped: jax.Array, frames: jax.Array) -> jax.Array:
    """f^M, the frames warped by the first estimate, and the frames -> f^X [b t h w 3]."""
    centre = jnp.broadcast_to(centre_frame(frames)[:, None], frames.shape)
    x = [x.astype(self.dtype) for x in (flow_mask, warped, centre)]
    return self.flow_head(jnp.concatenate(x, axis=-1))

  def unnormalised_kernels(self, aligned: jax.Array) -> jax.Array:
    """F_w^M -> K^R before normalisation, [b t h w k_r^2 s^2], six axes."""
    y = self.kernel_head(split_time(aligned, self.arch.frames))
    return y.reshape(*y.shape[:-1], self.arch.kernel_up**2, self.arch.scale**2)

  def residual(self, aligned: jax.Array) -> jax.Array:
    """F_w^M -> Y_r [b sh sw 3], the High Freq. Recon. Block of Fig. 3."""
    return self.residual_exit(self.upsampler(leaky_relu(self.residual_entry(aligned))))

  def anchors(self, features: jax.Array) -> jax.Array:
    """F^M -> X_Sharp^R [b t h w 3], which the TA loss compares with the sharp LR frames (Eq. 9)."""
    return self.anchor_head(features)
