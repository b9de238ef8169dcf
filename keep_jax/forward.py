"""The passes through KEEP that training and its validation make, from a batch's uint8 images."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from keep_jax.model import KEEP, Observation, Params, Restored, clip_flows, restore_clip
from keep_jax.vqgan import quantize
from vsr_jax.ops.resize import resize_bilinear
from vsr_jax.train.stage import Batch

Flows = Callable[[KEEP, Params, jax.Array], jax.Array]  # such as `clip_flows`


def to_signed(images: jax.Array) -> jax.Array:
  """uint8 images -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1


def enlarge(model: KEEP, frames: jax.Array) -> jax.Array:
  """Low-quality frames [b t h w 3] at the size of the output, bilinearly."""
  b, t, h, _, _ = frames.shape
  if h == model.arch.image_size:
    return frames
  scale = model.arch.image_size // h
  large = resize_bilinear(frames.reshape(b * t, *frames.shape[2:]), scale)
  return large.reshape(b, t, *large.shape[1:])


def reconstruct(
  model: KEEP, params: Params, images: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The VQGAN up to the generator's last convolution.

  Args:
    model: the model.
    params: hq_encoder, codebook and generator.
    images: [b h w 3] in [-1, 1].

  Returns:
    The latents [b h' w' emb_dim], what the last convolution sees [b h w width], the codebook loss,
    a scalar, and the code indices [b h' w'].
  """
  latent, _ = model.encoder.apply({"params": params["hq_encoder"]}, images)
  quantized, codebook_loss, indices = quantize(latent, params["codebook"])
  feature = model.generator.apply(
    {"params": params["generator"]}, quantized.astype(model.dtype), method="last_feature"
  )
  return latent, feature, codebook_loss, indices


def reconstruct_images(model: KEEP, params: Params, images: jax.Array) -> jax.Array:
  """Stage I's output [b h w 3] for good images [b h w 3], both in [-1, 1]; not clipped."""
  _, feature, _, _ = reconstruct(model, params, images)
  return model.generator.apply({"params": params["generator"]}, feature, method="to_image")


def restore_batch(
  model: KEEP, params: Params, batch: Batch, *, remat: bool = False, flows: Flows = clip_flows
) -> tuple[Restored, Observation, jax.Array, jax.Array]:
  """Restored frames, observations, gains and flows of a batch's low-quality clips.

  Args:
    model: the model.
    params: its sub-networks'.
    batch: "lq" uint8 RGB [b t h w 3], enlarged here where it is smaller than the output.
    remat: recompute a frame's activations in the backward pass.
    flows: gives the flows of the enlarged clips.
  """
  frames = enlarge(model, to_signed(batch["lq"]))
  found = flows(model, params, frames)
  return *restore_clip(model, params, frames, found, remat=remat), found
