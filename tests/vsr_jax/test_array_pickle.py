"""Pickles of arrays are read as data: what NumPy wrote, and what was made to do harm."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from tests.support import hostile_weights
from vsr_jax.array_pickle import loads
from vsr_jax.errors import UserError

TREE = {
  "net": {"conv": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}},
  "by_columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  "half": np.float16([1, 2]),
  "scalar": np.array(3, np.int64),
}


@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_what_numpy_wrote(protocol):
  arrays = loads(pickle.dumps(TREE, protocol), "x.ckpt")
  want = {"net/conv/kernel": TREE["net"]["conv"]["kernel"]} | {
    key: TREE[key] for key in ("by_columns", "half", "scalar")
  }
  assert arrays.keys() == want.keys()
  for key, value in want.items():
    assert arrays[key].dtype == value.dtype
    np.testing.assert_array_equal(arrays[key], value)


def test_names_of_older_numpys_are_known():
  old = pickle.dumps(TREE, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  assert loads(old, "x.ckpt").keys() == loads(pickle.dumps(TREE, 3), "x.ckpt").keys()


class Call:
  """Pickles as a call of any function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def test_code_is_refused_and_not_run(tmp_path):
  mark = tmp_path / "mark"
  for call in (Call(os.system, f"touch {mark}"), Call(eval, f"open({str(mark)!r}, 'w')")):
    with pytest.raises(UserError, match=r"evil.ckpt holds code .*refused"):
      loads(pickle.dumps({"a": call}, 3), "evil.ckpt")
  assert not mark.exists()


SHARED_DICTS = b"\x80\x03}q\x00" + b"}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00uq\x00" * 60
UNSET = pickle.dumps({"a": np.ones(3, np.float32)}, 3)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"\x80\x03].",
    SHARED_DICTS + b".",
    UNSET.replace(b"K\x03\x85", b"K\x04\x85"),
    UNSET.replace(b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00>"),
    pickle.dumps({"a": np.array(["text"])}, 3),
    pickle.dumps({"a": np.array([object])}, 3),
    pickle.dumps({"a": 1.0}, 3),
    pickle.dumps({1: np.ones(2)}, 3),
  ],
  ids=["empty", "list", "shared", "shape", "order", "text", "object", "number", "name"],
)
def test_anything_else_is_refused(data):
  with pytest.raises(UserError, match=r"x.ckpt (is damaged or no pickle of arrays|holds code)"):
    loads(data, "x.ckpt")


def test_damaged_pickles_are_refused_or_harmless():
  texts = []
  for data in hostile_weights.mutants(pickle.dumps(TREE, 3), seed=0, count=150):
    try:
      assert sum(array.nbytes for array in loads(data, "x.ckpt").values()) < 2**20
    except UserError as e:
      texts.append(str(e))
  assert len(texts) > 20
  assert all("x.ckpt" in text and text.isprintable() for text in texts)
