"""Max pooling against its definition."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.support.programs import jit
from tests.vsr_jax.ops.numeric import normal
from vsr_jax.ops import pooling


@pytest.mark.parametrize(
  ("size", "stride", "shape"),
  [(2, 2, (2, 6, 5, 3)), (3, 2, (1, 7, 10, 2)), (3, 2, (1, 3, 4, 2)), (1, 1, (1, 2, 2, 1))],
)
def test_max_pool_equals_its_definition_values_and_gradients(size, stride, shape):
  x = normal(0, *shape)

  def both(x):
    found = []
    for pool in (pooling.max_pool, pooling.max_pool_definition):
      y, pull = jax.vjp(lambda x, pool=pool: pool(x, size, stride), x)
      found += [(y, *pull(y))]
    return found

  got, want = jit(both)(x)
  np.testing.assert_array_equal(got[0], want[0])
  # Windows overlap, and their sums are taken in another order.
  np.testing.assert_allclose(got[1], want[1], rtol=1e-6)
