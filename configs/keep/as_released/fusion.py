"""Stage III as the released code trains it.

Its initialisation sets all kernels of CFT and CFA to zero, so that only the last biases and the
norms get gradients (`train.fusion_start`): with it CFT and CFA cannot learn to use the encoder's
feature or the frame before. Red and blue are exchanged on the way through the codec.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  c = base.defaults("fusion")
  c.data.degradation = "train_as_released"
  c.data.validation_degradation = "low_quality"
  c.loss.pixel = 0.1
  c.loss.double_normalised = True
  c.optim.networks.lr = 2e-5
  c.optim.discriminator.lr = 1e-5
  c.train.fusion_start = "as_released"
  return c
