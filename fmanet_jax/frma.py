"""FRMA: iterative feature refinement with multi-attention (FMA-Net, Sec. 3.3, Fig. 3).

A block refines three things: the temporally anchored features F of every frame,
the flow-mask pairs f that warp them to the centre frame, and the aligned
feature F_w. The anchored features of a frame depend on that frame alone:
`refine` is the part by frame, `__call__` the part by window.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmanet_jax.architecture import AttentionSpec, DenseSpec
from fmanet_jax.blocks import (
  ChannelAttention,
  DenseBlock,
  Fuse,
  GatedFeedForward,
  LayerNorm,
  rematerialised,
)
from fmanet_jax.filtering import warp_features
from vsr_jax.layers import Conv, bias_by_fan_in, uniform_by_fan_in
from vsr_jax.ops.activations import leaky_relu
from vsr_jax.ops.channels import like_channels
from vsr_jax.ops.convolution import convolve

Query = Callable[[jax.Array, jax.Array], jax.Array]


def centre_query(normed: jax.Array, centre: jax.Array) -> jax.Array:
  """Centre-oriented attention: the query is the centre frame's feature F^0_c (Eq. 5)."""
  del normed
  return centre


def self_query(normed: jax.Array, centre: jax.Array) -> jax.Array:
  """Self-attention, the ablation of Table 4: the query is the normed feature itself."""
  del centre
  return normed


class FlowUpdate(nn.Module):
  """Predicts flow-mask pairs from the features of the centre and of every frame (Sec. 3.3).

  Two 3x3 convolutions of both, joined. The centre feature is the same for all frames, so that its
  part of the first sum is computed once.
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
      y += like_channels(self.param("conv1_bias", bias_by_fan_in(9 * inputs), (hidden,)), y)
    return Conv(hidden, 3, self.use_bias, self.dtype, name="conv2")(leaky_relu(y))


class DegradationAttention(nn.Module):
  """Degradation-aware attention (Eq. 6): queries from kernel features, then a GDFN.

  Both inputs and the output are [b h w c].
  """

  spec: AttentionSpec
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, kernel_features: jax.Array) -> jax.Array:
    s, common = self.spec, (self.use_bias, self.dtype)
    attention = ChannelAttention(s.heads, *common, name="attention")
    x += attention(LayerNorm(s.norm_bias, name="norm1")(x), kernel_features)
    feed_forward = GatedFeedForward(s.hidden, *common, name="feed_forward")
    return x + feed_forward(LayerNorm(s.norm_bias, name="norm2")(x))


class SpatialFeatureTransform(nn.Module):
  """The ablation of Table 4: kernel features scale and shift x pixel by pixel (SFT).

  Both inputs and the output are [b h w c].
  """

  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, kernel_features: jax.Array) -> jax.Array:
    c = x.shape[-1]
    y = leaky_relu(Conv(c, 1, self.use_bias, self.dtype, name="condition")(kernel_features))
    y = Conv(2 * c, 1, self.use_bias, self.dtype, name="scale_shift")(y)
    return x * (1 + y[..., :c]) + y[..., c:]


class MultiAttention(nn.Module):
  """Centre-oriented attention (Eq. 5) and, in Net^R, modulation by the degradation (Eq. 6).

  The fused frames, the centre frame's feature, the kernel features and the output are [b h w c].

  Attributes:
    spec: sizes.
    query: what the attention's queries are made from.
    make_modulation: makes the module that modulates by kernel features; None in Net^D.
  """

  spec: AttentionSpec
  query: Query
  make_modulation: Callable[[], nn.Module] | None
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    s, common = self.spec, (self.use_bias, self.dtype)
    self.norm1, self.norm2 = LayerNorm(s.norm_bias), LayerNorm(s.norm_bias)
    self.attention = ChannelAttention(s.heads, *common)
    self.feed_forward = GatedFeedForward(s.hidden, *common)
    if self.make_modulation is not None:
      self.modulation = self.make_modulation()

  def __call__(self, x: jax.Array, centre: jax.Array, kernel_features: jax.Array | None):
    x = self.attend(x, centre)
    return x if kernel_features is None else self.modulation(x, kernel_features)

  def attend(self, x: jax.Array, centre: jax.Array) -> jax.Array:
    """Eq. 5: attention with queries from the centre frame's feature, then a GDFN."""
    normed = self.norm1(x)
    x += self.attention(normed, self.query(normed, centre))
    return x + self.feed_forward(self.norm2(x))


class FRMA(nn.Module):
  """One FRMA block. The first block of Net^D has neither F_w nor f yet, that of Net^R no F_w.

  Attributes:
    dim: the channels of all features.
    flows: n, the flow-mask pairs of a frame.
    dense: sizes of the dense blocks.
    attention_blocks: how many attention blocks follow each other.
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
      centre: [b h w c], F^0 of the centre frame.
      aligned: [b h w c], F_w of the block before, or None.
      flow_mask: [b t h w 3n], f of the block before, or None.
      kernel_features: [b t h w c], k^D in Net^R.

    Returns:
      The new F_w [b h w c] and f [b t h w 3n].
    """
    # The pairs are corrected by what they still warp wrongly.
    if flow_mask is None:
      flow_mask = self.flow_update(centre, features)
    else:
      warped = warp_features(features, flow_mask)
      flow_mask += self.flow_update(centre, jnp.concatenate([flow_mask, warped], axis=-1))
    # The features of all frames, warped to the centre (Eq. 3), and F_w are fused.
    frames = split_frames(warp_features(features, flow_mask))
    aligned = self.fuse(frames if aligned is None else [aligned, *frames])
    if kernel_features is not None:
      kernel_features = self.kernel_fuse(split_frames(self.kernel_dense(kernel_features)))
    for block in self.attention:
      aligned = block(aligned, centre, kernel_features)
    return aligned, flow_mask


def split_frames(x: jax.Array) -> list[jax.Array]:
  """[b t h w c] -> t arrays [b h w c]."""
  return [x[:, i] for i in range(x.shape[1])]
