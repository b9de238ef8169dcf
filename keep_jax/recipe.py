"""Checks of a recipe of KEEP before data are read, and what follows from its values alone."""

from __future__ import annotations

from collections.abc import Sequence

import optax
from ml_collections import ConfigDict

from keep_jax.stages import OPPOSED, TRAINED, Options
from vsr_jax import lpips
from vsr_jax.errors import UserError
from vsr_jax.flow.estimators import ESTIMATORS
from vsr_jax.train import recipe
from vsr_jax.train.schedules import cosine_schedule, step_schedule

STARTS = ("identity", "as_released")  # of CFT and CFA


def check(
  config: ConfigDict, presets: Sequence[str], own_frames: str, devices: int | None = None
) -> None:
  """Checks every value but those of the model, which `Architecture` checks.

  Args:
    config: as `configs.keep.base.defaults` describes it.
    presets: names of the degradations.
    own_frames: what stands for a validation set's own low-quality frames instead.
    devices: how many the step is compiled for, where it does not run; None: those that are there.

  Raises:
    UserError: its line names each wrong value and what it must be.
  """
  conditions = {
    "stage": recipe.one_of(tuple(TRAINED)),
    "data.frames": recipe.at_least(2),
    "data.reverse": recipe.between(0, 1),
    "data.degradation": recipe.one_of(presets),
    "data.validation_degradation": recipe.one_of((*presets, own_frames)),
    "data.intervals": recipe.Condition(
      "distances in frames, at least 1, such as (1,2,3)",
      lambda x: len(x) > 0 and all(type(n) is int and n >= 1 for n in x),
    ),
    "loss.perceptual_network": recipe.one_of(("vgg16", "alexnet")),
    "loss.temporal_flow": recipe.one_of(tuple(ESTIMATORS)),
    "loss.perceptual_weights": recipe.Condition("a path", lambda x: isinstance(x, str)),
    "discriminator.width": recipe.between(1, 1024),
    "discriminator.layers": recipe.between(1, 8),
    "discriminator.start": recipe.at_least(0),
    "train.fusion_start": recipe.one_of(STARTS),
    "train.restart_below": recipe.between(0, 1),
    "train.evaluate_interval": recipe.at_least(1),
    "train.best": recipe.one_of(("psnr", "lpips")),
  }
  recipe.check(config, conditions)
  for name, rate in config.optim.items():
    if rate.end is not None and rate.boundaries:
      raise UserError(
        f"optim.{name}.end = {rate.end}: is a fall by a cosine; set optim.{name}.boundaries to ()"
      )
  _check_sizes(config)
  frames = 1 if config.stage == "vqgan" else config.data.frames
  # Bytes of the good and the low-quality frames as float32, which they are made at once.
  recipe.check_batch(
    config, 4 * 3 * 2 * frames * config.model.image_size**2, "data.frames", devices
  )


def _check_sizes(config: ConfigDict) -> None:
  """Checks that networks beside the model fit its sizes."""
  model, stage, loss = config.model, config.stage, config.loss
  size, layers = model.image_size, config.discriminator.layers
  if stage in ("fusion", "end_to_end"):
    sides = {*model.cft, *model.cfa}
    if not sides:
      raise UserError(f"model.cft = (), model.cfa = (): stage {stage!r} trains them; name sides")
    if loss.temporal and loss.temporal_side not in sides:
      raise UserError(
        f"loss.temporal_side = {loss.temporal_side}: must be one of {sorted(sides)}, the sides of "
        "features with CFT or CFA"
      )
  if stage == "vqgan" and model.gain == "none":
    raise UserError(
      "model.gain = 'none': such a model has no encoder of good frames, which stage 'vqgan' "
      "trains; leave it out, all variants start from one run of that stage"
    )
  if stage == "vqgan" and size < 3 * 2**layers:  # two more convolutions make it smaller by 1 each
    raise UserError(
      f"discriminator.layers = {layers}: too many for model.image_size = {size}, which must be at "
      f"least {3 * 2**layers}"
    )
  if size < (least := lpips.MIN_SIDE[loss.perceptual_network]):
    raise UserError(f"model.image_size = {size}: must be at least {least}, LPIPS's smallest image")


def uses_lpips(config: ConfigDict) -> bool:
  """Whether the stage's loss has LPIPS in it."""
  return config.stage != "prediction" and config.loss.perceptual > 0


def options(config: ConfigDict) -> Options:
  """What the stage's loss needs to know."""
  names = ["pixel", "perceptual", "adversarial", "codebook", "code", "cross_entropy", "temporal"]
  return Options(
    weights={name: config.loss[name] for name in names},
    adaptive=config.loss.adaptive,
    double_normalised=config.loss.double_normalised,
    temporal_side=config.loss.temporal_side,
    temporal_flow=config.loss.temporal_flow,
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
