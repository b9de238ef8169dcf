"""FRMA: iterative feature refinement with multi-attention (FMA-Net, Sec. 3.2, Fig. 4).

Block i + 1 refines three tensors. `FRMA.refine`, per frame: the temporally anchored features,
F^{i+1} = RDB(F^i). `FRMA.__call__`, per window: the flow-mask pairs f^{i+1} that warp them to the
centre frame (Eq. 1), and the warped feature F_w^{i+1}, here called `aligned` (Eq. 2, then
multi-attention).
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmanet_jax.architecture import AttentionSpec, DenseSpec
from fmanet_jax.blocks import (
  GDFN,
  ChannelAttention,
  DenseBlock,
  Fuse,
  RestormerLayerNorm,
  rematerialised,
)
from fmanet_jax.filtering import warp_features
from vsr_jax.layers import Conv, bias_by_fan_in, uniform_by_fan_in
from vsr_jax.ops.activations import leaky_relu
from vsr_jax.ops.channels import broadcast_channels
from vsr_jax.ops.convolution import convolve

Query = Callable[[jax.Array, jax.Array], jax.Array]


def centre_query(normed: jax.Array, centre: jax.Array) -> jax.Array:
  """Centre-oriented (CO) attention: the query is the centre frame's feature F^0_c (Sec. 3.2)."""
  del normed
  return centre


def self_query(normed: jax.Array, centre: jax.Array) -> jax.Array:
  """Self-attention, the ablation of Table 4: the query is the normed feature itself."""
  del centre
  return normed


class FlowUpdate(nn.Module):
  """The Conv3d of Eq. 1: two 3x3 convolutions per frame of Concat(F^0_c, f^i, W(F^{i+1}, f^i)).

  F^0_c is the same for all frames, so that its share of the first convolution is computed once.
  """

  flows: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, centre: jax.Array, by_frame: jax.Array) -> jax.Array:
    """centre [b h w c], by_frame [b t h w k] -> [b t h w 3n]."""
    c, hidden = centre.shape[-1], 3 * self.flows
    inputs = c + by_frame.shape[-1]
    kernel = self.param("conv1_kernel", uniform_by_fan_in, (3, 3, inputs, hidden))
    y = convolve(by_frame.astype(self.dtype), kernel[:, :, c:])
    y += convolve(centre.astype(self.dtype), kernel[:, :, :c])[:, None]
    if self.use_bias:
      y += broadcast_channels(self.param("conv1_bias", bias_by_fan_in(9 * inputs), (hidden,)), y)
    return Conv(hidden, 3, self.use_bias, self.dtype, name="conv2")(leaky_relu(y))


class DegradationAttention(nn.Module):
  """Degradation-aware (DA) attention (Fig. 4b): queries from kernel features k^{D,i}, then a GDFN.

  Both inputs and the output are [b h w c].
  """

  attention_spec: AttentionSpec
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, block_kernel_features: jax.Array) -> jax.Array:
    s, common = self.attention_spec, (self.use_bias, self.dtype)
    attention = ChannelAttention(s.heads, *common, name="attention")
    x += attention(RestormerLayerNorm(s.norm_bias, name="norm1")(x), block_kernel_features)
    feed_forward = GDFN(s.hidden, *common, name="feed_forward")
    return x + feed_forward(RestormerLayerNorm(s.norm_bias, name="norm2")(x))


class SpatialFeatureTransform(nn.Module):
  """The ablation of Table 4: kernel features scale and shift x pixel by pixel (SFT).

  Both inputs and the output are [b h w c].
  """

  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, block_kernel_features: jax.Array) -> jax.Array:
    c = x.shape[-1]
    y = leaky_relu(Conv(c, 1, self.use_bias, self.dtype, name="condition")(block_kernel_features))
    y = Conv(2 * c, 1, self.use_bias, self.dtype, name="scale_shift")(y)
    return x * (1 + y[..., :c]) + y[..., c:]


