"""Flow-guided dynamic filtering (FGDF; FMA-Net, Sec. 3.3, Fig. 2) and occlusion-aware warping W.

Conventional dynamic filtering (Eq. 5) has a kernel for every output pixel. FGDF (Eq. 6) filters
frames that were first warped to the centre frame, so that a small kernel spans large motion. FGDF
with downsampling is here; with upsampling it is in `model.restore`. The filters themselves are in
vsr_jax/ops/dynamic_filter.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vsr_jax.ops.dynamic_filter import dynamic_downsample, normalise_down
from vsr_jax.ops.resize import resize_bilinear
from vsr_jax.ops.warp import backward_warp, resize_flow


def warp_images(
  images: jax.Array, flow_mask: jax.Array, scale: int = 1
) -> tuple[jax.Array, jax.Array]:
  """W of FMA-Net for images: backward warping by one flow-mask pair per frame, times the mask.

  Args:
    images: [b t sh sw 3].
    flow_mask: [b t h w 3], (dx, dy, mask logit) in LR pixels.
    scale: s of images over flow_mask. The flow and the mask, after its sigmoid, are resized
      bilinearly; the flow's vectors are multiplied by s.

  Returns:
    Warped images times the mask [b t sh sw 3], and their validity [b t sh sw 1]: the mask times
    the share of the sample's bilinear weights that lies inside the image. Both float32.
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


def warp_features(features: jax.Array, flow_mask: jax.Array) -> jax.Array:
  """W of Eq. 1 and 2 for features: backward warping by n flow-mask pairs, times the masks.

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


def flow_guided_downsample(
  sharp: jax.Array, image_flow: jax.Array | None, kernel_logits: jax.Array, scale: int
) -> tuple[jax.Array, jax.Array]:
  """FGDF with downsampling (Eq. 6): the blurry LR centre frame from sharp HR frames (Sec. 3.4).

  Args:
    sharp: [b t sh sw 3].
    image_flow: f^Y [b t h w 3] in LR pixels; None for conventional filtering.
    kernel_logits: K^D before the softmax, [b t h w k_d^2].
    scale: s.

  Returns:
    The blurry LR centre frame [b h w 3], and the warped frames times their masks [b t sh sw 3];
    without image_flow the latter are the sharp frames themselves.
  """
  weights = normalise_down(kernel_logits)
  if image_flow is None:
    return dynamic_downsample(sharp, weights, scale), sharp
  warped, validity = warp_images(sharp, image_flow, scale)
  # As released: divided by the equally filtered validity, so that masked pixels do not darken it.
  filtered = dynamic_downsample(jnp.concatenate([warped, validity], axis=-1), weights, scale)
  return filtered[..., :3] / (filtered[..., 3:] + 1e-8), warped
