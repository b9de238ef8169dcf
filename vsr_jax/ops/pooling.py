"""Max pooling of images [b h w c] without padding."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
  """The maximum of each size x size window, every `stride` pixels.

  Equal to `max_pool_definition`, as maxima of strided slices: XLA's CPU backend takes 60 times as
  long for the definition's gradient (0.165 s instead of 0.0026 s for [4 128 128 64], 2x2). Where
  several pixels of a window are its maximum they share the gradient; the definition gives it to
  the first.

  Args:
    x: [b h w c], sides at least `size`.
    size: side of the windows.
    stride: distance of their starts.

  Returns:
    [b (h - size) // stride + 1 (w - size) // stride + 1 c].
  """
  for axis in (1, 2):
    count = (x.shape[axis] - size) // stride + 1
    last = stride * (count - 1) + 1
    slices = [lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)]
    x = functools.reduce(jnp.maximum, slices)
  return x


def max_pool_definition(x: jax.Array, size: int, stride: int) -> jax.Array:
  """The definition of `max_pool`."""
  return nn.max_pool(x, (size, size), (stride, stride))
