"""Weights as .npz files: what is written is read again, and nothing else is taken for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vsr_jax import array_files
from vsr_jax.errors import UserError

PARAMS = {"net": {"conv": {"kernel": np.arange(4.0, dtype=np.float32).reshape(2, 2) / 3}}}
TEMPLATE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_saved_is_loaded(dtype, tmp_path):
  array_files.save_params(PARAMS, tmp_path / "x.npz", dtype)
  with np.load(tmp_path / "x.npz") as file:
    assert file["net/conv/kernel"].dtype == dtype
  loaded = array_files.load_params(tmp_path / "x.npz", TEMPLATE)["net"]["conv"]["kernel"]
  assert loaded.dtype == jnp.float32
  np.testing.assert_array_equal(loaded, PARAMS["net"]["conv"]["kernel"].astype(dtype))


def test_one_file_is_the_same_every_time(tmp_path):
  for name in "ab":
    array_files.save_params(PARAMS, tmp_path / f"{name}.npz")
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
  with pytest.raises(OSError, match="missing"):
    array_files.save_params(PARAMS, tmp_path / "missing" / "x.npz")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({}, "missing net/conv/kernel"),
    ({"net/conv/kernel": np.ones((2, 3), np.float32)}, "net/conv/kernel of shape"),
    ({"net/conv/kernel": np.ones((2, 2), int)}, "not floating-point numbers"),
    ({"net/conv/kernel": np.full((2, 2), np.nan)}, "NaN or infinite"),
    ({"other": np.ones(2)}, "unexpected other"),
  ],
)
def test_weights_of_something_else_are_refused(arrays, message, tmp_path):
  np.savez(tmp_path / "x.npz", **arrays)
  with pytest.raises(UserError, match=f"x.npz .*{message}"):
    array_files.load_params(tmp_path / "x.npz", TEMPLATE)
