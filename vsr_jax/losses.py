"""Losses that both systems train with: scalars, means over all elements computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.named_scope("l1")
def l1(x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean absolute difference."""
  return jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32)).mean()


@jax.named_scope("l2")
def l2(x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean squared difference."""
  return jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)).mean()


@jax.named_scope("charbonnier")
def charbonnier(x: jax.Array, y: jax.Array, epsilon: float = 1e-12) -> jax.Array:
  """Mean of sqrt(d^2 + epsilon): the absolute difference d with a gradient at 0."""
  return jnp.sqrt(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)) + epsilon).mean()
