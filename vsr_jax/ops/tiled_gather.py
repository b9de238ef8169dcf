"""Gathers of pixels near to where they are put, for TPUs: by products, tile by tile.

A TPU gathers row by row, and lays a row of few channels into 128 lanes. Here images lie in tiles of
2 x 128 pixels whose columns fill the lanes. What a tile reads from another one is a product with a
matrix that has a single 1 in each column: exact, for it is the sum of three products in bfloat16,
of the upper, middle and lower 8 bits of the numbers. Each tile is multiplied with those between the
first and the last row and column of tiles that it reads from. Any index is right; indices that stay
near are fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

ROWS, COLUMNS = 2, 128  # of pixels in a tile
AREA = ROWS * COLUMNS
CHANNELS = 8  # come in multiples of so many, the rows of a TPU's register

# Bytes of the core's vector memory for the tiles of an image, twice in it while the next image's
# are fetched, and for all that a kernel holds. A core of v5p has 64 MB, of v5e and v6e 128 MB.
_TABLE_LIMIT = 20 * 2**20
_LIMIT = 48 * 2**20


def fits(tiles: int, channels: int = CHANNELS) -> bool:
  """Whether a kernel can hold an image's tiles, if only of a few channels at a time."""
  return 4 * tiles * channels * AREA <= _TABLE_LIMIT


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gather_by_tiles(table: jax.Array, index: jax.Array, interpret: bool = False) -> jax.Array:
  """Reads pixels of images that lie in tiles.

  Args:
    table: [g k l 2 c 128], finite float32: g images of k rows of l tiles, 2 x 128 pixels of c
      channels each; k * l as it `fits`, c a multiple of `CHANNELS`.
    index: [g k' l' 2 128], int32: what each pixel of k' rows of l' tiles reads of its image: the
      number of the tile, counted row by row, times 256, plus the pixel's number within the tile.
    interpret: whether to run the kernel on any device, operation by operation.

  Returns:
    [g k' l' 2 c 128], float32.
  """
  shape = (*index.shape[:4], table.shape[4], COLUMNS)
  return _call(_gather_tile, table, index, shape, table.shape[2], interpret)


def scatter_by_tiles(
  values: jax.Array, index: jax.Array, rows: int, columns: int, interpret: bool = False
) -> jax.Array:
  """The transpose of `gather_by_tiles`: adds values up where they were read.

  Args:
    values: [g k' l' 2 c 128], finite float32.
    index: [g k' l' 2 128], see `gather_by_tiles`.
    rows: k, of the table's tiles.
    columns: l.
    interpret: whether to run the kernel on any device, operation by operation.

  Returns:
    [g k l 2 c 128], float32.
  """
  shape = (values.shape[0], rows, columns, *values.shape[3:])
  return _call(_scatter_tile, values, index, shape, columns, interpret)


def _forward(table, index, interpret):
  return gather_by_tiles(table, index, interpret), (index, table.shape[1:3])


def _backward(interpret, residuals, g):
  index, (rows, columns) = residuals
  return scatter_by_tiles(g, index, rows, columns, interpret), None


gather_by_tiles.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _call(
  kernel: Callable[..., None],
  values: jax.Array,
  index: jax.Array,
  shape: tuple[int, ...],
  columns: int,
  interpret: bool,
) -> jax.Array:
  """Runs a kernel for every image, group of channels and tile of the index, in this order."""
  # Here, since importing it takes long and most programs do without.
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import tpu as pltpu

  g, k, across = index.shape[:3]
  gathers, c = kernel is _gather_tile, shape[4]
  values, index = values.reshape(g, -1, ROWS, c, COLUMNS), index.reshape(g, k * across, 1, AREA)
  result = jax.ShapeDtypeStruct((g, shape[1] * shape[2], *shape[3:]), jnp.float32)
  tiles = values.shape[1] if gathers else result.shape[1]
  part = max(n for n in range(CHANNELS, c + 1, CHANNELS) if c % n == 0 and fits(tiles, n))
  whole = pl.BlockSpec((1, tiles, ROWS, part, COLUMNS), lambda i, j, _: (i, 0, 0, j, 0))
  one = pl.BlockSpec((1, 1, ROWS, part, COLUMNS), lambda i, j, t: (i, t, 0, j, 0))

  def at_tile(i, _, t):
    return i, t, 0, 0

  row, column = index // AREA // columns, index // AREA % columns
  span = jnp.stack([row.min(-1), row.max(-1), column.min(-1), column.max(-1)], -1)
  call = pl.pallas_call(
    functools.partial(kernel, columns=columns),
    result,
    grid=(g, c // part, k * across),
    in_specs=[
      pl.BlockSpec((1, 1, 1, 4), at_tile, memory_space=pltpu.SMEM),
      pl.BlockSpec((1, 1, 1, AREA), at_tile),
      whole if gathers else one,
    ],
    out_specs=one if gathers else whole,
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_LIMIT),
    interpret=interpret,
  )
  return call(span, index, values).reshape(shape)


