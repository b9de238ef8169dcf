"""Restores large frames by tiles, in memory that does not grow with the clip.

Nothing here knows a model: a restorer is any function that turns a stream of
frames into a stream of frames `scale` times their size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import numpy as np

from vsr_jax.frames import Frame, as_frames_of_one_size, stream_frames

Stream = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]

_CANVAS_BYTES = 2**28  # for finished frames whose tiles are being made
# The least and the largest number of frames in a chunk; fewer would be mostly context.
_CHUNK_FRAMES = (4, 32)


def largest_tile(height: int, width: int, pixels: int) -> int:
  """Side of the largest square tile with at most `pixels` pixels inside a frame of that size."""
  side = math.isqrt(pixels)
  short = min(height, width)
  return side if side < short else pixels // short


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
  """Starts of equal tiles that cover an axis, neighbours sharing at least `overlap` pixels.

  Raises:
    ValueError: the overlap is negative or not smaller than the tile.
  """
  if not 0 <= overlap < tile:
    raise ValueError(f"tiles of {tile} cannot overlap by {overlap}")
  if tile >= size:
    return [0]
  steps = -(-(size - tile) // (tile - overlap))
  return [i * (size - tile) // steps for i in range(steps + 1)]


@overload
def restore_tiled(
  restore: Stream, frames: Iterable[Frame], *, tile: int, overlap: int, context: int, scale: int
) -> Iterator[Frame]: ...
@overload
def restore_tiled(
  restore: Stream, frames: Any, *, tile: int, overlap: int, context: int, scale: int
) -> Iterator[np.ndarray]: ...
def restore_tiled(
  restore: Stream,
  frames: Any,
  *,
  tile: int,
  overlap: int,
  context: int,
  scale: int,
) -> Iterator[np.ndarray] | Iterator[Frame]:
  """Restores a stream tile by tile, in memory that does not grow with the clip.

  The stream is cut into chunks of frames; in every chunk each tile is restored
  as a stream of its own. Neighbouring tiles are blended linearly over what they
  share.

  Args:
    restore: yields one output per frame, and continues the ends of a stream by replication.
    frames: images of one size, see `as_frames`; or `Frame`s, which keep their times.
    tile: side of the square tiles, in input pixels.
    overlap: least number of input pixels that neighbours share, below `tile`.
    context: frames before and after a frame that its restoration sees.
    scale: output size over input size along each axis.

  Returns:
    One uint8 image [scale*h scale*w 3] per frame, or `Frame`s with such images.

  Raises:
    ValueError: raised on iteration if the overlap is negative or not smaller than the tile, or the
      frames are of another form or of several sizes.
  """

  def restore_images(images):
    return _restore_tiled(
      restore, as_frames_of_one_size(images), tile, overlap, context=context, scale=scale
    )

  return stream_frames(restore_images, frames)


def _restore_tiled(
  restore: Stream,
  frames: Iterator[np.ndarray],
  tile: int,
  overlap: int,
  *,
  context: int,
  scale: int,
) -> Iterator[np.ndarray]:
  first = next(frames, None)
  if first is None:
    return
  h, w, _ = first.shape
  rows, columns = tile_starts(h, tile, overlap), tile_starts(w, tile, overlap)
  length = int(np.clip(_CANVAS_BYTES // (first.nbytes * scale**2), *_CHUNK_FRAMES))
  for chunk, before, after in _chunks(itertools.chain([first], frames), length, context):
    canvas = np.empty((len(chunk) - before - after, scale * h, scale * w, 3), np.uint8)
    for i, top in enumerate(rows):
      # Rows of tiles are completed first: where four tiles meet the blend has to be bilinear.
      row = canvas if len(rows) == 1 else np.empty_like(canvas[:, : scale * tile])
      for j, left in enumerate(columns):
        part = [frame[top : top + tile, left : left + tile] for frame in chunk]
        restored = itertools.islice(restore(part), before, len(chunk) - after)
        shared = scale * (columns[j - 1] + tile - left) if j else 0
        for target, output in zip(row, restored, strict=True):
          _lay_over(target.swapaxes(0, 1), output.swapaxes(0, 1), scale * left, shared)
      shared = scale * (rows[i - 1] + tile - top) if i else 0
      if row is not canvas:
        for target, output in zip(canvas, row, strict=True):
          _lay_over(target, output, scale * top, shared)
    yield from canvas


def _lay_over(target: np.ndarray, tile: np.ndarray, start: int, shared: int) -> None:
  """Writes a tile into a uint8 target at row `start`; over its first `shared` rows it fades in."""
  place = target[start : start + len(tile)]
  place[shared:] = tile[shared:]
  ramp = ((np.arange(shared, dtype=np.float32) + 0.5) / max(shared, 1))[:, None, None]
  blend = (1 - ramp) * place[:shared] + ramp * tile[:shared]
  place[:shared] = np.rint(blend).astype(np.uint8)


def _chunks(
  frames: Iterator[np.ndarray], length: int, context: int
) -> Iterator[tuple[list[np.ndarray], int, int]]:
  """Cuts a stream into chunks: (frames, how many of them lead, how many trail).

  Leading and trailing frames are context only; the `length` frames between them
  (fewer in the last chunk) are in no other chunk.
  """
  held: list[np.ndarray] = []
  before = 0
  while True:
    held += itertools.islice(frames, before + length + context - len(held))
    after = max(0, len(held) - before - length)
    if len(held) == before:
      return
    yield held, before, after
    held = held[max(0, len(held) - after - context) :]
    before = len(held) - after
