"""Stage III of KEEP, the paper's recipe: CFT and CFA, against a video discriminator.

    python -m keep_jax.train --config configs/keep/fusion.py --workdir runs/fusion \
        --config.init_from runs/prediction --config.data.root data/vfhq/512/1.0.0

Expected on the mildly degraded VFHQ-Test: LPIPS .1619, IDS .7960, AKD 8.82 (paper).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  return base.defaults("fusion")
