"""FRMA: iterative feature refinement with multi-attention (FMA-Net, Sec. 3.3, Fig. 3).

A block refines three things: the temporally anchored features F of every frame,
the flow-mask pairs f that warp them to the centre frame, and the aligned
feature F_w. The anchored features of a frame depend on that frame alone, so
that a stream computes them once: `anchor` is the part by frame, `__call__` the
part by window.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fmanet_jax.blocks import (
  ChannelAttention,
  DenseBlock,
  FuseArrays,
  GatedFeedForward,
  LayerNorm,
  leaky_relu,
  rematerialised,
)
from vsr_jax.devices import after
from vsr_jax.layers import (
  Conv,
  bias_by_fan_in,
  convolve,
  join_channels,
  like_channels,
  uniform_by_fan_in,
)
from vsr_jax.warp import backward_warp

Frames = jax.Array | tuple[jax.Array, ...]  # [b t h w c], or t arrays [b h w c]
Query = Callable[[jax.Array, jax.Array], jax.Array]


def centre_query(normed: jax.Array, centre: jax.Array) -> jax.Array:
  """Centre-oriented attention: the query is the centre frame's feature F^0_c (Eq. 5)."""
  del normed
  return centre


def self_query(normed: jax.Array, centre: jax.Array) -> jax.Array:
  """Self-attention, the ablation of Table 4: the query is the normed feature itself."""
  del centre
  return normed


def warp_features(features: jax.Array, flow_mask: jax.Array) -> jax.Array:
  """Occlusion-aware multi-flow warping (Eq. 3).

  Args:
    features: [... h w c].
    flow_mask: [... h w 3n], n groups of (dx, dy, mask logit), each for c/n channels.

  Returns:
    [... h w c] in the features' dtype; the warp runs in float32.
  """
  *_, h, w, c = features.shape
  pairs = flow_mask.astype(jnp.float32).reshape(-1, h, w, flow_mask.shape[-1] // 3, 3)
  warped = backward_warp(
    features.astype(jnp.float32).reshape(-1, h, w, c),
    pairs[..., :2],
    jax.nn.sigmoid(pairs[..., 2]),
  )
  return warped.reshape(features.shape).astype(features.dtype)


def map_frames(function: Callable[..., jax.Array], *inputs: Frames) -> Frames:
  """Applies a function of arrays [... h w c] to all frames, or one by one if a tuple is among them.

  Only a stream has tuples. On CPU warps of single frames are faster, and nothing is stacked.
  """
  if not any(isinstance(x, tuple) for x in inputs):
    return function(*inputs)
  return tuple(function(*frame) for frame in zip(*map(split_frames, inputs), strict=True))


def _in_turn(
  function: Callable[[jax.Array], jax.Array], frames: tuple[jax.Array, ...], begin: jax.Array
) -> tuple[jax.Array, ...]:
  """A function of every frame [b h w c], each after the one before it, the first after `begin`."""
  results = [begin]
  for frame in frames:
    results.append(function(after(frame, results[-1])))
  return tuple(results[1:])


def split_frames(frames: Frames) -> tuple[jax.Array, ...]:
  """[b t h w c] or t of [b h w c] -> t of [b h w c]."""
  if isinstance(frames, tuple):
    return frames
  return tuple(frames[:, i] for i in range(frames.shape[1]))


def stack_frames(frames: Frames) -> jax.Array:
  """[b t h w c] or t of [b h w c] -> [b t h w c]."""
  return jnp.stack(frames, axis=1) if isinstance(frames, tuple) else frames


class FlowUpdate(nn.Module):
  """Predicts flow-mask pairs from centre features, earlier pairs and warped features.

  The centre feature is the same for all frames: it is convolved once.
  """

  flows: int
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, centre: jax.Array, by_frame: Frames) -> jax.Array:
    """centre [b h w c], by_frame [b t h w k] or t of [b h w k] -> [b t h w 3n]."""
    c, hidden = centre.shape[-1], 3 * self.flows
    shape = (3, 3, c + jax.tree.leaves(by_frame)[0].shape[-1], hidden)
    kernel = self.param("conv1_kernel", uniform_by_fan_in, shape)
    y = stack_frames(
      map_frames(lambda x: convolve(x.astype(self.dtype), kernel[:, :, c:]), by_frame)
    )
    y += convolve(centre.astype(self.dtype), kernel[:, :, :c])[:, None]
    if self.use_bias:
      bias = self.param("conv1_bias", bias_by_fan_in(9 * shape[2]), (hidden,))
      y += like_channels(bias, y)
    return Conv(hidden, 3, self.use_bias, self.dtype, name="conv2")(leaky_relu(y))


class DegradationAttention(nn.Module):
  """Degradation-aware attention (Eq. 6): queries from kernel features, then a GDFN.

  Both inputs and the output are [b h w c].
  """

  heads: int
  hidden: int
  norm_bias: bool
  use_bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, kernel_features: jax.Array) -> jax.Array:
    common = (self.use_bias, self.dtype)
    normed = LayerNorm(self.norm_bias, name="norm1")(x)
    attention = ChannelAttention(self.heads, *common, name="attention")
    x += attention(normed, kernel_features)
    feed_forward = GatedFeedForward(self.hidden, *common, name="feed_forward")
    return x + feed_forward(LayerNorm(self.norm_bias, name="norm2")(x))


