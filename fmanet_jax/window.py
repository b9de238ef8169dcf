"""FMA-Net for inference: features once per frame, windows from features, in bounded memory.

The results equal model.py's but for rounding, with the same parameters. Four things differ. The
features of a window's frames are separate arrays, never stacked. `delay_until` keeps XLA
from computing, and then holding, what is needed much later. The full-resolution end runs in
strips of rows. And two consecutive convolutions are folded into one (`fold_kernels`).
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
from vsr_jax.ops.channels import broadcast_channels
from vsr_jax.ops.convolution import convolve
from vsr_jax.ops.devices import delay_until, one_by_one, parts_of
from vsr_jax.ops.dynamic_filter import normalise_and_upsample
from vsr_jax.ops.strips import by_strips
from vsr_jax.ops.temporal import convolve_frames

_STRIP_BYTES = 2**27  # most bytes of full-resolution features that a device holds at a time

BlockFeatures = tuple[jax.Array, ...]  # F^0..F^M, each [b h w c]
Frames = tuple[jax.Array, ...]  # t arrays [b h w c], one per frame of a window


def encode_frames(
  model: FMANet, params: Params, frames: jax.Array
) -> tuple[BlockFeatures, BlockFeatures]:
  """The features F^0..F^M of single frames [b h w 3], of Net^D and of Net^R.

  They depend on one frame only: a stream computes them once per frame and uses them in T windows.
  """
  features_d = model.apply_d(params, "encode", frames)
  return features_d, model.apply_r(params, "encode", frames, features_d[-1])


def fold_kernels(model: FMANet, params: Params) -> jax.Array | None:
  """`NetD.kernel_logits`'s last convolution and `NetR.kernel_features`'s first as one kernel.

  Restoring needs K^D only between these two linear operations. Folded into one, they never make its
  k_d^2 channels (400 in the released model), and take about a third of the multiplications with
  T = 3 in float32 on CPU (see `convolve_frames`), otherwise less than half.

  Returns:
    The kernel [3 5 5 c d], float32; None where biases forbid it or it would not pay.
  """
  # With T = 3 on CPU: 4 * 25 dim^2 multiplications per pixel folded, (3 + 4) * 9 k_d^2 dim apart.
  if model.arch.use_bias or model.arch.kernel_down**2 < 1.6 * model.arch.dim:
    return None
  return compose_kernels(*_kernels_to_fold(params))


def _kernels_to_fold(params: Params) -> tuple[jax.Array, jax.Array]:
  """The two kernels that `fold_kernels` composes, in order of use: [3 3 c k] and [3 3 3 k d]."""
  last, first = params["net_d"]["kernel_head"]["conv2"], params["net_r"]["kernel_entry1"]
  return last["kernel"], first["kernel"]


def compose_kernels(spatial: jax.Array, temporal: jax.Array) -> jax.Array:
  """The kernel [3 5 5 c d] equal to `spatial` [3 3 c k], followed by `temporal` [3 3 3 k d]."""
  # `spatial` as images [c 3 3 k], filtered by `temporal`.
  images = jnp.pad(spatial.transpose(2, 0, 1, 3), ((0, 0), (1, 1), (1, 1), (0, 0)))
  composed = jnp.stack([convolve(images, step[::-1, ::-1]) for step in temporal])
  return composed.transpose(0, 2, 3, 1, 4)


def convolve_folded(
  x: jax.Array, spatial: jax.Array, temporal: jax.Array, composed: jax.Array
) -> jax.Array:
  """Convolves with `spatial`, then in time and space with `temporal`, by their composed kernel.

  The zero padding between the two makes a difference for the outermost ring of pixels only, which
  is computed in two steps.

  Args:
    x: [b t h w c].
    spatial: [3 3 c k].
    temporal: [3 3 3 k d].
    composed: result of `compose_kernels`.

  Returns:
    [b t h w d].
  """

  def two_steps(x):
    return convolve_frames(convolve(x, spatial), temporal)

  if min(x.shape[2:4]) < 4:
    return two_steps(x)
  y = convolve_frames(x, composed)
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
    params: the parameters of both networks.
    folded: result of `fold_kernels`.
    frames: t arrays [b h w 3] in [0, 1].
    features_d: F^0..F^M of Net^D, t arrays [b h w dim] each; F^0 may hold the centre frame alone.
    features_r: the same for Net^R.

  Returns:
    [b sh sw 3]; not clipped.
  """
  net_d = model.net_d.bind({"params": params["net_d"]})
  net_r = model.net_r.bind({"params": params["net_r"]})
  with jax.named_scope("NetD.align"):
    aligned, flow_mask = _align(net_d.frma, features_d, None, None)
  if folded is None:
    kernel_features = net_r.kernel_features(net_d.kernel_logits(aligned))
  else:
    hidden = net_d.kernel_head.hidden_layer(split_time(aligned, model.arch.frames))
    entered = convolve_folded(hidden, *_kernels_to_fold(params), folded)
    kernel_features = net_r.kernel_entry2(leaky_relu(entered))
  flow_mask = net_r.flow_entry(flow_mask)
  with jax.named_scope("NetR.align"):
    aligned, flow_mask = _align(net_r.frma, features_r, flow_mask, kernel_features)
  _, warped = warp_to_centre(model, params, jnp.stack(frames, axis=1), flow_mask)
  return _upsample(model, params, aligned, warped)


