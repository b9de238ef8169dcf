"""Validation while training: RGB PSNR as the released code measures it, and LPIPS.

The trainer makes batches of the validation clips, every 15th frame as released, and says how its
stage restores them:

  batches = face_pipeline.evaluation_batches(
    clips, low_quality=PRESETS["mild"], interval=15, size=model.arch.image_size)
  evaluate = make_validation(restoration(model), batches, lpips.load())
  evaluate(params, step)   # {"psnr": dB, "lpips": ...}
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keep_jax.model import KEEP, Params, clip_flows, restore_clip, to_uint8
from vsr_jax import lpips
from vsr_jax.errors import UserError
from vsr_jax.metrics import Metric, Score, Sums
from vsr_jax.metrics.sums import PSNR, mean_over_clips

LPIPS = Metric("lpips", "LPIPS", 4, False, "lpips")

Batch = Mapping[str, Any]
Apply = Callable[[Params, Batch], jax.Array]


def restoration(model: KEEP) -> Apply:
  """How stages II and III restore a batch: `(params, batch) -> [b t size size 3]` in [-1, 1].

  As `restore_clip` does with chunks of a clip; low-quality frames are enlarged bilinearly before.
  """

  def apply(params: Params, batch: Batch) -> jax.Array:
    frames = to_signed(batch["lq"])
    b, t = frames.shape[:2]
    size = model.arch.image_size
    frames = jax.image.resize(frames, (b, t, size, size, 3), "linear", antialias=False)
    return restore_clip(model, params, frames, clip_flows(model, params, frames))[0].image

  return apply


def to_signed(images: jax.Array) -> jax.Array:
  """uint8 images -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1


def make_validation(
  apply: Apply, batches: Sequence[Batch], lpips_params: lpips.Params | None = None
) -> Callable[[Params, int], dict[str, float]]:
  """Makes a trainer's evaluation of fixed batches.

  Args:
    apply: `(params, batch) -> restored`, [b t size size 3] in [-1, 1], whose shape is that of the
      batch's "gt"; compiled together with the metrics.
    batches: what `data_prep.face_pipeline.evaluation_batches` makes. They are read once, here, so
      that damaged data are told before training, and are kept: 0.8 MB a frame of 512 pixels.
    lpips_params: from `lpips.load`; None leaves LPIPS out.

  Returns:
    `(params, step) -> {"psnr": dB, "lpips": ...}`: means over the frames of a clip, then over
    clips. PSNR is of frames as uint8, without a border.

  Raises:
    UserError: there is no batch, or one cannot be read.
  """
  kept = [batches[i] for i in range(len(batches))]
  if not any(batch["mask"].any() for batch in kept):
    raise UserError("the validation set has no frame; name another one")
  metrics = [PSNR] if lpips_params is None else [PSNR, LPIPS]

  @jax.jit
  def measure(params, lpips_params, batch):
    truth, restored = batch["gt"], apply(params, batch)
    if restored.shape != truth.shape:
      raise ValueError(f"restored to {restored.shape}, but the truth is {truth.shape}")
    return {
      "psnr": _psnr(to_uint8(restored), truth),
      **({} if lpips_params is None else {"lpips": _lpips(lpips_params, restored, truth)}),
    }

  def evaluate(params: Params, step: int) -> dict[str, float]:
    del step
    scores: collections.defaultdict[int, Score] = collections.defaultdict(Score)
    for batch in kept:
      images = {name: batch[name] for name in ("gt", "lq")}
      values = jax.device_get(measure(params, lpips_params, images))
      for i, (clip, mask) in enumerate(zip(batch["clip"], batch["mask"], strict=True)):
        sums = {name: Sums.of(x[i][mask]) for name, x in values.items()}
        scores[int(clip)] += Score(int(mask.sum()), sums)
    return mean_over_clips(metrics, scores.values())

  return evaluate


def _psnr(restored: jax.Array, truth: jax.Array) -> jax.Array:
  """RGB PSNR in dB of uint8 frames [b t h w 3]: [b t], infinite where they are equal."""
  error = restored.astype(jnp.float32) - truth.astype(jnp.float32)
  return 20 * math.log10(255) - 10 * jnp.log10(jnp.square(error).mean((2, 3, 4)))


def _lpips(params: lpips.Params, restored: jax.Array, truth: jax.Array) -> jax.Array:
  """LPIPS of frames [b t h w 3], restored in [-1, 1] and true as uint8: [b t], one at a time."""

  def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    a, b = (x[None] for x in pair)
    return lpips.distance(params, jnp.clip(a.astype(jnp.float32), -1, 1), to_signed(b))[0]

  b, t = truth.shape[:2]
  flat = [x.reshape(b * t, *x.shape[2:]) for x in (restored, truth)]
  return lax.map(one, tuple(flat)).reshape(b, t)
