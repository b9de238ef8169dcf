"""Maps as colours."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from vsr_jax import maps


def test_flow_colours_and_heat():
  flow = jnp.array([[[[0.0, 0.0], [2.0, 0.0]]]])
  np.testing.assert_allclose(maps.flow_colours(flow)[0, 0], [[1, 1, 1], [1, 0.25, 0.25]], atol=1e-6)
  heat = maps.heat(jnp.array([0.0, 0.5, 1.0]).reshape(1, 1, 3, 1))
  np.testing.assert_allclose(heat[0, 0], [[0, 0, 0], [1, 0.5, 0], [1, 1, 1]], atol=1e-6)
  np.testing.assert_array_equal(maps.picture(heat[0])[0, 1], [255, 128, 0])
