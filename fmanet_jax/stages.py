"""The two training stages of FMA-Net (Sec. 3.5): Net^D alone, then both networks.

All losses are L1 means. A batch is what `data_prep.blur_pipeline` yields: "blurry" and "sharp_lr"
uint8 [b t h w 3], "sharp" uint8 [b t sh sw 3] and, where the flow loss is used, "flow" float32
[b t h w 2], RAFT's flow from the centre frame to each frame in LR pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fmanet_jax.model import FMANet, degrade, learn_degradation, restore
from vsr_jax.losses import l1
from vsr_jax.train.stage import Stage

LossWeights = Mapping[str, float]


def to_unit(images: jax.Array) -> jax.Array:
  """uint8 images -> float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255


def _unit_batch(batch):
  blurry, sharp, sharp_lr = (to_unit(batch[k]) for k in ("blurry", "sharp", "sharp_lr"))
  flow = batch["flow"].astype(jnp.float32) if "flow" in batch else None
  return blurry, sharp, sharp_lr, flow


def _centre(frames: jax.Array) -> jax.Array:
  """The centre frame [b 1 h w c] of a window [b t h w c]."""
  c = frames.shape[1] // 2
  return frames[:, c : c + 1]


def _terms_d(degradation, recon, warped, batch) -> dict[str, jax.Array]:
  """The unweighted terms of L_D (Eq. 8)."""
  blurry, sharp, sharp_lr, flow = batch
  terms = {
    "recon": l1(recon, _centre(blurry)[:, 0]),
    "anchor_d": l1(degradation.anchors, sharp_lr),
  }
  if degradation.image_flow is not None:
    # Masked pixels count too, which draws the masks to 1 where the warp is right.
    terms["hr_warp"] = l1(warped, jnp.broadcast_to(_centre(sharp), sharp.shape))
    if flow is not None:  # an ablation without it has no labels
      terms["flow"] = l1(degradation.image_flow[..., :2], flow)
  return terms


def _total(
  terms: dict[str, jax.Array], weights: LossWeights
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum, and each weighted term for the logs."""
  weighted = {name: weights[name] * term for name, term in terms.items()}
  return sum(weighted.values(), start=jnp.zeros(())), weighted


def degradation_loss(model: FMANet, weights: LossWeights) -> Callable:
  """L_D of stage 1 (Eq. 8): reconstruction, HR warp, RAFT pseudo ground truth, TA loss.

  Args:
    model: the model.
    weights: of "recon" (1 in the paper), "hr_warp" (lambda_1), "flow" (lambda_2) and "anchor_d"
      (lambda_3, the TA loss); 0 removes a term's influence.

  Returns:
    `(params, batch, keys) -> (total, weighted terms)`.
  """

  def loss(params, batch, keys):
    del keys  # nothing random
    batch = _unit_batch(batch)
    degradation = learn_degradation(model, params, batch[0])
    recon, warped = degrade(model, degradation, batch[1])
    return _total(_terms_d(degradation, recon, warped, batch), weights)

  return loss


def joint_loss(model: FMANet, weights: LossWeights) -> Callable:
  """L_total of stage 2 (Eq. 9): restoration, LR warp, TA loss, and L_D.

  Nothing is detached: the restoration trains Net^D too, through F, f and K^D.

  Args:
    model: the model.
    weights: of "restoration" (1 in the paper), "lr_warp" (lambda_4), "anchor_r" (lambda_5, the TA
      loss), and those of `degradation_loss`, each already multiplied by lambda_6.

  Returns:
    `(params, batch, keys) -> (total, weighted terms)`.
  """

  def loss(params, batch, keys):
    del keys
    batch = _unit_batch(batch)
    blurry, sharp, sharp_lr, _ = batch
    degradation = learn_degradation(model, params, blurry)
    recon, warped = degrade(model, degradation, sharp)
    restoration = restore(model, params, blurry, degradation)
    terms = _terms_d(degradation, recon, warped, batch)
    terms["restoration"] = l1(restoration.output, _centre(sharp)[:, 0])
    terms["anchor_r"] = l1(restoration.anchors, sharp_lr)
    if model.arch.filtering == "flow_guided":
      terms["lr_warp"] = l1(restoration.warped, jnp.broadcast_to(_centre(blurry), blurry.shape))
    return _total(terms, weights)

  return loss


def make_images(model: FMANet, joint: bool) -> Callable:
  """Makes `Stage.images`: columns input, reconstruction, output (stage 2) and truth, in [0, 1]."""

  def images(params, batch):
    blurry, sharp, *_ = _unit_batch(batch)
    degradation = learn_degradation(model, params, blurry)
    recon, _ = degrade(model, degradation, sharp)
    columns = {"input": _centre(blurry)[:, 0], "reconstruction": recon}
    if joint:
      columns["output"] = restore(model, params, blurry, degradation).output
    columns["truth"] = _centre(sharp)[:, 0]
    return {name: jnp.clip(x, 0, 1) for name, x in columns.items()}

  return images


def make_stage(
  name: str, model: FMANet, weights: LossWeights, schedules: Mapping[str, optax.Schedule]
) -> Stage:
  """One of the stages "degradation", "joint" and "end_to_end" (the joint loss from scratch).

  Args:
    name: the stage's name.
    model: the model.
    weights: loss term -> weight.
    schedules: network to be trained -> its learning-rate schedule; Adam with PyTorch's defaults.

  Returns:
    The `Stage`.
  """
  loss = degradation_loss if name == "degradation" else joint_loss
  return Stage(
    name=name,
    loss=loss(model, weights),
    optimizers={net: optax.adam(schedule, eps=1e-8) for net, schedule in schedules.items()},
    images=make_images(model, joint=name != "degradation"),
    schedules=schedules,
  )