class MultiAttention(nn.Module):
  """Multi-attention (Fig. 4b): CO attention and, in Net^R, DA attention or its ablation SFT.

  The fused frames, the centre frame's feature, the kernel features and the output are [b h w c].

  Attributes:
    attention_spec: sizes of the attention and of its feed-forward network.
    query: what the attention's queries are made from.
    make_modulation: makes the module that modulates by kernel features; None in Net^D.
  """

  attention_spec: AttentionSpec
  query: Query
  make_modulation: Callable[[], nn.Module] | None
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    s, common = self.attention_spec, (self.use_bias, self.dtype)
    self.norm1, self.norm2 = RestormerLayerNorm(s.norm_bias), RestormerLayerNorm(s.norm_bias)
    self.attention = ChannelAttention(s.heads, *common)
    self.feed_forward = GDFN(s.hidden, *common)
    if self.make_modulation is not None:
      self.modulation = self.make_modulation()

  def __call__(self, x: jax.Array, centre: jax.Array, block_kernel_features: jax.Array | None):
    x = self.attend_and_feed_forward(x, centre)
    return x if block_kernel_features is None else self.modulation(x, block_kernel_features)

  def attend_and_feed_forward(self, x: jax.Array, centre: jax.Array) -> jax.Array:
    """CO attention (or self-attention, by `query`), then a GDFN; each with a residual."""
    normed = self.norm1(x)
    x += self.attention(normed, self.query(normed, centre))
    return x + self.feed_forward(self.norm2(x))


class FRMA(nn.Module):
  """One FRMA block (Fig. 4a). F_w^0, and f^0 of Net^D, are None where the paper has constants.

  Attributes:
    dim: the channels of all features.
    flows: n, the flow-mask pairs of a frame.
    dense_spec: sizes of the dense blocks.
    attention_blocks: number of multi-attention blocks, applied one after the other.
    attention_spec: their sizes.
    query: see `MultiAttention`.
    make_modulation: see `MultiAttention`.
    remat: whether the backward pass computes the activations of blocks again.
  """

  dim: int
  flows: int
  dense_spec: DenseSpec
  attention_blocks: int
  attention_spec: AttentionSpec
  query: Query
  make_modulation: Callable[[], nn.Module] | None = None
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def setup(self):
    common = (self.use_bias, self.dtype)
    dense_block = rematerialised(DenseBlock, self.remat)
    multi_attention = rematerialised(MultiAttention, self.remat)
    self.dense = dense_block(self.dense_spec, *common)
    self.flow_update = FlowUpdate(self.flows, *common)
    self.fuse = Fuse(self.dim, *common)
    if self.make_modulation is not None:
      self.kernel_dense = dense_block(self.dense_spec, *common)
      self.kernel_fuse = Fuse(self.dim, *common)
    self.attention = [
      multi_attention(self.attention_spec, self.query, self.make_modulation, *common)
      for _ in range(self.attention_blocks)
    ]

  def refine(self, features: jax.Array) -> jax.Array:
    """F^i -> F^{i+1}, each frame by itself, [... h w c]."""
    return self.dense(features)

  def __call__(
    self,
    features: jax.Array,
    centre: jax.Array,
    aligned: jax.Array | None,
    flow_mask: jax.Array | None,
    kernel_features: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Refines the aligned feature and the flow-mask pairs of a window.

    Args:
      features: this block's anchored features F^{i+1}, [b t h w c].
      centre: F^0_c [b h w c].
      aligned: F_w^i [b h w c], or None.
      flow_mask: f^i [b t h w 3n], or None.
      kernel_features: k^D [b t h w c] in Net^R, the same for all blocks; None in Net^D.

    Returns:
      F_w^{i+1} [b h w c] and f^{i+1} [b t h w 3n].
    """
    # Eq. 1: f^{i+1} = f^i + Conv3d(Concat(f^i, W(F^{i+1}, f^i), F^0_c))
    if flow_mask is None:
      flow_mask = self.flow_update(centre, features)
    else:
      warped = warp_features(features, flow_mask)
      flow_mask += self.flow_update(centre, jnp.concatenate([flow_mask, warped], axis=-1))
    # Eq. 2: Conv2d(Concat(F_w^i, W(F^{i+1}, f^{i+1}) of all frames)), before multi-attention
    by_frame = split_frames(warp_features(features, flow_mask))
    aligned = self.fuse(by_frame if aligned is None else [aligned, *by_frame])
    block_kernel_features = None
    if kernel_features is not None:  # this block's k^{D,i} [b h w c] from the common k^D
      block_kernel_features = self.kernel_fuse(split_frames(self.kernel_dense(kernel_features)))
    for block in self.attention:
      aligned = block(aligned, centre, block_kernel_features)
    return aligned, flow_mask


def split_frames(x: jax.Array) -> list[jax.Array]:
  """[b t h w c] -> t arrays [b h w c]."""
  return [x[:, i] for i in range(x.shape[1])]
