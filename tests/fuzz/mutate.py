"""Damages bytes in the ways that disks, networks and malice do; all from one generator."""

from __future__ import annotations

import numpy as np

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
  """Damages a file's content.

  Args:
    data: the content, not empty.
    rng: decides how.

  Returns:
    The damaged content, and a word that says how.
  """
  change = _CHANGES[rng.integers(len(_CHANGES))]
  return bytes(change(bytearray(data), rng)), change.__name__.strip("_")


def _place(data: bytearray, rng: np.random.Generator) -> int:
  """A position; a third lie in the first kilobyte and the last two: headers and indexes."""
  size = len(data)
  low, high = ((0, size), (0, min(size, 1024)), (max(0, size - 2048), size))[rng.integers(3)]
  return int(rng.integers(low, high)) if size else 0


def _flipped_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
  for _ in range(rng.integers(1, 12)):
    data[_place(data, rng)] ^= 1 << int(rng.integers(8))
  return data


def _random_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
  start, length = _place(data, rng), int(rng.integers(1, 64))
  data[start : start + length] = rng.bytes(min(length, len(data) - start))
  return data


def _cut_short(data: bytearray, rng: np.random.Generator) -> bytearray:
  return data[: _place(data, rng)]


def _zeroed(data: bytearray, rng: np.random.Generator) -> bytearray:
  start, length = _place(data, rng), int(rng.integers(1, 4096))
  data[start : start + length] = bytes(min(length, len(data) - start))
  return data


def _left_out(data: bytearray, rng: np.random.Generator) -> bytearray:
  start = _place(data, rng)
  del data[start : start + int(rng.integers(1, 512))]
  return data


def _repeated(data: bytearray, rng: np.random.Generator) -> bytearray:
  start, length = _place(data, rng), int(rng.integers(1, 2048))
  data[start:start] = data[start : start + length] * int(rng.integers(1, 4))
  return data


def _moved(data: bytearray, rng: np.random.Generator) -> bytearray:
  start, length, place = _place(data, rng), int(rng.integers(1, 2048)), _place(data, rng)
  part = data[start : start + length]
  del data[start : start + length]
  data[place:place] = part
  return data


def _extreme_number(data: bytearray, rng: np.random.Generator) -> bytearray:
  """Sizes, counts and times of a format become the largest, the least or negative ones."""
  for _ in range(rng.integers(1, 4)):
    width = int(rng.choice((1, 2, 4, 8)))
    value = _EXTREMES[rng.integers(len(_EXTREMES))] % (1 << (8 * width))
    if width == 8 and rng.random() < 0.5:
      value = (1 << 64) - 1 - value
    start = _place(data, rng)
    number = value.to_bytes(width, ("little", "big")[int(rng.integers(2))])
    data[start : start + width] = number[: len(data) - start]
  return data


_CHANGES = (
  _flipped_bits,
  _flipped_bits,
  _random_bytes,
  _cut_short,
  _zeroed,
  _left_out,
  _repeated,
  _moved,
  _extreme_number,
  _extreme_number,
)
