"""The demonstration weights: a small model that two CPU cores train in hours.

    python -m fmanet_jax.train --config configs/fmanet/demo.py:degradation --workdir runs/demo_d \
        --config.data.root data/train --config.data.validation data/val
    python -m fmanet_jax.train --config configs/fmanet/demo.py:joint --workdir runs/demo \
        --config.init_from runs/demo_d --config.data.root data/train \
        --config.data.validation data/val

`python -m fmanet_jax.demo_weights` does both, and the data before. docs/demo_weights.md has the
clips, the training time and the scores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.fmanet import base

# "end_to_end" is of the ablation, as long as the stage that it stands for.
STEPS = {"degradation": 500, "joint": 12_000, "end_to_end": 12_000}


def get_config(stage: str = "degradation") -> ConfigDict:
  """The locked recipe of a stage."""
  if stage not in STEPS:
    raise ValueError(f"{stage!r} is no stage: must be one of {', '.join(STEPS)}")
  c = base.defaults()
  c.stage = stage
  c.steps = STEPS[stage]

  c.model.dim = 24
  c.model.kernel_down = 8
  c.model.flows = 4
  c.model.frma_blocks = 2
  c.model.rdb_blocks = 4
  c.model.growth = 12
  c.model.dense_layers = 3
  c.model.attention_blocks = 1
  c.model.heads = 2

  # A short run: smaller crops, larger steps, and an average of the weights.
  c.data.crop = 48
  c.data.batch = 4
  c.data.workers = 1
  c.train.ema_decay = 0.999
  c.train.clip_norm = 1.0
  for net in ("net_d", "net_r"):
    c.optim[net].lr = 1e-3
    c.optim[net].boundaries = tuple(int(part * c.steps) for part in (0.7, 0.85, 0.95))
  c.train.log_every = 50
  c.train.image_every = 500
  c.train.checkpoint_every = 250
  c.train.evaluate_every = 500
  c.train.evaluate_windows = 48
  return c.lock()