def _align(
  blocks: Sequence[FRMA],
  features: tuple[Frames, ...],
  flow_mask: jax.Array | None,
  kernel_features: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """`NetD.align` (without k^D) or `NetR.align`: F^0..F^M, f^0 and k^D -> F_w^M and f^M."""
  centre = features[0][len(features[0]) // 2]
  aligned = None
  for block, anchored in zip(blocks, features[1:], strict=True):
    with jax.named_scope(block.name):  # as Linen does where a block is called whole
      aligned, flow_mask = _run_block(block, anchored, centre, aligned, flow_mask, kernel_features)
  assert aligned is not None  # there is at least one block
  assert flow_mask is not None
  return aligned, flow_mask


def _run_block(
  block: FRMA,
  features: Frames,
  centre: jax.Array,
  aligned: jax.Array | None,
  flow_mask: jax.Array | None,
  kernel_features: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """`FRMA.__call__` with the features as t arrays [b h w dim]."""
  if flow_mask is None:
    flow_mask = _update_flow(block.flow_update, centre, features)
  else:
    features = delay_until(features, flow_mask if aligned is None else aligned)
    by_frame = one_by_one(
      lambda x, pairs: jnp.concatenate([pairs, warp_features(x, pairs)], axis=-1),
      features,
      _frames(flow_mask),
    )
    flow_mask += _update_flow(block.flow_update, delay_until(centre, by_frame[-1]), by_frame)
  warped = one_by_one(warp_features, features, _frames(flow_mask))
  aligned = block.fuse(warped if aligned is None else [aligned, *warped])
  block_kernel_features = None
  if kernel_features is not None:
    # `delay_until` makes the frames wait for each other, so that the dense block's intermediate
    # results are held for one frame at a time; `aligned` is only what the first frame waits for.
    refined = [aligned]
    for i in range(kernel_features.shape[1]):
      refined.append(block.kernel_dense(delay_until(kernel_features[:, i], refined[-1])))
    block_kernel_features = block.kernel_fuse(refined[1:])
    aligned = delay_until(aligned, block_kernel_features)
  for attention in block.attention:
    aligned = _attend(attention, aligned, centre, block_kernel_features)
  return aligned, flow_mask


def _frames(x: jax.Array) -> list[jax.Array]:
  """[b t ...] -> t arrays [b ...]."""
  return [x[:, i] for i in range(x.shape[1])]


def _update_flow(update: FlowUpdate, centre: jax.Array, by_frame: Sequence[jax.Array]) -> jax.Array:
  """`FlowUpdate.__call__` with its per-frame input as t arrays [b h w k]."""
  params, c, dtype = update.variables["params"], centre.shape[-1], update.dtype
  kernel = params["conv1_kernel"]
  y = jnp.stack([convolve(x.astype(dtype), kernel[:, :, c:]) for x in by_frame], axis=1)
  y += convolve(centre.astype(dtype), kernel[:, :, :c])[:, None]
  if update.use_bias:
    y += broadcast_channels(params["conv1_bias"], y)
  conv2 = Conv(kernel.shape[-1], 3, update.use_bias, dtype)
  return conv2.apply({"params": params["conv2"]}, leaky_relu(y))


def _attend(
  block: MultiAttention, x: jax.Array, centre: jax.Array, block_kernel_features: jax.Array | None
) -> jax.Array:
  """`MultiAttention.__call__`; the queries are delayed until the block's input is there."""
  x = block.attend_and_feed_forward(x, delay_until(centre, x))
  return (
    x
    if block_kernel_features is None
    else block.modulation(x, delay_until(block_kernel_features, x))
  )


def _upsample(model: FMANet, params: Params, aligned: jax.Array, warped: jax.Array) -> jax.Array:
  """F_w^M [b h w dim] and the warped frames [b t h w 3] -> [b sh sw 3], in strips of rows.

  Without strips, K^R and the features at full resolution would be by far the largest arrays.
  """
  b, h, w, dim = aligned.shape
  scale = model.arch.scale
  strips = -(-4 * (b // parts_of(b)) * h * w * dim * scale**2 // _STRIP_BYTES)

  def filtered(aligned, warped):
    return normalise_and_upsample(
      warped, model.apply_r(params, "unnormalised_kernels", aligned), scale
    )

  output = by_strips(
    filtered,
    (aligned, warped),
    rows=-(-h // strips),
    halo=max(2, model.arch.kernel_up // 2),  # two 3x3 convolutions, or the filter
    scale=scale,
  )
  x = model.apply_r(params, _residual_start, aligned)
  residual = by_strips(
    functools.partial(model.apply_r, params, _residual_end),
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
  """The rest of `NetR.residual`; rows of the result [b sh sw 3] see rows of x at most two away."""
  if net.upsampler.factors:
    x = net.upsampler.shuffle(x, len(net.upsampler.factors) - 1)
  return net.residual_exit(leaky_relu(net.upsampler.smooth(x)))
