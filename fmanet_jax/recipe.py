"""Checks of a recipe of FMA-Net before data are read."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from vsr_jax.train import recipe


def check(config: ConfigDict, stages: Sequence[str], devices: int | None = None) -> None:
  """Checks every value but those of the model, which `Architecture` checks.

  Args:
    config: as `configs.fmanet.base.defaults` describes it.
    stages: the names that `config.stage` may have.
    devices: how many the step is compiled for, where it does not run; None: those that are there.

  Raises:
    UserError: its line names each wrong value and what it must be.
  """
  conditions = {
    "stage": recipe.one_of(stages),
    "data.crop": recipe.at_least(1),
    "train.evaluate_windows": recipe.at_least(1),
  }
  recipe.check(config, conditions)
  pixels = config.model.frames * config.data.crop**2
  # Bytes: blurry, sharp_lr and sharp as uint8, and the flow as float32.
  size = pixels * (3 * (2 + config.model.scale**2) + 2 * 4)
  recipe.check_batch(config, size, "data.crop", devices)
