"""Maps that networks make of frames, such as gains and flows, as colours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def picture(image: jax.Array) -> np.ndarray:
  """RGB [h w 3] in [0, 1] as uint8."""
  return np.asarray(jnp.rint(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8))


def heat(x: jax.Array) -> jax.Array:
  """Values [b h w 1] in [0, 1] as RGB: black, red, yellow, white."""
  return jnp.clip(3 * x.astype(jnp.float32) - jnp.arange(3.0).reshape(1, 1, 1, 3), 0, 1)


def flow_colours(flow: jax.Array) -> jax.Array:
  """Flow [b h w 2] as RGB [b h w 3] in [0, 1]: the hue is its direction, white is no motion.

  The longest vector of each image has the full colour, but none shorter than a pixel has.
  """
  length = jnp.linalg.norm(flow, axis=-1, keepdims=True)
  length = length / jnp.maximum(length.max((1, 2), keepdims=True), 1.0)
  angle = jnp.arctan2(flow[..., 1], flow[..., 0])[..., None]
  phases = jnp.asarray([0, 2 * jnp.pi / 3, 4 * jnp.pi / 3], jnp.float32).reshape(1, 1, 1, 3)
  hue = 0.5 + 0.5 * jnp.cos(angle - phases)
  return 1 - length * (1 - hue)
