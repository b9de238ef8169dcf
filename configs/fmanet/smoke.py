"""Four steps of either stage with a tiny model: a check of data and machine in minutes.

    python -m fmanet_jax.train --config configs/fmanet/smoke.py:degradation --workdir runs/smoke_d \
        --config.data.root DATA --config.data.validation DATA
    python -m fmanet_jax.train --config configs/fmanet/smoke.py:joint --workdir runs/smoke \
        --config.init_from runs/smoke_d --config.data.root DATA --config.data.validation DATA

DATA is a clip set, REDS, or a built data set's folder, with flow labels. More than four devices
need a larger --config.data.batch.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.fmanet import demo


def get_config(stage: str = "degradation") -> ConfigDict:
  """The locked recipe of a stage."""
  c = demo.get_config(stage).unlock()
  c.steps = 4
  c.model.update(dim=6, kernel_down=4, kernel_up=3, flows=2, frma_blocks=1)
  c.model.update(rdb_blocks=1, growth=2, dense_layers=1, heads=1)
  c.data.update(crop=16, batch=4, workers=1)
  for net in ("net_d", "net_r"):
    c.optim[net].boundaries = (2, 3)
  c.train.update(log_every=1, image_every=4, checkpoint_every=4)
  c.train.update(evaluate_every=4, evaluate_windows=4)
  return c.lock()
