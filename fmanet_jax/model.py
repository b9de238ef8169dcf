"""FMA-Net as pure functions of `params = {"net_d": ..., "net_r": ...}`.

`degrade` is Net^D with flow-guided dynamic downsampling (stage 1), `restore`
Net^R with flow-guided dynamic upsampling, `restore_window` the way from
features to a restored frame that a stream takes. Images are RGB in [0, 1],
[b t h w 3]; the centre of T frames is t = T // 2.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from fmanet_jax.architecture import RELEASED, Architecture
from fmanet_jax.filtering import fast_downsample, fast_upsample, normalise_down
from fmanet_jax.frma import (
  DegradationAttention,
  SpatialFeatureTransform,
  centre_query,
  self_query,
)
from fmanet_jax.networks import NetD, NetR, kernel_passage
from fmanet_jax.strips import by_strips
from vsr_jax.devices import parts_of
from vsr_jax.resize import resize_bilinear
from vsr_jax.trees import repeat_blocks
from vsr_jax.warp import backward_warp, resize_flow

_STRIP_BYTES = 2**27  # of features at full resolution that a device holds at a time

Params = dict[str, dict]
Features = tuple[jax.Array, ...]

QUERIES = {"centre": centre_query, "self": self_query}
MODULATIONS = {
  "degradation_attention": DegradationAttention,
  "sft": SpatialFeatureTransform,
}


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

  def _common(self) -> dict:
    a = self.arch
    return {
      **{k: getattr(a, k) for k in ("dim", "kernel_down", "flows", "frma_blocks", "rdb_blocks")},
      **{k: getattr(a, k) for k in ("growth", "dense_layers", "attention_blocks", "heads")},
      **{k: getattr(a, k) for k in ("norm_bias", "use_bias")},
      "hidden": int(a.dim * a.ffn_expansion),
      "flow_guided": a.filtering == "flow_guided",
      "query": QUERIES[a.attention],
      "dtype": self.dtype,
      "remat": self.remat,
    }

  @property
  def net_d(self) -> NetD:
    return NetD(**self._common())

  @property
  def net_r(self) -> NetR:
    a = self.arch
    modulation = MODULATIONS[a.modulation]
    return NetR(**self._common(), scale=a.scale, kernel_up=a.kernel_up, modulation=modulation)

  def d(self, params: Params, method: str, *args) -> Any:
    """Applies a method of Net^D."""
    return self.net_d.apply({"params": params["net_d"]}, *args, method=method)

  def r(self, params: Params, method: str, *args) -> Any:
    """Applies a method of Net^R."""
    return self.net_r.apply({"params": params["net_r"]}, *args, method=method)


@flax.struct.dataclass
class Degradation:
  """What Net^D says of a window."""

  features: jax.Array  # F^M [b t h w dim]
  flow_mask: jax.Array  # f^M [b t h w 3n]
  kernels: jax.Array  # logits of K^D [b t h w k_d^2]
  image_flow: jax.Array | None  # f^Y [b t h w 3] in LR pixels; None without flow guidance
  anchors: jax.Array  # [b t h w 3]


@flax.struct.dataclass
class Restoration:
  """What Net^R makes of a window."""

  output: jax.Array  # the restored centre frame [b sh sw 3]
  warped: jax.Array  # the frames warped to the centre, times their masks [b t h w 3]
  anchors: jax.Array  # [b t h w 3]


def init_params(model: FMANet, key: jax.Array) -> Params:
  """Random parameters of both networks, float32."""
  a = model.arch
  frames = jnp.zeros((1, a.frames, 8, 8, 3))

  def all_of_d(net, x):
    features = net.encode(x)
    aligned, flow_mask = net.align(features)
    kernels = net.kernels(aligned, a.frames)
    net.anchors(features[-1])
    if net.flow_guided:
      net.image_flow(flow_mask)
    return features[-1], flow_mask, kernels

  def all_of_r(net, x, features_d, flow_mask, kernels):
    features = net.encode(x, features_d)
    aligned, flow_mask = net.align(features, flow_mask, net.kernel_features(kernels))
    net.kernels(aligned, a.frames)
    net.residual(aligned)
    net.anchors(features[-1])
    if net.flow_guided:
      net.first_image_flow(flow_mask)
      net.image_flow(flow_mask, x, x)

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
  aligned, flow_mask = model.d(params, "align", features)
  guided = model.arch.filtering == "flow_guided"
  return Degradation(
    features=features[-1],
    flow_mask=flow_mask,
    kernels=model.d(params, "kernels", aligned, model.arch.frames),
    image_flow=model.d(params, "image_flow", flow_mask) if guided else None,
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
  weights = normalise_down(degradation.kernels)
  if degradation.image_flow is None:
    return fast_downsample(sharp, weights, model.arch.scale), sharp
  warped, validity = warp_images(sharp, degradation.image_flow, model.arch.scale)
  # The validity is filtered along, so that masked-out pixels do not darken the sum.
  filtered = fast_downsample(
    jnp.concatenate([warped, validity], axis=-1), weights, model.arch.scale
  )
  return filtered[..., :3] / (filtered[..., 3:] + 1e-8), warped


def warp_images(
  images: jax.Array, flow_mask: jax.Array, scale: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Occlusion-aware warping of images by one flow-mask pair a frame.

  Args:
    images: [b t sh sw 3].
    flow_mask: [b t h w 3], (dx, dy, mask logit) in LR pixels.
    scale: s; flow is enlarged bilinearly, and so is the sigmoid of the mask.

  Returns:
    Warped images times the mask [b t sh sw 3] and their validity [b t sh sw 1]: the mask
    where the warp read inside the image, 0 outside. float32.
  """
  b, t, h, w, c = images.shape
  pairs = flow_mask.astype(jnp.float32).reshape(b * t, *flow_mask.shape[2:])
  flow, mask = pairs[..., :2], jax.nn.sigmoid(pairs[..., 2:])
  if scale > 1:
    flow, mask = resize_flow(flow, scale), resize_bilinear(mask, scale)
  images = images.astype(jnp.float32).reshape(b * t, h, w, c)
  # A channel of ones tells how much of each sample lay inside.
  images = jnp.concatenate([images, jnp.ones_like(images[..., :1])], axis=-1)
  warped = backward_warp(images, flow, mask[..., 0]).reshape(b, t, h, w, c + 1)
  return warped[..., :c], warped[..., c:]


