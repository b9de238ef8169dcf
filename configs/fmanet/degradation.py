"""Stage 1 of FMA-Net, the paper's recipe: Net^D alone.

    python -m fmanet_jax.train --config configs/fmanet/degradation.py --workdir runs/degradation \
        --config.data.root data/REDS

Adam, batch 8, 300k iterations, rate 2e-4 halved at 70, 85 and 95 % (paper, Sec. 4.1). The authors
report about 4 days on one A100.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.fmanet import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  return base.defaults().lock()
