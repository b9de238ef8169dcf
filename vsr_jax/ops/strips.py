"""Applying a local image function to horizontal strips, to bound its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax


def by_strips(
  function: Callable[..., jax.Array],
  arrays: Sequence[jax.Array],
  *,
  rows: int,
  halo: int,
  scale: int,
) -> jax.Array:
  """Applies a local function to strips of rows, one after the other; the result is the same.

  A strip has `halo` more rows on either side. At the image's border it has none beyond it: there
  the function pads as it does for the whole image.

  Args:
    function: arrays [... h w c] -> [b scale*h scale*w d]; output rows depend on input rows at most
      `halo` away.
    arrays: inputs; their third axis from the end is the rows.
    rows: input rows per strip.
    halo: input rows added on either side.
    scale: output rows per input row.

  Returns:
    What `function(*arrays)` returns.
  """
  height = arrays[0].shape[-3]
  if rows >= height:
    return function(*arrays)
  length = min(rows + 2 * halo, height)

  def strip(i, out):
    first = jnp.minimum(i * rows, height - rows)  # the last strip overlaps the one before it
    start = jnp.clip(first - halo, 0, height - length)
    parts = [lax.dynamic_slice_in_dim(x, start, length, axis=x.ndim - 3) for x in arrays]
    part = lax.dynamic_slice_in_dim(function(*parts), scale * (first - start), scale * rows, axis=1)
    return lax.dynamic_update_slice_in_dim(out, part, scale * first, axis=1)

  shape = jax.eval_shape(function, *arrays)
  return lax.fori_loop(0, -(-height // rows), strip, jnp.zeros(shape.shape, shape.dtype))
