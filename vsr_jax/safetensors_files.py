"""Weights in the safetensors format: a JSON header of names, shapes and places, then the bytes.

https://github.com/huggingface/safetensors describes it. Only float32 is written and read, the type
of all weights here. Files are read as strangers' are: what the header says is checked first.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping

import numpy as np

from vsr_jax import json_files

_MAX_HEADER = 2**24  # bytes
_LENGTH = struct.Struct("<Q")
_FLOAT = np.dtype("<f4")
_SIZE = json_files.integer(0, 2**40)
_ENTRY = json_files.fields(
  {
    "dtype": json_files.text,
    "shape": json_files.array(_SIZE, longest=32),
    "data_offsets": json_files.array(_SIZE, 2, 2),
  }
)
_HEADER = json_files.mapping(json_files.text, _ENTRY)


def encode(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The content of a safetensors file with these arrays, float32, by name."""
  header, place = {}, 0
  for name, x in arrays.items():
    assert x.dtype == _FLOAT, name
    end = place + x.nbytes
    header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [place, end]}
    place = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  return b"".join([_LENGTH.pack(len(text)), text, *(x.tobytes() for x in arrays.values())])


def decode(data: bytes) -> dict[str, np.ndarray]:
  """Reads the content of a safetensors file.

  Args:
    data: the whole file.

  Returns:
    Read-only arrays by name, views of `data`.

  Raises:
    ValueError: the content is damaged, or not float32; the text says how.
  """
  if len(data) < _LENGTH.size:
    raise ValueError("it ends before its header")
  (length,) = _LENGTH.unpack_from(data)
  start = _LENGTH.size + length
  if length > _MAX_HEADER or start > len(data):
    raise ValueError("its header is longer than it can be")
  header = json_files.parse(data[_LENGTH.size : start], _HEADER)
  arrays, end = {}, 0
  # Arrays follow each other without gaps, as the format demands: none shares bytes with another.
  for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
    count, (first, last) = math.prod(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] != "F32":
      raise ValueError(f"{name[:80]!r} is of the dtype {entry['dtype'][:20]!r}, not F32")
    if first != end or last - first != count * _FLOAT.itemsize or start + last > len(data):
      raise ValueError(f"{name[:80]!r} has a place that does not fit its shape or the file")
    found = np.frombuffer(memoryview(data)[start + first : start + last], _FLOAT)
    arrays[name] = found.reshape(entry["shape"])
    end = last
  if start + end != len(data):
    raise ValueError("there are bytes that belong to no array")
  return arrays
