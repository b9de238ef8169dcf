"""FMA-Net as pure functions of `params = {"net_d": ..., "net_r": ...}`.

`degrade` is Net^D with flow-guided dynamic downsampling (stage 1), `restore`
Net^R with flow-guided dynamic upsampling. This is what trains; streaming/ computes the same, each
frame's features once. Images are RGB in [0, 1], [b t h w 3]; the centre of T frames is t = T // 2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from fmanet_jax.architecture import RELEASED, Architecture
from fmanet_jax.filtering import flow_guided_downsample, warp_images
from fmanet_jax.networks import ByBlock, NetD, NetR
from vsr_jax.ops.dynamic_filter import dynamic_upsample
from vsr_jax.trees import repeat_blocks

Params = dict[str, dict]


@dataclasses.dataclass(frozen=True)
class FMANet:
  """The two networks of one architecture; a static value, parameters live outside.

  Attributes:
    arch: the numbers.
    dtype: the compute type of the convolutions and products.
    remat: the backward pass computes the activations of dense and attention blocks again, one block
      at a time, instead of holding all of them.
  """

  arch: Architecture = RELEASED
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @property
  def net_d(self) -> NetD:
    """The degradation learning network."""
    return NetD(self.arch, self.dtype, self.remat)

  @property
  def net_r(self) -> NetR:
    """The restoration network."""
    return NetR(self.arch, self.dtype, self.remat)

  @property
  def flow_guided(self) -> bool:
    """Whether frames are warped before they are filtered."""
    return self.arch.filtering == "flow_guided"

  def d(self, params: Params, method: str | Callable[..., Any], *args: Any) -> Any:
    """Applies a method of Net^D, or a function of it and the arguments."""
    return self.net_d.apply({"params": params["net_d"]}, *args, method=method)

  def r(self, params: Params, method: str | Callable[..., Any], *args: Any) -> Any:
    """Applies a method of Net^R, or a function of it and the arguments."""
    return self.net_r.apply({"params": params["net_r"]}, *args, method=method)


@flax.struct.dataclass
class Degradation:
  """What Net^D says of a window, with what it came by; a program computes only what is used.

  Attributes:
    features: F^0..F^M, M + 1 arrays [b t h w dim].
    aligned: F_w^1..F_w^M, after each FRMA block, [b h w dim].
    flow_masks: f^1..f^M, [b t h w 3n].
    kernels: logits of K^D [b t h w k_d^2].
    image_flow: f^Y [b t h w 3] in LR pixels; None without flow guidance.
    anchors: [b t h w 3].
  """

  features: ByBlock
  aligned: ByBlock
  flow_masks: ByBlock
  kernels: jax.Array
  image_flow: jax.Array | None
  anchors: jax.Array


@flax.struct.dataclass
class Restoration:
  """What Net^R makes of a window, with what it came by; a program computes only what is used.

  Attributes:
    output: the restored centre frame [b sh sw 3], not clipped.
    warped: the frames warped to the centre, times their masks [b t h w 3].
    anchors: [b t h w 3].
    features: F^0..F^M, M + 1 arrays [b t h w dim].
    aligned: F_w^1..F_w^M, after each FRMA block, [b h w dim].
    flow_masks: f^1..f^M, [b t h w 3n].
    kernels: K^R before normalisation [b t h w k_r^2 s^2].
    image_flow: f^X [b t h w 3] in LR pixels; None without flow guidance.
    residual: what is added to the filtered frames [b sh sw 3].
  """

  output: jax.Array
  warped: jax.Array
  anchors: jax.Array
  features: ByBlock
  aligned: ByBlock
  flow_masks: ByBlock
  kernels: jax.Array
  image_flow: jax.Array | None
  residual: jax.Array


def init_params(model: FMANet, key: jax.Array) -> Params:
  """Random parameters of both networks, float32."""
  frames = jnp.zeros((1, model.arch.frames, 8, 8, 3))

  def all_of_d(net, x):
    features = net.encode(x)
    aligned, flow_masks = net.align(features)
    kernels = net.kernels(aligned[-1])
    net.anchors(features[-1])
    if model.flow_guided:
      net.image_flow(flow_masks[-1])
    return features[-1], flow_masks[-1], kernels

  def all_of_r(net, x, features_d, flow_mask, kernels):
    features = net.encode(x, features_d)
    aligned, flow_masks = net.align(features, flow_mask, net.kernel_features(kernels))
    net.kernels(aligned[-1])
    net.residual(aligned[-1])
    net.anchors(features[-1])
    if model.flow_guided:
      net.first_image_flow(flow_masks[-1])
      net.image_flow(flow_masks[-1], x, x)

  key_d, key_r = (jax.random.fold_in(key, i) for i in range(2))
  from_d, net_d = model.net_d.init_with_output(key_d, frames, method=all_of_d)
  net_r = model.net_r.init(key_r, frames, *from_d, method=all_of_r)
  return {"net_d": net_d["params"], "net_r": net_r["params"]}


def param_shapes(model: FMANet) -> Params:
  """The shapes of `init_params`; of many like blocks few are traced, as all would take minutes."""
  a = model.arch
  blocks = {"frma_1": a.frma_blocks, "attention_0": a.attention_blocks}  # frma_0 has fewer inputs
  arch = dataclasses.replace(a, frma_blocks=min(a.frma_blocks, 2), attention_blocks=1)
  few = functools.partial(init_params, dataclasses.replace(model, arch=arch))
  return repeat_blocks(jax.eval_shape(few, jax.random.key(0)), blocks)


def learn_degradation(model: FMANet, params: Params, blurry: jax.Array) -> Degradation:
  """Net^D on a blurry LR window [b t h w 3]."""
  features = model.d(params, "encode", blurry)
  aligned, flow_masks = model.d(params, "align", features)
  return Degradation(
    features=features,
    aligned=aligned,
    flow_masks=flow_masks,
    kernels=model.d(params, "kernels", aligned[-1]),
    image_flow=model.d(params, "image_flow", flow_masks[-1]) if model.flow_guided else None,
    anchors=model.d(params, "anchors", features[-1]),
  )


def degrade(
  model: FMANet, degradation: Degradation, sharp: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Flow-guided dynamic downsampling: blurs and shrinks sharp frames as Net^D learnt it (Eq. 2).

  Args:
    model: the model.
    degradation: of the blurry window.
    sharp: the sharp HR window [b t sh sw 3].

  Returns:
    The reconstructed blurry LR centre frame [b h w 3], and the sharp frames
    warped to the centre times their masks [b t sh sw 3].
  """
  return flow_guided_downsample(
    sharp, degradation.image_flow, degradation.kernels, model.arch.scale
  )


