"""Stage 2 as the released code trains it, its scheduler's behaviour included.

At the end of each epoch the released code steps Net^D's schedule twice and Net^R's never: the rate
of Net^R stays at 2e-4, and that of Net^D goes on at double speed from where stage 1's best
checkpoint was. Set `optim.net_d.start` to that checkpoint's step; here it is stage 1's end, when
every boundary is past. (The released code carries over Adam's moments as well; here they start
anew.)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vsr_jax.configs.fmanet.as_released import degradation


def get_config() -> ConfigDict:
  """The locked recipe."""
  c = degradation.get_config()
  c.stage = "joint"
  c.optim.net_d.start = c.steps
  c.optim.net_d.speed = 2
  c.optim.net_r.boundaries = ()
  return c
