"""Stage II as the released code trains it.

Its L1 loss of the frames is left out: the argmax between logits and frames stops its gradient. Red
and blue are exchanged on the way through the codec, as in its data.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  c = base.defaults("prediction")
  c.data.degradation = "train_as_released"
  c.data.validation_degradation = "low_quality"
  c.steps = 500_000
  c.optim.networks.boundaries = (200_000, 400_000)
  return c