def restore(
  model: FMANet, params: Params, blurry: jax.Array, degradation: Degradation
) -> Restoration:
  """Net^R on a blurry LR window [b t h w 3] and what Net^D says of it.

  The centre frame is filtered out of the warped frames by K^R (Eq. 2), and a residual of high
  frequencies is added.
  """
  features = model.r(params, "encode", blurry, degradation.features[-1])
  kernel_features = model.r(params, "kernel_features", degradation.kernels)
  flow_mask = degradation.flow_masks[-1]
  aligned, flow_masks = model.r(params, "align", features, flow_mask, kernel_features)
  image_flow, warped = warp_to_centre(model, params, blurry, flow_masks[-1])
  kernels = model.r(params, "kernels", aligned[-1])
  residual = model.r(params, "residual", aligned[-1]).astype(jnp.float32)
  return Restoration(
    output=dynamic_upsample(warped, kernels, model.arch.scale) + residual,
    warped=warped,
    anchors=model.r(params, "anchors", features[-1]),
    features=features,
    aligned=aligned,
    flow_masks=flow_masks,
    kernels=kernels,
    image_flow=image_flow,
    residual=residual,
  )


def warp_to_centre(
  model: FMANet, params: Params, frames: jax.Array, flow_mask: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
  """Frames [b t h w 3] and f^M -> f^X and the frames warped by it; None and the frames without.

  A first f^X warps the frames, which the second one is made from.
  """
  if not model.flow_guided:
    return None, frames.astype(jnp.float32)
  first, _ = warp_images(frames, model.r(params, "first_image_flow", flow_mask))
  image_flow = model.r(params, "image_flow", flow_mask, first, frames)
  return image_flow, warp_images(frames, image_flow)[0]
