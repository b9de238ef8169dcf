"""Stage 1 as the released code trains it: 400 epochs of 3,258 iterations.

The rate is halved after 260, 360, 380 and 390 epochs (65, 90, 95 and 97.5 %), where the paper
says 70, 85 and 95 % of 300k iterations.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.fmanet import base

EPOCH = 3_258  # 266 clips of 98 windows in batches of 8
BOUNDARIES = tuple(epochs * EPOCH for epochs in (260, 360, 380, 390))


def get_config() -> ConfigDict:
  """The locked recipe."""
  c = base.defaults()
  c.steps = 400 * EPOCH
  c.optim.net_d.boundaries = c.optim.net_r.boundaries = BOUNDARIES
  return c.lock()
