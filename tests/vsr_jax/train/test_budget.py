"""Steps from minutes: what is timed, how many there are, and what a recipe of that length is."""

from __future__ import annotations

import json

from vsr_jax.configs.keep import demo
from vsr_jax.train import budget
from vsr_jax.train.budget import StagePlan


def test_steps_follow_from_the_minutes():
  assert budget.count_steps(600, 0.5, 40) == (600 - 12 * 0.5 - 100) / 0.5
  assert budget.count_steps(60, 0.5, 40) == budget.LEAST_STEPS


def test_the_first_two_steps_are_not_timed(tmp_path):
  seconds = [50, 53, 54, 55, 56, 57]
  rows = [{"step": i, "seconds": x} for i, x in enumerate(seconds, 1)]
  rows.append({"step": 6, "seconds": 80, "evaluation/psnr": 9.0})
  (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  assert budget.read_timing(tmp_path, 90) == (1.0, 84.0)


def test_a_recipe_gets_its_length():
  config = demo.get_config("vqgan")
  budget.apply(config, StagePlan(2000, 32, 16, 0.05, 30.0))
  assert (config.steps, config.data.batch, config.data.workers) == (2000, 32, 16)
  assert config.discriminator.start == 1000  # 4,000 of 8,000
  assert config.train.ema_decay == 0.998
  assert config.train.checkpoint_every == 2000
  budget.apply(config, StagePlan(200, 4, 1, 2.0, 30.0))
  assert config.train.ema_decay == 0.98
  assert config.train.checkpoint_every == 150
