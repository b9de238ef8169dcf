"""Joining, padding and broadcasting of channels, the last axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def concatenate_channels(arrays: Sequence[jax.Array]) -> jax.Array:
  """Joins arrays [... c_i] of the same leading axes -> [... sum of c_i].

  XLA's CPU backend concatenates along the last axis on one core, along any other axis on all cores:
  so channels are concatenated as groups, along an axis before the last.
  """

  def join_groups(arrays: Sequence[jax.Array]) -> jax.Array:
    lead = arrays[0].shape[:-1]
    group = math.gcd(*(x.shape[-1] for x in arrays))
    joined = jnp.concatenate([x.reshape(*lead, -1, group) for x in arrays], axis=-2)
    return joined.reshape(*lead, -1)

  return lax.platform_dependent(
    arrays, cpu=join_groups, default=lambda arrays: jnp.concatenate(arrays, axis=-1)
  )


def pad_channels(x: jax.Array, count: int) -> jax.Array:
  """[... c] -> [... c+count], the last channels zero."""
  return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, count),))


def broadcast_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
  """[c] -> [1 ... 1 c], of x's rank and type."""
  return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
