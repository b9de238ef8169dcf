"""Metrics of faces and of flicker on numbers that can be worked out by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from vsr_jax.metrics import warping
from vsr_jax.metrics.faces import identity_similarity, keypoint_distance, landmark_motion_error


def test_identity_is_the_cosine_whatever_the_length():
  truth = np.array([[3, 0], [0, 2], [1, 1]], np.float32)
  output = np.array([[5, 0], [-4, 0], [0, -1]], np.float32)
  np.testing.assert_allclose(identity_similarity(truth, output), [1, 0, -np.sqrt(0.5)], atol=1e-7)


def test_keypoint_distance_is_the_mean_length():
  truth = np.zeros((2, 3, 2), np.float32)
  output = truth.copy()
  output[1] = [[3, 4], [0, 0], [0, -1]]
  np.testing.assert_allclose(keypoint_distance(truth, output), [0, 2])


def test_motion_error_sees_jitter_and_no_constant_offset():
  rng = np.random.default_rng(0)
  truth = rng.uniform(0, 512, (5, 7, 2))
  np.testing.assert_allclose(landmark_motion_error(truth, truth + (10, -3)), np.zeros(4))
  jitter = np.array([[0, 0], [3, 4], [0, 0], [0, 0], [-1, 0]])[:, None]
  np.testing.assert_allclose(landmark_motion_error(truth, truth + jitter), [5, 5, 0, 1])


def shifted(shift: int, size: int = 24) -> jnp.ndarray:
  wide = np.random.default_rng(1).uniform(size=(1, size, size + 8, 3)).astype(np.float32)
  return jnp.asarray(wide[:, :, shift : shift + size])


def test_what_moves_with_the_flow_has_no_warping_error():
  previous, frame = shifted(0), shifted(3)  # the content moves 3 pixels to the left
  to_previous = jnp.full((1, 24, 24, 2), jnp.array([3.0, 0.0])).astype(jnp.float32)
  mask = warping.visible(to_previous, -to_previous)
  expected = np.ones((24, 24), bool)
  expected[:, -3:] = False  # the flow leads out of the frame
  np.testing.assert_array_equal(mask[0], expected)
  assert float(warping.warping_error(previous, frame, to_previous, mask)[0]) < 1e-12
  brighter = warping.warping_error(previous, frame + 0.1, to_previous, mask)
  assert float(brighter[0]) == pytest.approx(0.01, rel=1e-5)
  assert np.isnan(warping.warping_error(previous, frame, to_previous, jnp.zeros_like(mask))[0])


def test_occlusions_and_borders_of_motion_do_not_count():
  to_previous = np.zeros((1, 24, 24, 2), np.float32)
  to_next = to_previous.copy()
  to_next[0, :4, :, 0] = 2  # it does not come back
  to_previous[0, 12:], to_next[0, 12:] = [0.4, 0], [0.2, 0]  # within the tolerance there and back
  mask = np.asarray(warping.visible(jnp.asarray(to_previous), jnp.asarray(to_next)))[0]
  assert not mask[:4].any()
  assert mask[5:11, :23].all()
  assert not mask[11:13].any()  # the motion changes by 0.4 pixels
  assert mask[13:, :23].all()
  assert not mask[13:, 23].any()
