"""Learning-rate schedules: step -> rate."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax


def step_schedule(
  lr: float, boundaries: Sequence[int], factor: float = 0.5, start: int = 0, speed: float = 1
) -> optax.Schedule:
  """Multiplies the learning rate by `factor` at every boundary.

  Args:
    lr: rate of the first steps.
    boundaries: schedule steps at which the rate changes.
    factor: what the rate is multiplied by at each boundary.
    start: the schedule's step at the first training step (FMA-Net's released stage 2 continues the
      schedule from stage 1's best checkpoint).
    speed: schedule steps per training step (2 for Net^D in FMA-Net's released stage 2).

  Returns:
    step -> rate.
  """
  edges = jnp.asarray(tuple(boundaries), jnp.float32)

  def schedule(step):
    at = start + speed * jnp.asarray(step, jnp.float32)
    return jnp.float32(lr) * jnp.float32(factor) ** jnp.sum(at >= edges).astype(jnp.float32)

  return schedule


def cosine_schedule(lr: float, end: float, steps: int) -> optax.Schedule:
  """Half a cosine from `lr` at step 0 down to `end` at `steps`, and `end` from there on."""

  def schedule(step):
    part = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1)
    return end + (lr - end) * 0.5 * (1 + jnp.cos(jnp.pi * part))

  return schedule
