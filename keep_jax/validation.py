"""Validation while training: RGB PSNR as the released code measures it, and LPIPS.

The trainer makes batches of the validation clips, every 15th frame as released, and says how its
stage makes images of them:

  batches = face_pipeline.evaluation_batches(
    clips, low_quality=PRESETS["mild"], interval=15, size=model.arch.image_size)
  evaluate = make_validation(restoration(model), batches, mesh, lpips.load())
  evaluate(params, step)   # {"psnr": dB, "lpips": ...}
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from keep_jax import forward
from keep_jax.model import KEEP, Params, to_uint8
from vsr_jax import lpips
from vsr_jax.errors import UserError
from vsr_jax.metrics import Score, Sums
from vsr_jax.metrics.sums import LPIPS, PSNR, mean_over_clips
from vsr_jax.sharding import place_batch, place_everywhere, replicated
from vsr_jax.train.stage import Batch

Apply = Callable[[Params, Batch], jax.Array]


def restoration(model: KEEP) -> Apply:
  """How a stage of clips restores a batch: `(params, batch) -> [b t size size 3]` in [-1, 1]."""
  return lambda params, batch: forward.restore_batch(model, params, batch)[0].image


def reconstruction(model: KEEP) -> Apply:
  """How stage I reconstructs a batch's good frames, one frame of each clip at a time."""

  def apply(params: Params, batch: Batch) -> jax.Array:
    frames = forward.to_signed(batch["gt"]).swapaxes(0, 1)
    images = lax.map(lambda x: forward.reconstruct_images(model, params, x), frames)
    return images.swapaxes(0, 1)

  return apply


def make_validation(
  apply: Apply, batches: Sequence[Batch], mesh: Mesh, lpips_params: lpips.Params | None = None
) -> Callable[[Mapping[str, Any], int], dict[str, float]]:
  """Makes a trainer's evaluation of fixed batches.

  Args:
    apply: `(params, batch) -> restored`, [b t size size 3] in [-1, 1], whose shape is that of the
      batch's "gt"; compiled together with the metrics.
    batches: this host's, what `data_prep.face_pipeline.evaluation_batches` makes. They are read
      once, here, so that damaged data are told before training, and are kept: 0.8 MB a frame of
      512 pixels.
    mesh: over whose data axis a batch is split.
    lpips_params: from `lpips.load`; None leaves LPIPS out.

  Returns:
    `(params, step) -> {"psnr": dB, "lpips": ...}`: means over the frames of a clip, then over
    clips; the same on all hosts. PSNR is of frames as uint8, without a border.

  Raises:
    UserError: there is no batch, or one cannot be read.
  """
  kept = [batches[i] for i in range(len(batches))]
  if not kept:
    raise UserError("the validation set has no frame; name another one")
  metrics = [PSNR] if lpips_params is None else [PSNR, LPIPS]
  lpips_params = place_everywhere(mesh, lpips_params)

  def measure(params, lpips_params, batch):
    truth, restored = batch["gt"], apply(params, batch)
    if restored.shape != truth.shape:
      raise ValueError(f"restored to {restored.shape}, but the truth is {truth.shape}")
    values = {"psnr": _psnr(to_uint8(restored), truth)}
    if lpips_params is not None:
      values["lpips"] = _lpips(lpips_params, restored, truth)
    return batch["clip"], batch["mask"], values  # those of all hosts

  # What comes out is small, and whole on every host.
  measure = jax.jit(measure, out_shardings=replicated(mesh))

  def evaluate(params: Mapping[str, Any], step: int) -> dict[str, float]:
    del step
    scores: collections.defaultdict[int, Score] = collections.defaultdict(Score)
    for batch in kept:
      found = measure(params, lpips_params, place_batch(mesh, batch))
      clips, masks, values = jax.tree.map(np.asarray, found)
      for i, (clip, mask) in enumerate(zip(clips, masks, strict=True)):
        sums = {name: Sums.of(x[i][mask]) for name, x in values.items()}
        scores[int(clip)] += Score(int(mask.sum()), sums)
    return mean_over_clips(metrics, scores.values())

  return evaluate


def _psnr(restored: jax.Array, truth: jax.Array) -> jax.Array:
  """RGB PSNR in dB of uint8 frames [b t h w 3]: [b t], infinite where they are equal."""
  error = restored.astype(jnp.float32) - truth.astype(jnp.float32)
  return 20 * math.log10(255) - 10 * jnp.log10(jnp.square(error).mean((2, 3, 4)))


def _lpips(params: lpips.Params, restored: jax.Array, truth: jax.Array) -> jax.Array:
  """LPIPS of frames [b t h w 3], restored in [-1, 1] and true as uint8: [b t].

  One frame of each clip at a time: a loop over clips would gather them from all devices.
  """

  def of_frames(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    a, b = pair
    return lpips.distance(params, jnp.clip(a.astype(jnp.float32), -1, 1), forward.to_signed(b))

  return lax.map(of_frames, (restored.swapaxes(0, 1), truth.swapaxes(0, 1))).T
