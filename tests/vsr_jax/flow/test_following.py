"""The flow between frames that follow each other: which way, at which size, computed how often."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from vsr_jax.flow import following
from vsr_jax.flow.estimators import Estimator


def made_up(encoded):
  """A network that finds the difference of the frames' brightness, and notes what it sees."""

  def encode(params, frames):
    encoded.append(frames.shape)  # once a shape: it is compiled
    return frames

  def between(params, first, second):
    change = second.mean((1, 2, 3)) - first.mean((1, 2, 3))
    return jnp.broadcast_to(change[:, None, None, None], (*first.shape[:3], 2)) + params

  return Estimator(lambda _: jnp.zeros(()), encode, between, 8)


@pytest.mark.parametrize(
  ("shape", "seen", "scale"),
  [
    ((24, 40), (24, 40), (1, 1)),
    ((20, 43), (16, 40), (43 / 40, 20 / 16)),
    ((8, 1024), (8, 512), (2, 1)),
  ],
)
def test_it_leads_to_the_frame_before_in_pixels_of_the_frames(shape, seen, scale):
  encoded = []
  follow = following.Follower(made_up(encoded), jnp.zeros(()), following.flow_to_previous)
  frames = [np.full((*shape, 3), value, np.uint8) for value in (10, 13, 9)]
  flows = [np.asarray(follow(*pair)) for pair in itertools.pairwise(frames)]
  assert encoded == [(1, *seen, 3)]
  for flow, change in zip(flows, (-3, 4), strict=True):
    assert flow.shape == (1, *shape, 2)
    want = np.broadcast_to(change * np.array(scale), flow.shape)
    np.testing.assert_allclose(flow, want, rtol=1e-5)
