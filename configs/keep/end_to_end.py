"""Stages II and III of KEEP in one, which the paper names as simpler: all losses from the start.

python -m keep_jax.train --config configs/keep/end_to_end.py --workdir runs/end_to_end \
        --config.init_from runs/vqgan,flow=weights/gmflow --config.data.root data/vfhq/512/1.0.0
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config() -> ConfigDict:
  """The locked recipe: stage III's, with as many steps as II and III have."""
  return base.defaults("end_to_end")
