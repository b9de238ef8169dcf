"""Stage II of KEEP, the paper's recipe: code prediction with the Kalman filter, on clips.

python -m keep_jax.train --config configs/keep/prediction.py --workdir runs/prediction \
        --config.init_from runs/vqgan,flow=weights/gmflow --config.data.root data/vfhq/512/1.0.0
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  return base.defaults("prediction")
