"""Where and when XLA computes something."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vsr_jax.ops.devices import delay_until, materialise
from vsr_jax.sharding import batch_sharding, make_mesh


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
def test_what_is_computed_once_is_the_same(value):
  x, y = np.full((2, 3), value, np.float32), np.arange(1, 7, dtype=np.float32).reshape(2, 3)

  def product(x, y):
    return materialise(lambda x, y: x * y, x, y)

  np.testing.assert_array_equal(jax.jit(product)(x, y), x * y)
  gradients = jax.grad(lambda *xy: product(*xy).sum(), argnums=(0, 1))(x, y)
  for got, want in zip(gradients, (y, x), strict=True):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_what_waits_stays_as_it_is(value):
  x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 2), value, np.float32)
  np.testing.assert_array_equal(delay_until((x,), y)[0], x)
  gradients = jax.grad(lambda x, y: delay_until(x, y).sum(), argnums=(0, 1))(x, y)
  for got, want in zip(gradients, (np.ones_like(x), np.zeros_like(y)), strict=True):
    np.testing.assert_array_equal(got, want)


def test_devices_do_not_wait_for_each_other():
  mesh = make_mesh()
  x = jax.device_put(np.arange(24, dtype=np.float32).reshape(8, 3), batch_sharding(mesh))

  @jax.jit
  def chain(x):
    y = materialise(jnp.multiply, x, x)
    return materialise(jnp.add, delay_until(x, y), y)

  with jax.set_mesh(mesh):
    assert "all-" not in chain.lower(x).compile().as_text()
    np.testing.assert_array_equal(chain(x), x + x * x)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA is left alone")
def test_a_chain_of_residual_sums_holds_one_of_them():
  """Else every sum is added up again from all terms before it, one array more a link."""

  def chain(x, kernel, links):
    total = jnp.dot(x, kernel)
    for _ in range(links):
      x = materialise(jnp.add, jnp.dot(x, kernel), x)
      total = materialise(jnp.add, jnp.dot(x, kernel), total)
    return total

  x, kernel = np.ones((512, 64), np.float32), np.ones((64, 64), np.float32)
  compiled = jax.jit(chain, static_argnums=2).lower
  sizes = [
    compiled(x, kernel, links).compile().memory_analysis().temp_size_in_bytes for links in (3, 12)
  ]
  assert sizes[1] < sizes[0] + 2 * x.nbytes  # nine arrays more, if they were held
