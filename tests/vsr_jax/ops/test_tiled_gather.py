"""Gathers by products, as the kernels say; their forms for TPUs run here operation by operation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from vsr_jax.ops import tiled_gather, warp
from vsr_jax.ops.devices import without_kernels
from vsr_jax.ops.tiled_gather import AREA, gather_by_tiles, scatter_by_tiles
from vsr_jax.sharding import make_mesh


def random_case(g: int, table: tuple[int, int], read: tuple[int, int], c: int):
  """Numbers of all magnitudes in a table of tiles, and what random pixels read in it."""
  rng = np.random.default_rng(c)
  shape = (g, *table, 2, c, 128)
  values = rng.normal(size=shape) * 10.0 ** rng.integers(-20, 20, shape)
  index = rng.integers(0, table[0] * table[1] * AREA, (g, *read, 2, 128))
  return values.astype(np.float32), index.astype(np.int32)


def pixels(x: np.ndarray) -> np.ndarray:
  """[g k l 2 c 128] -> [g pixels c]."""
  return np.moveaxis(x, 4, 5).reshape(len(x), -1, x.shape[4])


def test_numbers_are_read_exactly():
  table, index = random_case(2, (3, 2), (1, 2), 8)
  read = gather_by_tiles(table, index, True)
  expected = np.take_along_axis(pixels(table), index.reshape(2, -1, 1), axis=1)
  np.testing.assert_array_equal(pixels(np.asarray(read)), expected)


def test_numbers_are_added_up_where_they_were_read():
  _, index = random_case(2, (2, 1), (1, 2), 24)
  values = np.random.default_rng(0).normal(size=(2, 1, 2, 2, 24, 128)).astype(np.float32)
  added = scatter_by_tiles(values, index, 2, 1, True)
  expected = np.zeros((2, 2 * AREA, 24))
  for sums, x, at in zip(expected, pixels(values), index.reshape(2, -1), strict=True):
    np.add.at(sums, at, x)
  np.testing.assert_allclose(pixels(np.asarray(added)), expected, atol=1e-5)


def test_channels_of_large_images_are_read_in_turn(monkeypatch):
  table, index = random_case(1, (2, 2), (1, 1), 16)
  monkeypatch.setattr(tiled_gather, "_TABLE_LIMIT", table.nbytes // 2)
  jaxpr = str(jax.make_jaxpr(lambda *x: gather_by_tiles(*x, True))(table, index))
  assert "grid=(1, 2, 1)" in jaxpr
  read = gather_by_tiles(table, index, True)
  expected = np.take_along_axis(pixels(table), index.reshape(1, -1, 1), axis=1)
  np.testing.assert_array_equal(pixels(np.asarray(read)), expected)


@pytest.mark.parametrize(("n", "c", "reach"), [(3, 3, 2.0), (1, 10, 100.0)])
def test_warps_of_tpus_and_their_gradients_equal_the_definition(n, c, reach):
  rng = np.random.default_rng(c)
  images = rng.normal(size=(2, 5, 131, n, c)).astype(np.float32)
  flows = (reach * rng.normal(size=(2, 5, 131, n, 2))).astype(np.float32)
  masks = rng.uniform(size=(2, 5, 131, n, 1)).astype(np.float32)

  def value_and_gradients(form):
    def both(*args):
      y, pull = jax.vjp(form, *args)
      return y, *pull(jnp.cos(y))

    return jax.jit(both)(images, flows, masks)

  by_tiles = functools.partial(warp._warp_by_tiles, interpret=True)
  got, want = value_and_gradients(by_tiles), value_and_gradients(jax.vmap(warp._warp_image))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert (np.asarray(got[0]) == 0).any() or reach < 100  # the flow leaves the image


def lowered_for_tpu(b: int, c: int, **sharding) -> str:
  arrays = [jax.ShapeDtypeStruct((b, 8, 8, size), jnp.float32, **sharding) for size in (c, 2)]
  return jax.jit(warp.backward_warp).trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()


def test_tpus_read_narrow_images_of_one_device_by_tiles():
  assert "tpu_custom_call" in lowered_for_tpu(1, 3)
  assert "tpu_custom_call" in lowered_for_tpu(2, 3)
  assert "tpu_custom_call" not in lowered_for_tpu(1, 64)  # fill the lanes of a row
  with jax.set_mesh(make_mesh(devices=jax.devices()[:2])):
    assert "tpu_custom_call" in lowered_for_tpu(2, 3)
    assert "tpu_custom_call" not in lowered_for_tpu(1, 3)  # XLA would have to divide the kernel


def test_images_of_unknown_size_are_warped_by_the_definition():
  (b,) = export.symbolic_shape("b")
  arrays = [jax.ShapeDtypeStruct((b, 8, 8, size), jnp.float32) for size in (3, 2)]
  exported = export.export(jax.jit(warp.backward_warp), platforms=("tpu",))(*arrays)
  assert "tpu_custom_call" not in exported.mlir_module()


def test_programs_of_several_platforms_do_without_kernels():
  arrays = [jax.ShapeDtypeStruct((1, 8, 8, size), jnp.float32) for size in (3, 2)]
  new = jax.jit(lambda *x: warp.backward_warp(*x))
  with without_kernels():
    exported = export.export(new, platforms=("cpu", "tpu"))(*arrays)
  assert "tpu_custom_call" not in exported.mlir_module()
  assert "tpu_custom_call" in lowered_for_tpu(1, 3)  # afterwards they are back
