"""FMA-Net (Sec. 3.4, Fig. 3) as pure functions of `params = {"net_d": ..., "net_r": ...}`.

`learn_degradation` is Net^D, `degrade` the flow-guided dynamic downsampling by its kernels,
`restore` Net^R with flow-guided dynamic upsampling. Training runs them; window.py and streaming.py
compute the same for video. Images are RGB in [0, 1], [b t h w 3]; the centre frame is t = T // 2.
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
from fmanet_jax.networks import NetD, NetR, PerBlock
from vsr_jax.ops.dynamic_filter import normalise_and_upsample
from vsr_jax.trees import repeat_blocks

Params = dict[str, dict]


@dataclasses.dataclass(frozen=True)
class FMANet:
  """The two networks of one architecture, without parameters; hashable, hence static under `jit`.

  Attributes:
    arch: sizes and choices.
    dtype: type in which convolutions and matrix products are computed.
    remat: recompute the activations of each dense and attention block in the backward pass.
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

  def apply_d(self, params: Params, method: str | Callable[..., Any], *args: Any) -> Any:
    """Applies a method of Net^D by its name, or a function that takes Net^D and then `args`."""
    return self.net_d.apply({"params": params["net_d"]}, *args, method=method)

  def apply_r(self, params: Params, method: str | Callable[..., Any], *args: Any) -> Any:
    """Applies a method of Net^R by its name, or a function that takes Net^R and then `args`."""
    return self.net_r.apply({"params": params["net_r"]}, *args, method=method)


@flax.struct.dataclass
class Degradation:
  """Outputs and intermediate results of Net^D for a window; under `jit` unused ones cost nothing.

  Attributes:
    features: F^0..F^M, M + 1 arrays [b t h w dim].
    aligned: F_w^1..F_w^M, M arrays [b h w dim].
    flow_masks: f^1..f^M, M arrays [b t h w 3n]: n times (dx, dy, mask logit), LR pixels.
    kernel_logits: K^D before its softmax, [b t h w k_d^2].
    image_flow: f^Y [b t h w 3], (dx, dy, mask logit), LR pixels; None without flow guidance.
    anchors: the paper's X_Sharp^D [b t h w 3], sharp LR frames estimated for the TA loss.
  """

  features: PerBlock
  aligned: PerBlock
  flow_masks: PerBlock
  kernel_logits: jax.Array
  image_flow: jax.Array | None
  anchors: jax.Array


@flax.struct.dataclass
class Restoration:
  """Outputs and intermediate results of Net^R for a window; under `jit` unused ones cost nothing.

  Attributes:
    output: Y_c [b sh sw 3], the restored centre frame, not clipped.
    warped: W(X, f^X) [b t h w 3]; without flow guidance the frames themselves.
    anchors: the paper's X_Sharp^R [b t h w 3], sharp LR frames estimated for the TA loss.
    features: F^0..F^M, M + 1 arrays [b t h w dim].
    aligned: F_w^1..F_w^M, M arrays [b h w dim].
    flow_masks: f^1..f^M, M arrays [b t h w 3n]: n times (dx, dy, mask logit), LR pixels.
    unnormalised_kernels: K^R before normalisation, [b t h w k_r^2 s^2], six axes.
    image_flow: f^X [b t h w 3], (dx, dy, mask logit), LR pixels; None without flow guidance.
    residual: Y_r [b sh sw 3], high frequencies added to the filtered frames.
  """

  output: jax.Array
  warped: jax.Array
  anchors: jax.Array
  features: PerBlock
  aligned: PerBlock
  flow_masks: PerBlock
  unnormalised_kernels: jax.Array
  image_flow: jax.Array | None
  residual: jax.Array


def init_params(model: FMANet, key: jax.Array) -> Params:
  """Random parameters of both networks, float32."""
  frames = jnp.zeros((1, model.arch.frames, 8, 8, 3))

  def all_of_d(net, x):
    features = net.encode(x)
    aligned, flow_masks = net.align(features)
    kernel_logits = net.kernel_logits(aligned[-1])
    net.anchors(features[-1])
    if model.flow_guided:
      net.image_flow(flow_masks[-1])
    return features[-1], flow_masks[-1], kernel_logits

  def all_of_r(net, x, features_d, flow_mask, kernel_logits):
    features = net.encode(x, features_d)
    aligned, flow_masks = net.align(features, flow_mask, net.kernel_features(kernel_logits))
    net.unnormalised_kernels(aligned[-1])
    net.residual(aligned[-1])
    net.anchors(features[-1])
    if model.flow_guided:
      net.first_image_flow(flow_masks[-1])
      net.image_flow(flow_masks[-1], x, x)

  key_d, key_r = (jax.random.fold_in(key, i) for i in range(2))
  from_d, net_d = model.net_d.init_with_output(key_d, frames, method=all_of_d)
  net_r = model.net_r.init(key_r, frames, *from_d, method=all_of_r)
  return {"net_d": net_d["params"], "net_r": net_r["params"]}


