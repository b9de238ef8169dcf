"""The demonstration weights: a KEEP that is small enough to be trained on two CPU cores.

    python -m keep_jax.train --config configs/keep/demo.py:vqgan --workdir runs/demo_vqgan \
        --config.data.root data/demo_faces/train
    python -m keep_jax.train --config configs/keep/demo.py:prediction \
        --workdir runs/demo_prediction --config.init_from runs/demo_vqgan \
        --config.data.root data/demo_faces/train
    python -m keep_jax.train --config configs/keep/demo.py:fusion --workdir runs/demo_fusion \
        --config.init_from runs/demo_prediction --config.data.root data/demo_faces/train

`python -m keep_jax.demo_weights` does all of it within a given time. docs/demo_weights.md has the
data, the training time and the scores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base

# "end_to_end" is of the ablation, as long as the two stages that it stands for.
STEPS = {"vqgan": 8_000, "prediction": 4_000, "fusion": 1_000, "end_to_end": 5_000}


def get_config(stage: str = "vqgan") -> ConfigDict:
  """The locked recipe of a stage."""
  if stage not in STEPS:
    raise ValueError(f"{stage!r} is no stage: must be one of {', '.join(STEPS)}")
  c = base.defaults(stage)
  c.steps = STEPS[stage]

  c.model.update(image_size=128, width=32, multiples=(1, 2, 2, 3), res_blocks=1)
  c.model.update(emb_dim=64, codes=512, dim=128, heads=4, layers=4)
  c.model.update(gain_head_dim=16, gain_layers=1, flow="raft_small")
  c.model.update(cfa_head_dim=32)
  if stage in ("fusion", "end_to_end"):
    c.model.update(cft=(16, 32), cfa=(16, 32))

  c.data.batch = 4 if stage == "vqgan" else 1
  c.data.frames = 6
  c.data.intervals = (1, 2)
  c.data.workers = 1
  c.data.validation_degradation = "train"

  c.loss.perceptual_network = "alexnet"
  c.loss.pixel = 1.0
  c.loss.temporal_flow = "raft_small"
  c.loss.adaptive = stage == "vqgan"
  c.loss.adversarial = 0.8 if stage == "vqgan" else 1e-2
  c.optim.networks.lr = 4e-4
  c.optim.networks.boundaries = ()
  c.optim.networks.end = 4e-5
  c.optim.discriminator.lr = 2e-4
  c.discriminator.width = 32 if stage == "vqgan" else 16
  c.discriminator.layers = 3
  # A discriminator that starts early keeps a small codebook from forming.
  c.discriminator.start = {"vqgan": 4_000, "fusion": 100, "end_to_end": 500}.get(stage, 0)
  if stage == "vqgan":
    c.train.restart_below = 0.02
  c.train.clip_norm = 1.0
  c.train.ema_decay = 0.998
  c.train.log_every = 50
  c.train.image_every = 1_000
  c.train.checkpoint_every = 250
  c.train.evaluate_every = 1_000
  return c
