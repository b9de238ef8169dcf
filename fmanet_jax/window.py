"""FMA-Net as a stream runs it: features once a frame, windows from features, in bounded memory.

Equal to model.py but for rounding, over the same parameters. What differs: features of the frames
of a window come one by one and are never stacked; nothing is computed long before it is needed,
as XLA's CPU backend would do and hold it; the full-resolution end runs in strips of rows; and two
convolutions between which nothing is non-linear are one, its kernel made once (`fold_kernels`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fmanet_jax.filtering import warp_features
from fmanet_jax.frma import FRMA, FlowUpdate, MultiAttention
from fmanet_jax.model import FMANet, Params, warp_to_centre
from fmanet_jax.networks import NetR, split_time
from vsr_jax.layers import Conv
from vsr_jax.ops.activations import leaky_relu
from vsr_jax.ops.channels import like_channels
from vsr_jax.ops.convolution import convolve
from vsr_jax.ops.devices import after, parts_of
from vsr_jax.ops.dynamic_filter import dynamic_upsample
from vsr_jax.ops.strips import by_strips
from vsr_jax.ops.temporal import convolve_frames

_STRIP_BYTES = 2**27  # of features at full resolution that a device holds at a time

Features = tuple[jax.Array, ...]
Frames = tuple[jax.Array, ...]  # t arrays [b h w c]


def encode_frames(model: FMANet, params: Params, frames: jax.Array) -> tuple[Features, Features]:
  """The features F^0..F^M of single frames [b h w 3], of Net^D and of Net^R.

  They depend on one frame only: a stream computes them once a frame and uses
  them in T windows.
  """
  features_d = model.d(params, "encode", frames)
  return features_d, model.r(params, "encode", frames, features_d[-1])


def fold_kernels(model: FMANet, params: Params) -> jax.Array | None:
  """The last convolution of K^D's head and the first of Net^R's entry as one kernel [3 5 5 c d].

  Restoring needs the channels of K^D, 400 in the released model, only between these two: folded
  they are about a third of the work, and none of the memory.

  Returns:
    The kernel, float32; None where biases forbid it or it would not pay.
  """
  # 5x5 taps between features, or 3x3 ones to and from the channels of K^D: level at about 1.6.
  if model.arch.use_bias or model.arch.kernel_down**2 < 1.6 * model.arch.dim:
    return None
  return join_kernels(*_passage(params))


def _passage(params: Params) -> tuple[jax.Array, jax.Array]:
  """The kernels that `fold_kernels` joins, [3 3 c k] and [3 3 3 k d]."""
  return params["net_d"]["kernel_head"]["conv2"]["kernel"], params["net_r"]["kernel_entry1"][
    "kernel"
  ]


def join_kernels(last: jax.Array, first: jax.Array) -> jax.Array:
  """Kernels [3 3 c k] and then [3 3 3 k d] -> that of both, [3 5 5 c d]."""
  # `last` as images [c 3 3 k], filtered by `first`.
  images = jnp.pad(last.transpose(2, 0, 1, 3), ((0, 0), (1, 1), (1, 1), (0, 0)))
  both = jnp.stack([convolve(images, step[::-1, ::-1]) for step in first])
  return both.transpose(0, 2, 3, 1, 4)


def convolve_folded(x: jax.Array, last: jax.Array, first: jax.Array, both: jax.Array) -> jax.Array:
  """Two zero-padded convolutions, `last` in space and `first` in time and space, by one kernel.

  Between the two the image is continued by zeros, which the outermost pixels feel: these are
  computed in two steps.

  Args:
    x: [b t h w c].
    last: [3 3 c k].
    first: [3 3 3 k d].
    both: of `join_kernels`.

  Returns:
    [b t h w d].
  """

  def two_steps(x):
    return convolve_frames(convolve(x, last), first)

  if min(x.shape[2:4]) < 4:
    return two_steps(x)
  y = convolve_frames(x, both)
  y = jnp.concatenate(
    [two_steps(x[:, :, :3])[:, :, :1], y[:, :, 1:-1], two_steps(x[:, :, -3:])[:, :, -1:]], axis=2
  )
  left, right = two_steps(x[:, :, :, :3])[:, :, :, :1], two_steps(x[:, :, :, -3:])[:, :, :, -1:]
  return jnp.concatenate([left, y[:, :, :, 1:-1], right], axis=3)


def restore_window(
  model: FMANet,
  params: Params,
  folded: jax.Array | None,
  frames: Frames,
  features_d: tuple[Frames, ...],
  features_r: tuple[Frames, ...],
) -> jax.Array:
  """Restores the centre frame of a window from its frames and their features.

  Args:
    model: the model.
    params: of both networks.
    folded: of `fold_kernels`.
    frames: in [0, 1], t arrays [b h w 3].
    features_d: F^0..F^M of Net^D, t arrays [b h w dim] each; of F^0 the centre's alone will do.
    features_r: the same of Net^R.

  Returns:
    [b sh sw 3]; not clipped.
  """
  net_d = model.net_d.bind({"params": params["net_d"]})
  net_r = model.net_r.bind({"params": params["net_r"]})
  aligned, flow_mask = _align(net_d.frma, features_d, None, None)
  if folded is None:
    kernel_features = net_r.kernel_features(net_d.kernels(aligned))
  else:
    hidden = net_d.kernel_head.hidden_layer(split_time(aligned, model.arch.frames))
    entered = convolve_folded(hidden, *_passage(params), folded)
    kernel_features = net_r.kernel_entry2(leaky_relu(entered))
  flow_mask = net_r.flow_entry(flow_mask)
  aligned, flow_mask = _align(net_r.frma, features_r, flow_mask, kernel_features)
  _, warped = warp_to_centre(model, params, jnp.stack(frames, axis=1), flow_mask)
  return _upsample(model, params, aligned, warped)


def _align(
  blocks: Sequence[FRMA],
  features: tuple[Frames, ...],
  flow_mask: jax.Array | None,
  kernel_features: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """F^0..F^M, f and k^D before the first of M blocks -> F_w^M and f^M; `align` of the networks."""
  centre = features[0][len(features[0]) // 2]
  aligned = None
  for block, anchored in zip(blocks, features[1:], strict=True):
    aligned, flow_mask = _refine(block, anchored, centre, aligned, flow_mask, kernel_features)
  assert aligned is not None  # there is at least one block
  assert flow_mask is not None
  return aligned, flow_mask


def _refine(
  block: FRMA,
  features: Frames,
  centre: jax.Array,
  aligned: jax.Array | None,
  flow_mask: jax.Array | None,
  kernel_features: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """`FRMA.__call__`, its features in t arrays [b h w dim]."""
  if flow_mask is None:
    flow_mask = _update_flow(block.flow_update, centre, features)
  else:
    features = after(features, flow_mask if aligned is None else aligned)
    by_frame = [
      jnp.concatenate([flow_mask[:, i], warp_features(x, flow_mask[:, i])], axis=-1)
      for i, x in enumerate(features)
    ]
    flow_mask += _update_flow(block.flow_update, after(centre, by_frame[-1]), by_frame)
  warped = [warp_features(x, flow_mask[:, i]) for i, x in enumerate(features)]
  aligned = block.fuse(warped if aligned is None else [aligned, *warped])
  if kernel_features is not None:
    # Frame by frame, each after the one before it: what a dense block makes is held for one.
    refined = [aligned]
    for i in range(kernel_features.shape[1]):
      refined.append(block.kernel_dense(after(kernel_features[:, i], refined[-1])))
    kernel_features = block.kernel_fuse(refined[1:])
    aligned = after(aligned, kernel_features)
  for attention in block.attention:
    aligned = _attend(attention, aligned, centre, kernel_features)
  return aligned, flow_mask


def _update_flow(update: FlowUpdate, centre: jax.Array, by_frame: Sequence[jax.Array]) -> jax.Array:
  """`FlowUpdate.__call__`, what belongs to the frames in t arrays [b h w k]."""
  params, c, dtype = update.variables["params"], centre.shape[-1], update.dtype
  kernel = params["conv1_kernel"]
  y = jnp.stack([convolve(x.astype(dtype), kernel[:, :, c:]) for x in by_frame], axis=1)
  y += convolve(centre.astype(dtype), kernel[:, :, :c])[:, None]
  if update.use_bias:
    y += like_channels(params["conv1_bias"], y)
  conv2 = Conv(kernel.shape[-1], 3, update.use_bias, dtype)
  return conv2.apply({"params": params["conv2"]}, leaky_relu(y))


def _attend(
  block: MultiAttention, x: jax.Array, centre: jax.Array, kernel_features: jax.Array | None
) -> jax.Array:
  """`MultiAttention.__call__`, whose queries are not made before they are needed."""
  x = block.attend(x, after(centre, x))
  return x if kernel_features is None else block.modulation(x, after(kernel_features, x))


def _upsample(model: FMANet, params: Params, aligned: jax.Array, warped: jax.Array) -> jax.Array:
  """F_w^M [b h w dim] and the warped frames [b t h w 3] -> [b sh sw 3], in strips of rows.

  Whole, K^R and the features at full resolution would be the largest arrays by far.
  """
  b, h, w, dim = aligned.shape
  scale = model.arch.scale
  strips = -(-4 * (b // parts_of(b)) * h * w * dim * scale**2 // _STRIP_BYTES)

  def filtered(aligned, warped):
    return dynamic_upsample(warped, model.r(params, "kernels", aligned), scale)

  output = by_strips(
    filtered,
    (aligned, warped),
    rows=-(-h // strips),
    halo=max(2, model.arch.kernel_up // 2),  # two 3x3 convolutions, or the filter
    scale=scale,
  )
  x = model.r(params, _residual_start, aligned)
  residual = by_strips(
    functools.partial(model.r, params, _residual_end),
    (x,),
    rows=-(-x.shape[1] // strips),
    halo=2,
    scale=h * scale // x.shape[1],
  )
  return output + residual.astype(jnp.float32)


def _residual_start(net: NetR, aligned: jax.Array) -> jax.Array:
  """`NetR.residual` up to the last pixel shuffle, [b h' w' dim]; h' is h, or 2h for scale 4."""
  x = leaky_relu(net.residual_entry(aligned))
  for i in range(len(net.upsampler.factors) - 1):
    x = net.upsampler.shuffle(x, i)
  return x


def _residual_end(net: NetR, x: jax.Array) -> jax.Array:
  """The rest of it; rows of [b sh sw 3] depend on rows of x at most two away."""
  if net.upsampler.factors:
    x = net.upsampler.shuffle(x, len(net.upsampler.factors) - 1)
  return net.residual_exit(leaky_relu(net.upsampler.smooth(x)))