@functools.lru_cache(maxsize=16)
def param_shapes(model: FMANet) -> Params:
  """Shapes and dtypes of `init_params`, read-only; equal blocks and models are traced once."""
  a = model.arch
  blocks = {"frma_1": a.frma_blocks, "attention_0": a.attention_blocks}  # frma_0 has fewer inputs
  arch = dataclasses.replace(a, frma_blocks=min(a.frma_blocks, 2), attention_blocks=1)
  few = functools.partial(init_params, dataclasses.replace(model, arch=arch))
  return repeat_blocks(jax.eval_shape(few, jax.random.key(0)), blocks)


def learn_degradation(model: FMANet, params: Params, blurry: jax.Array) -> Degradation:
  """Net^D on a blurry LR window [b t h w 3]."""
  features = model.apply_d(params, "encode", blurry)
  aligned, flow_masks = model.apply_d(params, "align", features)
  return Degradation(
    features=features,
    aligned=aligned,
    flow_masks=flow_masks,
    kernel_logits=model.apply_d(params, "kernel_logits", aligned[-1]),
    image_flow=model.apply_d(params, "image_flow", flow_masks[-1]) if model.flow_guided else None,
    anchors=model.apply_d(params, "anchors", features[-1]),
  )


def degrade(
  model: FMANet, degradation: Degradation, sharp: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """FGDF with downsampling: X_c = W(Y, s (f^Y upsampled s times)) filtered by K^D (Eq. 6).

  Args:
    model: the model.
    degradation: result of `learn_degradation` for the blurry window.
    sharp: Y, the sharp HR window [b t sh sw 3].

  Returns:
    The reconstructed blurry LR centre frame [b h w 3], and W(Y, ...), the sharp frames warped to
    the centre times their masks [b t sh sw 3]; without flow guidance the sharp frames themselves.
  """
  return flow_guided_downsample(
    sharp, degradation.image_flow, degradation.kernel_logits, model.arch.scale
  )


def restore(
  model: FMANet, params: Params, blurry: jax.Array, degradation: Degradation
) -> Restoration:
  """Net^R on a blurry LR window X [b t h w 3], given Net^D's F^M, f^M and K^D for it.

  FGDF with upsampling (Eq. 6): Y_c = Y_r + W(X, f^X) filtered by K^R.
  """
  features = model.apply_r(params, "encode", blurry, degradation.features[-1])
  kernel_features = model.apply_r(params, "kernel_features", degradation.kernel_logits)
  flow_mask = degradation.flow_masks[-1]
  aligned, flow_masks = model.apply_r(params, "align", features, flow_mask, kernel_features)
  image_flow, warped = warp_to_centre(model, params, blurry, flow_masks[-1])
  unnormalised = model.apply_r(params, "unnormalised_kernels", aligned[-1])
  residual = model.apply_r(params, "residual", aligned[-1]).astype(jnp.float32)
  return Restoration(
    output=normalise_and_upsample(warped, unnormalised, model.arch.scale) + residual,
    warped=warped,
    anchors=model.apply_r(params, "anchors", features[-1]),
    features=features,
    aligned=aligned,
    flow_masks=flow_masks,
    unnormalised_kernels=unnormalised,
    image_flow=image_flow,
    residual=residual,
  )


def warp_to_centre(
  model: FMANet, params: Params, frames: jax.Array, flow_mask: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
  """f^X from f^M, and frames [b t h w 3] warped by it; None and the frames without flow guidance.

  As released, not in the paper: f^X is predicted twice, the second time from the frames warped by
  the first.
  """
  if not model.flow_guided:
    return None, frames.astype(jnp.float32)
  first, _ = warp_images(frames, model.apply_r(params, "first_image_flow", flow_mask))
  image_flow = model.apply_r(params, "image_flow", flow_mask, first, frames)
  return image_flow, warp_images(frames, image_flow)[0]
