"""Checks of a recipe of KEEP before data are read, and what follows from its values alone."""

from __future__ import annotations

import optax
from ml_collections import ConfigDict

from keep_jax.stages import OPPOSED, TRAINED, Options
from vsr_jax.data_prep.face_degrade import PRESETS
from vsr_jax.errors import UserError
from vsr_jax.train import recipe
from vsr_jax.train.schedules import cosine_schedule, step_schedule

STARTS = ("identity", "as_released")  # of CFT and CFA


def check(config: ConfigDict) -> None:
  """Checks every value but those of the model, which `Architecture` checks.

  Args:
    config: as `configs.keep.base.defaults` describes it.

  Raises:
    UserError: its line names each wrong value and what it must be.
  """
  conditions = {
    "stage": recipe.one_of(tuple(TRAINED)),
    "data.frames": recipe.at_least(2),
    "data.reverse": recipe.between(0, 1),
    "data.degradation": recipe.one_of(tuple(PRESETS)),
    "data.intervals": recipe.Condition(
      "distances in frames, at least 1, such as (1,2,3)",
      lambda x: len(x) > 0 and all(type(n) is int and n >= 1 for n in x),
    ),
    "loss.perceptual_network": recipe.one_of(("vgg16", "alexnet")),
    "loss.perceptual_weights": recipe.Condition("a path", lambda x: isinstance(x, str)),
    "discriminator.width": recipe.between(1, 1024),
    "discriminator.layers": recipe.between(1, 8),
    "discriminator.start": recipe.at_least(0),
    "train.fusion_start": recipe.one_of(STARTS),
    "train.restart_below": recipe.between(0, 1),
    "train.evaluate_interval": recipe.at_least(1),
  }
  recipe.check(config, conditions)
  model, stage = config.model, config.stage
  if stage in ("fusion", "end_to_end") and not model.cft and not model.cfa:
    raise UserError(f"model.cft = (), model.cfa = (): stage {stage!r} has nothing to train in them")
  sides = {*model.cft, *model.cfa}
  if stage in ("fusion", "end_to_end") and config.loss.temporal_side not in sides:
    raise UserError(
      f"loss.temporal_side = {config.loss.temporal_side}: must be one of {sorted(sides)}, the "
      "sides of features with CFT or CFA"
    )
  frames = 1 if stage == "vqgan" else config.data.frames
  # Bytes of the good and the low-quality frames as float32, which they are made at once.
  recipe.check_batch(config, 4 * 3 * 2 * frames * model.image_size**2, "data.frames")


def options(config: ConfigDict) -> Options:
  """What the stage's loss needs to know."""
  names = ["pixel", "perceptual", "adversarial", "codebook", "code", "cross_entropy", "temporal"]
  return Options(
    weights={name: config.loss[name] for name in names},
    adaptive=config.loss.adaptive,
    double_normalised=config.loss.double_normalised,
    temporal_side=config.loss.temporal_side,
    remat=config.train.remat,
    restart_below=config.train.restart_below,
  )


def schedules(config: ConfigDict) -> dict[str, optax.Schedule]:
  """Learning rates by step, "networks" and "discriminator"."""

  def schedule(rate: ConfigDict) -> optax.Schedule:
    if rate.end is None:
      return step_schedule(rate.lr, rate.boundaries, rate.factor)
    return cosine_schedule(rate.lr, rate.end, config.steps)

  names = ("networks", "discriminator") if config.stage in OPPOSED else ("networks",)
  return {name: schedule(config.optim[name]) for name in names}
