"""Stage I of KEEP, the paper's recipe: the VQGAN on single aligned faces.

python -m keep_jax.train --config configs/keep/vqgan.py --workdir runs/vqgan \
        --config.data.root data/vfhq/512/1.0.0
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  return base.defaults("vqgan")
