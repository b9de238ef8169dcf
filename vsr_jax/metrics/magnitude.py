"""Scores by the magnitude of the truth's motion, in the ranges of FMA-Net's paper (Table 3).

The magnitude is the mean length, over all pixels, of RAFT's flow between consecutive frames. The
paper does not say at which size its flow was found; here lengths are in pixels of the truth.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# From, to (excluded), in pixels a frame, by the range's name.
RANGES = {"[0, 20)": (0.0, 20.0), "[20, 40)": (20.0, 40.0), "≥ 40": (40.0, math.inf)}

# What a table says below.
NOTE = (
  "By motion: by the mean length, in pixels, of the flow from a true frame to the one before; the "
  "first frame of a clip counts in the total only."
)


def magnitude(flow: jax.Array) -> jax.Array:
  """The mean length of a flow's vectors, [... h w 2] -> [...], in its unit, float32."""
  return jnp.linalg.norm(flow.astype(jnp.float32), axis=-1).mean((-2, -1))


def range_of(length: float) -> str | None:
  """The name of the range in `RANGES` that a magnitude lies in; None of one that is not finite."""
  for name, (low, high) in RANGES.items():
    if low <= length < high:
      return name
  return None