def _gather_tile(span: Any, index: Any, table: Any, out: Any, *, columns: int) -> None:
  """The kernel of `gather_by_tiles`: a tile of the result from the tiles of an image."""
  out[...] = jnp.zeros_like(out)

  def add(tile):
    parts = _upper_middle_lower(table[0, tile])
    chosen = _choice(index[0, 0], tile)
    read = jnp.dot(parts, chosen, preferred_element_type=jnp.float32)
    out[0, 0] += _sum_of_parts(read)

  _for_each_tile(span, columns, add)


def _scatter_tile(span: Any, index: Any, values: Any, out: Any, *, columns: int) -> None:
  """The kernel of `scatter_by_tiles`: a tile of values to the tiles of an image."""
  from jax.experimental import pallas as pl

  @pl.when(pl.program_id(2) == 0)
  def _():
    out[...] = jnp.zeros_like(out)

  parts = _upper_middle_lower(values[0, 0])

  def add(tile):
    chosen = _choice(index[0, 0], tile)
    by_pixel = (((1,), (1,)), ((), ()))
    added = lax.dot_general(parts, chosen, by_pixel, preferred_element_type=jnp.float32)
    out[0, tile] += _sum_of_parts(added)

  _for_each_tile(span, columns, add)


def _for_each_tile(span: Any, columns: int, add: Callable[[jax.Array], None]) -> None:
  """Calls `add` for the tiles within a span: first and last row, first and last column."""
  first_row, last_row, first_column, last_column = (span[0, 0, 0, i] for i in range(4))

  def in_row(row, _):
    def at(column, _):
      add(row * columns + column)

    lax.fori_loop(first_column, last_column + 1, at, None)

  lax.fori_loop(first_row, last_row + 1, in_row, None)


def _choice(index: jax.Array, tile: jax.Array) -> jax.Array:
  """index [1 256] -> [256 256]: 1 where the pixel of a column reads the pixel of a row."""
  pixel = lax.broadcasted_iota(jnp.int32, (AREA, AREA), 0)
  return jnp.where(index - tile * AREA == pixel, 1.0, 0.0).astype(jnp.bfloat16)


def _upper_middle_lower(x: jax.Array) -> jax.Array:
  """[2 c 128] -> [3c 256]: what in bfloat16 adds up to x, by cutting off lower bits.

  Masks, not conversions to and fro, which XLA may leave out.
  """
  rest = jnp.concatenate([x[0], x[1]], axis=-1)
  parts = []
  for _ in range(3):
    bits = lax.bitcast_convert_type(rest, jnp.uint32) & jnp.uint32(0xFFFF0000)
    parts.append(lax.bitcast_convert_type(bits, jnp.float32))
    rest = rest - parts[-1]
  return jnp.concatenate(parts).astype(jnp.bfloat16)


def _sum_of_parts(x: jax.Array) -> jax.Array:
  """[3c 256] -> [2 c 128]."""
  c = x.shape[0] // 3
  x = x[:c] + (x[c : 2 * c] + x[2 * c :])
  return jnp.stack([x[:, :COLUMNS], x[:, COLUMNS:]])
