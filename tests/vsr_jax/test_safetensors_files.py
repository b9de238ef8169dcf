"""Weights as safetensors: the layout of the format, and damaged headers."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from vsr_jax import safetensors_files

ARRAYS = {
  "net/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
  "empty": np.zeros((0, 4), np.float32),
  "scalar": np.float32(0.5).reshape(()),
}


def file_of(header, data=b""):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(1,), first=0, last=4):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def test_what_is_encoded_is_decoded():
  found = safetensors_files.decode(safetensors_files.encode(ARRAYS))
  assert found.keys() == ARRAYS.keys()
  for name, x in found.items():
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, ARRAYS[name], strict=True)


def test_the_layout_is_that_of_the_format():
  """8 bytes of length, the header padded with spaces to a multiple of 8, the arrays in a row."""
  data = safetensors_files.encode(ARRAYS)
  (length,) = struct.unpack("<Q", data[:8])
  assert length % 8 == 0
  header = json.loads(data[8 : 8 + length])
  assert header["net/kernel"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
  assert data[8 + length :] == ARRAYS["net/kernel"].tobytes() + ARRAYS["scalar"].tobytes()


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "ends before its header"),
    (struct.pack("<Q", 2**63) + b"{}", "longer than it can be"),
    (file_of(b"{"), "not JSON"),
    (file_of(b'{"a": 1, "a": 1}'), "comes twice"),
    (file_of({"a": entry("F16")}, bytes(4)), "of the dtype 'F16', not F32"),
    (file_of({"a": {"dtype": "F32"}}), "no field 'shape'"),
    (file_of({"a": entry(shape=[2])}, bytes(4)), "does not fit its shape"),
    (file_of({"a": entry(shape=[2**40, 2**40])}, bytes(4)), "does not fit its shape"),
    (file_of({"a": entry()}, bytes(3)), "or the file"),
    (file_of({"a": entry(), "b": entry()}, bytes(4)), "does not fit"),  # one place for two
    (file_of({"a": entry(first=4, last=8)}, bytes(8)), "does not fit"),  # a gap
    (file_of({"a": entry()}, bytes(8)), "belong to no array"),
  ],
)
def test_a_damaged_file_is_refused(data, message):
  with pytest.raises(ValueError, match=message):
    safetensors_files.decode(data)