class SpatialFeatureTransform(nn.Module):
  """The ablation of Table 4: kernel features scale and shift x pixel by pixel (SFT).

  Both inputs and the output are [b h w c].
  """

  heads: int  # this and the next two are of the attention that it replaces, not needed here
  hidden: int
  norm_bias: bool
  use_bias: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, kernel_features: jax.Array) -> jax.Array:
    c = x.shape[-1]
    y = leaky_relu(Conv(c, 1, self.use_bias, self.dtype, name="condition")(kernel_features))
    y = Conv(2 * c, 1, self.use_bias, self.dtype, name="scale_shift")(y)
    return x * (1 + y[..., :c]) + y[..., c:]


class MultiAttention(nn.Module):
  """Centre-oriented attention (Eq. 5) and, in Net^R, modulation by the degradation (Eq. 6).

  The fused frames, the centre frame's feature, the kernel features and the output are [b h w c].
  """

  heads: int
  hidden: int
  norm_bias: bool
  use_bias: bool
  dtype: jnp.dtype
  query: Query
  modulation: type[nn.Module] | None

  @nn.compact
  def __call__(self, x: jax.Array, centre: jax.Array, kernel_features: jax.Array | None):
    common = (self.use_bias, self.dtype)
    normed = LayerNorm(self.norm_bias, name="norm1")(x)
    attention = ChannelAttention(self.heads, *common, name="attention")
    x += attention(normed, self.query(normed, centre))
    feed_forward = GatedFeedForward(self.hidden, *common, name="feed_forward")
    x += feed_forward(LayerNorm(self.norm_bias, name="norm2")(x))
    if self.modulation is not None:
      sizes = (self.heads, self.hidden, self.norm_bias)
      modulation = self.modulation(*sizes, *common, name="modulation")
      x = modulation(x, after(kernel_features, x))
    return x


class FRMA(nn.Module):
  """One FRMA block. The first block of Net^D has neither F_w nor f yet, that of Net^R no F_w."""

  dim: int
  flows: int
  growth: int
  dense_layers: int
  attention_blocks: int
  heads: int
  hidden: int
  norm_bias: bool
  use_bias: bool
  dtype: jnp.dtype
  query: Query
  modulation: type[nn.Module] | None = None
  remat: bool = False

  def setup(self):
    common = (self.use_bias, self.dtype)
    dense_block, multi_attention = (
      rematerialised(block, self.remat) for block in (DenseBlock, MultiAttention)
    )
    dense = (self.growth, self.dense_layers, *common)
    self.dense = dense_block(*dense)
    self.flow_update = FlowUpdate(self.flows, *common)
    self.fuse = FuseArrays(self.dim, *common)
    if self.modulation is not None:
      self.kernel_dense = dense_block(*dense)
      self.kernel_fuse = FuseArrays(self.dim, *common)
    sizes = (self.heads, self.hidden, self.norm_bias, *common)
    self.attention = [
      multi_attention(*sizes, self.query, self.modulation) for _ in range(self.attention_blocks)
    ]

  def anchor(self, features: jax.Array) -> jax.Array:
    """F^i -> F^{i+1} of single frames, [... h w c]."""
    return self.dense(features)

  def __call__(
    self,
    anchored: Frames,
    centre: jax.Array,
    aligned: jax.Array | None,
    flow_mask: jax.Array | None,
    kernel_features: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Refines the aligned feature and the flow-mask pairs of a window.

    Args:
      anchored: this block's anchored features F^{i+1}.
      centre: [b h w c], F^0 of the centre frame.
      aligned: [b h w c], F_w of the block before, or None.
      flow_mask: [b t h w 3n], f of the block before, or None.
      kernel_features: [b t h w c], k^D in Net^R.

    Returns:
      The new F_w [b h w c] and f [b t h w 3n].
    """
    if flow_mask is None:
      flow_mask = self.flow_update(centre, anchored)
    else:
      anchored = after(anchored, flow_mask if aligned is None else aligned)
      warped = map_frames(warp_features, anchored, flow_mask)
      by_frame = map_frames(lambda *x: join_channels(x), flow_mask, warped)
      flow_mask += self.flow_update(after(centre, jax.tree.leaves(by_frame)[-1]), by_frame)
    warped = map_frames(warp_features, anchored, flow_mask)
    lead = [] if aligned is None else [aligned]
    aligned = self.fuse([*lead, *split_frames(warped)])
    if self.modulation is not None:
      refined = kernel_features
      if isinstance(anchored, tuple):
        refined = _in_turn(self.kernel_dense, split_frames(refined), aligned)
      else:
        refined = split_frames(self.kernel_dense(after(refined, aligned)))
      kernel_features = self.kernel_fuse(refined)
      aligned = after(aligned, kernel_features)
    for block in self.attention:
      aligned = block(aligned, after(centre, aligned), kernel_features)
    return aligned, flow_mask