def restore(
  model: FMANet, params: Params, blurry: jax.Array, degradation: Degradation
) -> Restoration:
  """Net^R on a blurry LR window [b t h w 3] and what Net^D says of it."""
  features = model.r(params, "encode", blurry, degradation.features)
  kernel_features = model.r(params, "kernel_features", degradation.kernels)
  aligned, warped = _align(model, params, blurry, features, degradation.flow_mask, kernel_features)
  residual = model.r(params, "residual", aligned).astype(jnp.float32)
  output = _filter(model, params, aligned, warped) + residual
  return Restoration(output, warped, model.r(params, "anchors", features[-1]))


def _align(model, params, frames, features, flow_mask, kernel_features):
  """The window part of Net^R: frames [b t h w 3], features ... -> F_w^M, warped frames."""
  aligned, flow_mask = model.r(params, "align", features, flow_mask, kernel_features)
  warped = frames.astype(jnp.float32)
  if model.arch.filtering == "flow_guided":
    first, _ = warp_images(frames, model.r(params, "first_image_flow", flow_mask))
    image_flow = model.r(params, "image_flow", flow_mask, first, frames)
    warped, _ = warp_images(frames, image_flow)
  return aligned, warped


def _filter(model, params, aligned, warped):
  """Flow-guided dynamic upsampling: F_w^M, warped frames -> [b sh sw 3], without the residual."""
  kernels = model.r(params, "kernels", aligned, model.arch.frames)
  return fast_upsample(warped, kernels, model.arch.scale)


def encode_frames(model: FMANet, params: Params, frames: jax.Array) -> tuple[Features, Features]:
  """The features F^0..F^M of single frames [b h w 3], of Net^D and of Net^R.

  They depend on one frame only: a stream computes them once a frame and uses
  them in T windows.
  """
  features_d = model.d(params, "encode", frames)
  return features_d, model.r(params, "encode", frames, features_d[-1])


def restore_window(
  model: FMANet,
  params: Params,
  frames: tuple[jax.Array, ...],
  features_d: tuple[Features, ...],
  features_r: tuple[Features, ...],
) -> jax.Array:
  """Restores the centre frame of a window from its frames and their features.

  Args:
    model: the model.
    params: of both networks.
    frames: in [0, 1], t arrays [b h w 3].
    features_d: F^0..F^M of Net^D, t arrays [b h w dim] each; of F^0 the centre's alone will do.
    features_r: the same of Net^R.

  Returns:
    [b sh sw 3]; not clipped.
  """
  aligned, flow_mask = model.d(params, "align", features_d)
  kernel_features = _kernel_features(model, params, aligned)
  stacked = jnp.stack(frames, axis=1)
  aligned, warped = _align(model, params, stacked, features_r, flow_mask, kernel_features)
  # Whole, K^R and the features at full resolution would be the largest arrays by far.
  b, h, w, dim = aligned.shape
  strips = -(-4 * (b // parts_of(b)) * h * w * dim * model.arch.scale**2 // _STRIP_BYTES)
  output = by_strips(
    functools.partial(_filter, model, params),
    (aligned, warped),
    rows=-(-h // strips),
    halo=max(2, model.arch.kernel_up // 2),  # two 3x3 convolutions, or the filter
    scale=model.arch.scale,
  )
  x = model.r(params, "residual_start", aligned)
  residual = by_strips(
    functools.partial(model.r, params, "residual_end"),
    (x,),
    rows=-(-x.shape[1] // strips),
    halo=2,
    scale=h * model.arch.scale // x.shape[1],
  )
  return output + residual.astype(jnp.float32)


def _kernel_features(model: FMANet, params: Params, aligned: jax.Array) -> jax.Array:
  """k^D from Net^D's F_w^M, [b t h w dim], without K^D where that is possible and pays."""
  t = model.arch.frames
  # 5x5 taps between features, or 3x3 ones to and from the channels of K^D: level at about 1.6.
  if model.arch.use_bias or model.arch.kernel_down**2 < 1.6 * model.arch.dim:
    return model.r(params, "kernel_features", model.d(params, "kernels", aligned, t))
  x = model.d(params, "kernels_before_last", aligned, t)
  last = params["net_d"]["kernel_head"]["conv2"]["kernel"].astype(model.dtype)
  first = params["net_r"]["kernel_entry1"]["kernel"].astype(model.dtype)
  return model.r(params, "kernel_features_after_first", kernel_passage(x, last, first))
