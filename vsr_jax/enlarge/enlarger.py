"""What everything that enlarges clips offers, and how it is used on frames of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, overload

import jax
import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.frames import Frame
from vsr_jax.memory import free_memory
from vsr_jax.tiling import largest_tile, restore_tiled

_USED_PART = 0.8  # of the free memory; the rest is for errors of the estimate and other processes


class Enlarger(Protocol):
  """A network that enlarges clips, with its parameters.

  Other packages offer theirs as entry points of the group "vsr_jax.enlargers": functions of a
  checkpoint (None: the weights that ship) and a compute type ("float32" or "bfloat16").
  """

  @property
  def scale(self) -> int:
    """Output size over input size along each axis."""

  @property
  def context(self) -> int:
    """How many frames before and after a frame its enlargement sees."""

  @property
  def overlap(self) -> int:
    """Input pixels that neighbouring tiles share and are blended over."""

  @property
  def device(self) -> jax.Device:
    """The device, or the first of several, that it runs on."""

  def stream(self, frames: Any) -> Iterator[Any]:
    """Enlarges a clip whose ends are continued by replication.

    Args:
      frames: images of one size, see `frames.as_frames`; or `Frame`s, which keep their times.

    Returns:
      uint8 RGB [s*h s*w 3], one per frame, or `Frame`s of such images.
    """

  def memory_needed(self, height: int, width: int) -> int:
    """Bytes that frames of [height width] take of the device's memory, linear in the pixels."""


@overload
def enlarge_frames(
  enlarger: Enlarger, frames: Iterable[Frame], tile: int | None = None
) -> Iterator[Frame]: ...
@overload
def enlarge_frames(
  enlarger: Enlarger, frames: Any, tile: int | None = None
) -> Iterator[np.ndarray]: ...
def enlarge_frames(
  enlarger: Enlarger, frames: Any, tile: int | None = None
) -> Iterator[np.ndarray] | Iterator[Frame]:
  """Enlarges a clip whole or, with `tile`, by overlapping tiles of that side.

  Args:
    enlarger: the network.
    frames: as `Enlarger.stream` takes them.
    tile: side of a tile in input pixels, above the enlarger's overlap; None for whole frames.

  Returns:
    uint8 RGB [s*h s*w 3], one a frame, or `Frame`s of such images.
  """
  if tile is None:
    return enlarger.stream(frames)
  return restore_tiled(
    enlarger.stream,
    frames,
    tile=tile,
    overlap=enlarger.overlap,
    context=enlarger.context,
    scale=enlarger.scale,
  )


def fitting_tile(enlarger: Enlarger, height: int, width: int) -> int | None:
  """Side of the largest tile that fits the free memory; None if frames [height width] fit whole.

  Raises:
    UserError: there is no room even for a small tile.
  """
  free = _USED_PART * free_memory(enlarger.device)
  if enlarger.memory_needed(height, width) <= free:
    return None
  tile = largest_tile(height, width, int(free / enlarger.memory_needed(1, 1)))
  if tile < 2 * enlarger.overlap:
    raise UserError(
      f"{free / 2**20:.0f} MB of free memory are not enough to restore even by tiles; free some"
    )
  return tile
