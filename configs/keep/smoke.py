"""Two steps of any stage with a tiny model: a check of data and machine in minutes.

    python -m keep_jax.train --config configs/keep/smoke.py:vqgan --workdir runs/smoke_vqgan \
        --config.data.root DATA
    python -m keep_jax.train --config configs/keep/smoke.py:prediction --workdir runs/smoke_2 \
        --config.init_from runs/smoke_vqgan --config.data.root DATA
    python -m keep_jax.train --config configs/keep/smoke.py:fusion --workdir runs/smoke_3 \
        --config.init_from runs/smoke_2 --config.data.root DATA

DATA is a built set, a clip set or a folder of aligned clips. There is no flow network and no LPIPS,
so that no weights are needed.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config(stage: str = "vqgan") -> ConfigDict:
  """The locked recipe of one of the stages of `base.STAGES`."""
  c = base.defaults(stage)
  c.steps = 2
  c.model.update(image_size=64, width=32, multiples=(1, 1, 1), res_blocks=1, emb_dim=32, codes=16)
  c.model.update(dim=32, heads=2, layers=1, gain_head_dim=8, gain_layers=1, flow="none")
  c.model.update(cfa_heads=2, cfa_head_dim=16)
  if stage in ("fusion", "end_to_end"):
    c.model.update(cft=(16, 32), cfa=(16,))
  c.data.update(batch=8, frames=3, intervals=(1, 2), workers=1)
  c.loss.perceptual = 0.0
  c.loss.temporal_side = 16
  c.loss.temporal_flow = "none"
  c.optim.networks.boundaries = ()
  c.discriminator.update(width=8, layers=2, start=1)
  c.train.update(log_every=1, image_every=2, checkpoint_every=2, evaluate_every=2)
  return c
