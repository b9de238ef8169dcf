"""Reads the constants of TensorFlow Lite's models (.tflite) as NumPy arrays, without TensorFlow.

A model is a FlatBuffer: tables whose first number leads back to a list of where their fields are,
and fields that lead on to vectors and other tables. Only what names and holds weights is followed:
the model's first graph, its tensors and their buffers. Nothing is read outside of the file.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from vsr_jax import guards, torch_files

_DTYPES: dict[int, np.dtype] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 2: np.dtype("<i4")}
_MAX_BYTES = 2**28
_MAX_TENSORS = 10_000
_MAX_DIMENSIONS = 8

# Numbers of the fields, as TensorFlow's schema.fbs has them.
_SUBGRAPHS, _BUFFERS = 2, 4  # of a model
_TENSORS = 0  # of a graph
_SHAPE, _TYPE, _BUFFER, _NAME = 0, 1, 2, 3  # of a tensor
_DATA = 0  # of a buffer


def load(path: str | Path) -> dict[str, np.ndarray]:
  """Reads a model's constants.

  Args:
    path: the file, such as face_landmark.tflite.

  Returns:
    Read-only array by the tensor's name, for every tensor whose values are in the file.

  Raises:
    UserError: the file is missing, damaged, or has constants that are neither floats nor int32.
  """
  with (
    guards.reading(path, "model of TensorFlow Lite's", "a .tflite file"),
    torch_files.open_regular(path) as file,
  ):
    data = file.read(_MAX_BYTES)
    if data[4:8] != b"TFL3":
      raise ValueError("another signature")
    model = _Table(data, _uint(data, 0))
    buffers = model.tables(_BUFFERS)
    tensors = model.tables(_SUBGRAPHS)[0].tables(_TENSORS)
    found: dict[str, np.ndarray] = {}
    for tensor in tensors:
      values = buffers[tensor.number(_BUFFER, "I")].bytes(_DATA)
      if values:
        name = tensor.bytes(_NAME).decode()
        if name in found or not name.isprintable() or len(name) > 300:
          raise ValueError(f"the name {guards.shorten(name)}")
        found[name] = _array(tensor, values)
    return found


def _array(tensor: _Table, values: bytes) -> np.ndarray:
  shape = tensor.integers(_SHAPE)
  dtype = _DTYPES[tensor.number(_TYPE, "b")]
  if min(shape, default=1) < 1 or math.prod(shape) * dtype.itemsize != len(values):
    raise ValueError("a tensor's shape and its values differ")
  return np.frombuffer(values, dtype).reshape(shape)


class _Table:
  """A table of a FlatBuffer; fields are known by their numbers."""

  def __init__(self, data: bytes, position: int):
    self._data, self._position = data, position
    (back,) = struct.unpack_from("<i", data, position)
    self._fields = _inside(data, position - back)
    (size,) = struct.unpack_from("<H", data, self._fields)
    self._count = size // 2 - 2

  def _place(self, field: int) -> int | None:
    """Where a field is; None if it is left out, as defaults are."""
    if field >= self._count:
      return None
    (offset,) = struct.unpack_from("<H", self._data, self._fields + 4 + 2 * field)
    return self._position + offset if offset else None

  def number(self, field: int, layout: str) -> int:
    place = self._place(field)
    return 0 if place is None else struct.unpack_from(f"<{layout}", self._data, place)[0]

  def _vector(self, field: int, size: int) -> tuple[int, int]:
    """The place and the count of a vector's elements of `size` bytes."""
    place = self._place(field)
    if place is None:
      return 0, 0
    start = place + _uint(self._data, place)
    count = _uint(self._data, start)
    if start + 4 + count * size > len(self._data):
      raise ValueError("it ends too soon")
    return start + 4, count

  def bytes(self, field: int) -> bytes:
    start, count = self._vector(field, 1)
    return self._data[start : start + count]

  def integers(self, field: int) -> tuple[int, ...]:
    start, count = self._vector(field, 4)
    if count > _MAX_DIMENSIONS:
      raise ValueError(f"{count} dimensions")
    return struct.unpack_from(f"<{count}i", self._data, start)

  def tables(self, field: int) -> list[_Table]:
    start, count = self._vector(field, 4)
    if count > _MAX_TENSORS:
      raise ValueError(f"{count} tensors or buffers")
    places = range(start, start + 4 * count, 4)
    return [_Table(self._data, place + _uint(self._data, place)) for place in places]


def _uint(data: bytes, place: int) -> int:
  (value,) = struct.unpack_from("<I", data, _inside(data, place))
  return value


def _inside(data: bytes, place: int) -> int:
  """The place, if it is in the file: `struct` counts negative ones from the end."""
  if not 0 <= place < len(data):
    raise ValueError("a place outside of it")
  return place
