"""Stage 2 of FMA-Net, the paper's recipe: Net^D and Net^R together, from stage 1's Net^D.

    python -m fmanet_jax.train --config configs/fmanet/joint.py --workdir runs/joint \
        --config.init_from runs/degradation --config.data.root data/REDS

Expected on REDS4: 28.83 dB, SSIM 0.8315, tOF 1.92 (paper, Table 1). The authors report about a
week on one A100.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.fmanet import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  c = base.defaults()
  c.stage = "joint"
  return c.lock()
