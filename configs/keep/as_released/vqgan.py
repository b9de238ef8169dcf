"""Stage I as the released code trains it.

L1 and LPIPS of weight 1, LPIPS of images normalised twice, and VQGAN's adaptive weight times 0.8
for the adversarial term.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.keep import base


def get_config() -> ConfigDict:
  """The locked recipe."""
  c = base.defaults("vqgan")
  c.steps = 1_600_000
  c.loss.pixel = 1.0
  c.loss.double_normalised = True
  c.loss.adversarial = 0.8
  c.loss.adaptive = True
  for net in ("networks", "discriminator"):
    c.optim[net].lr = 7e-5
    c.optim[net].end = 6e-5
  return c
