"""Reads MXNet's weight files (.params) as NumPy arrays, without MXNet.

A file is a list of arrays, each with its kind, shape, device and type before its numbers, and then
their names, which begin with "arg:" for what was trained and "aux:" for statistics. Everything is
little-endian. No more is read or allocated than the file holds.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np

from vsr_jax import guards, torch_files

_LIST = 0x112  # a list of arrays with their names
_ARRAY = 0xF993FAC9  # an array as MXNet 1.x writes it
_DTYPES: dict[int, np.dtype] = {0: np.dtype("<f4"), 1: np.dtype("<f8"), 2: np.dtype("<f2")}
_MAX_BYTES = 2**28
_MAX_ARRAYS = 10_000
_MAX_DIMENSIONS = 8


def load(path: str | Path) -> dict[str, np.ndarray]:
  """Reads a file that `mx.nd.save` or `mx.model.save_checkpoint` wrote.

  Args:
    path: the file, such as MobileFace_Identification_V2-0000.params.

  Returns:
    Read-only array by name, without its "arg:" or "aux:".

  Raises:
    UserError: the file is missing, damaged, or holds anything but dense arrays of floats.
  """
  with (
    guards.reading(path, "file of MXNet's", "a .params file"),
    torch_files.open_regular(path) as file,
  ):
    stream = io.BytesIO(file.read(_MAX_BYTES))
    kind, _, count = _unpack(stream, "QQQ")
    if kind != _LIST or count > _MAX_ARRAYS:
      raise ValueError("no list of arrays")
    arrays = [_array(stream) for _ in range(count)]
    if _unpack(stream, "Q")[0] != count:
      raise ValueError("as many names as arrays are wanted")
    names = [_name(stream) for _ in range(count)]
    if len(set(names)) < count or stream.read(1):
      raise ValueError("names come twice, or something follows them")
    return dict(zip(names, arrays, strict=True))


def _unpack(stream: io.BytesIO, layout: str) -> tuple[int, ...]:
  return struct.unpack(f"<{layout}", _exactly(stream, struct.calcsize(f"<{layout}")))


def _exactly(stream: io.BytesIO, size: int) -> bytes:
  data = stream.read(size)
  if len(data) < size:
    raise ValueError("it ends too soon")
  return data


def _array(stream: io.BytesIO) -> np.ndarray:
  kind, sparse, dimensions = _unpack(stream, "IiI")
  if kind != _ARRAY or sparse or not 0 < dimensions <= _MAX_DIMENSIONS:
    raise ValueError("no dense array")
  shape = _unpack(stream, f"{dimensions}Q")
  _, _, number = _unpack(stream, "iii")  # after the device it was on
  dtype = _DTYPES[number]
  data = _exactly(stream, math.prod(shape) * dtype.itemsize)
  return np.frombuffer(data, dtype).reshape(shape)


def _name(stream: io.BytesIO) -> str:
  (length,) = _unpack(stream, "Q")
  name = _exactly(stream, length).decode()
  if not name.isprintable() or length > 300:
    raise ValueError(f"the name {guards.shorten(name)}")
  return name.removeprefix("arg:").removeprefix("aux:")
