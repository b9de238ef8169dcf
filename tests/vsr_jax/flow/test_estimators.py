"""Flow networks behind one form: their two parts make the whole, and serve two pairs."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.programs import jit
from vsr_jax.flow import gmflow, pwcnet, raft, spynet
from vsr_jax.flow.estimators import ESTIMATORS

PARITY = Path(__file__).parents[2] / "parity"
WHOLE = {
  "gmflow": gmflow.gmflow,
  "pwcnet": pwcnet.pwcnet,
  "spynet": spynet.spynet,
  "raft_small": functools.partial(raft.raft, raft.SMALL),
  "raft_large": functools.partial(raft.raft, raft.LARGE),
}


def video() -> jax.Array:
  """Three frames [3 64 64 3] of a pattern that moves, in [0, 255]."""
  with np.load(PARITY / "raft.npz") as file:
    frame = np.float32(file["image1"][0])
  return jnp.stack([jnp.asarray(frame[40 : 40 + 64, 3 * i : 3 * i + 64]) for i in range(3)])


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_features_computed_once_serve_both_pairs(name):
  net, frames = ESTIMATORS[name], video()
  params = net.init(jax.random.key(0))
  features = jit(net.encode)(params, frames)
  later, earlier = (jax.tree.map(lambda x, s=s: x[s], features) for s in (np.s_[1:], np.s_[:-1]))
  flow = jit(net.between)(params, later, earlier)
  want = jit(WHOLE[name])(params, frames[1:], frames[:-1])
  assert flow.shape == (2, 64, 64, 2)
  assert flow.dtype == jnp.float32
  assert np.linalg.norm(want) > 0
  # Rounding, of another order of the same sums, relative to the largest flow.
  np.testing.assert_allclose(flow, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", WHOLE)
def test_sides_are_multiples_of_what_is_said(name):
  net = ESTIMATORS[name]
  params = jax.eval_shape(net.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, net.multiple, 2 * net.multiple, 3), jnp.float32)
  features = jax.eval_shape(net.encode, params, image)
  assert jax.eval_shape(net.between, params, features, features).shape == (*image.shape[:3], 2)
  wrong = jax.ShapeDtypeStruct((1, net.multiple, net.multiple // 2, 3), jnp.float32)
  with pytest.raises(ValueError, match="multiple"):
    jax.eval_shape(net.encode, params, wrong)


def test_nothing_moves_without_a_network():
  net, frames = ESTIMATORS["none"], video()
  assert net.init(jax.random.key(0)) == {}
  features = net.encode({}, frames)
  np.testing.assert_array_equal(net.between({}, features, features), np.zeros((3, 64, 64, 2)))
