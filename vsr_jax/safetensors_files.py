"""Arrays in the safetensors format: a JSON header of names, dtypes, shapes and places, then bytes.

https://github.com/huggingface/safetensors describes it. Files are read as strangers' are: no more
is taken from one than it holds, and what its header says is checked first.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vsr_jax import json_files

_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 2**24  # bytes
_LENGTH = struct.Struct("<Q")
_SIZE = json_files.integer(0, 2**40)
_ENTRY = json_files.fields(
  {
    "dtype": json_files.text,
    "shape": json_files.array(_SIZE, longest=32),
    "data_offsets": json_files.array(_SIZE, 2, 2),
  }
)


def _check_header(value: Any, where: str) -> None:
  json_files.mapping(json_files.text, json_files.anything)(value, where)
  for name, entry in value.items():
    if name == "__metadata__":
      json_files.mapping(json_files.text, json_files.text)(entry, name)
    else:
      _ENTRY(entry, name)


def parts(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
  """The bytes of a safetensors file, in parts: the header, then each array's.

  Args:
    arrays: by name, which must not be "__metadata__".

  Raises:
    KeyError: an array's dtype is none of the format's.
  """
  header, place = {}, 0
  # In order of their items' size, so that each begins at a multiple of it.
  names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
  for name in names:
    x = arrays[name]
    header[name] = {
      "dtype": _NAMES[x.dtype],
      "shape": list(x.shape),
      "data_offsets": [place, place + x.nbytes],
    }
    place += x.nbytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  yield _LENGTH.pack(len(text)) + text
  for name in names:
    yield np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data


def parse(data: bytes) -> dict[str, np.ndarray]:
  """Reads the content of a safetensors file.

  Args:
    data: the whole file.

  Returns:
    Read-only arrays by name, views of `data`.

  Raises:
    ValueError: the content is damaged; the text says how.
  """
  if len(data) < _LENGTH.size:
    raise ValueError("it ends before its header")
  (length,) = _LENGTH.unpack_from(data)
  start = _LENGTH.size + length
  if length > _MAX_HEADER or start > len(data):
    raise ValueError("its header is longer than it can be")
  header = json_files.parse(data[_LENGTH.size : start], _check_header)
  header.pop("__metadata__", None)
  arrays, end = {}, 0
  # Arrays follow each other without gaps, as the format demands: none shares bytes with another.
  for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
    first, last = entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
      raise ValueError(f"{name[:80]!r} is of the dtype {entry['dtype'][:20]!r}, which is not known")
    if first != end or last - first != math.prod(entry["shape"]) * dtype.itemsize:
      raise ValueError(f"{name[:80]!r} has a place that its shape does not fit")
    if start + last > len(data):
      raise ValueError("it ends within its arrays")
    count = math.prod(entry["shape"])
    array = np.frombuffer(data, dtype, count, start + first) if count else np.empty(0, dtype)
    arrays[name] = array.reshape(entry["shape"])
    end = last
  if start + end != len(data):
    raise ValueError("there are bytes that belong to no array")
  return arrays
