from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from vsr_jax.errors import UserError
from vsr_jax.sharding import batch_sharding, host_rows, make_mesh, param_sharding, place_batch


def test_the_mesh_has_two_automatic_axes():
  mesh = make_mesh(model_parallel=2)
  assert dict(mesh.shape) == {"data": 4, "model": 2}
  assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)


def test_a_mesh_that_does_not_divide_is_refused():
  with pytest.raises(UserError, match="model_parallel 3 does not divide the 8 devices"):
    make_mesh(model_parallel=3)


def test_a_batch_is_split_over_the_data_axis():
  mesh = make_mesh(model_parallel=2)
  x = np.arange(24, dtype=np.float32).reshape(8, 3)
  placed = place_batch(mesh, {"x": x})["x"]
  assert placed.sharding.is_equivalent_to(batch_sharding(mesh), x.ndim)
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(np.asarray(placed), x)


def test_rows_of_a_batch_are_where_a_mesh_has_its_devices():
  mesh = make_mesh(devices=jax.devices()[::-1])
  assert host_rows(mesh, 16) == tuple(range(16))
  x = np.arange(16, dtype=np.float32)
  placed = place_batch(mesh, {"x": x})["x"]
  np.testing.assert_array_equal(np.asarray(placed), x)
  first = next(s for s in placed.addressable_shards if s.device == jax.devices()[-1])
  np.testing.assert_array_equal(first.data, x[:2])


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(UserError, match=r"batch of 6 does not divide among 8 devices"):
    place_batch(make_mesh(), {"x": np.zeros((6, 2))})


@given(shape=st.lists(st.integers(1, 40), max_size=4).map(tuple), least=st.integers(1, 2000))
def test_large_arrays_are_split_along_their_largest_divisible_axis(shape, least):
  spec = param_sharding(make_mesh(), shape, least).spec
  fits = [size for size in shape if size % 8 == 0]
  if np.prod(shape) < least or not fits:
    assert spec == jax.sharding.PartitionSpec()
  else:
    assert spec[-1] == "data"
    assert set(spec[:-1]) <= {None}
    assert shape[len(spec) - 1] == max(fits)


def test_without_the_rule_everything_is_replicated():
  assert param_sharding(make_mesh(), (4096, 4096)).is_fully_replicated
