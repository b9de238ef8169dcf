"""The simulated motion of a portrait: exact landmarks, no folds, smooth, reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from vsr_jax.data_prep import head_motion

GRID = np.stack(np.meshgrid(*2 * [(np.arange(96) + 0.5) / 96]), -1)


def motion(seed=0, frames=24, amplitude=1.0):
  rng = np.random.default_rng(seed)
  return head_motion.draw(rng, head_motion.template(), frames, amplitude=amplitude)


def with_lids_closed(seed, amplitude):
  """A motion whose lids are closed and whose jaw is open at some frame, the strongest bends."""
  made = motion(seed, 12, amplitude)
  made.curves["blink"][:] = np.linspace(0, 1, 12)
  made.curves["jaw"][:] = np.linspace(0, 1, 12)
  return made


@pytest.mark.parametrize("amplitude", [0, 1, 2])
def test_landmarks_are_where_the_frame_shows_those_of_the_still(amplitude):
  for seed in range(4):
    made = with_lids_closed(seed, amplitude)
    points = head_motion.moved_landmarks(made)
    shown = head_motion.source_points(made, slice(None), points)
    np.testing.assert_allclose(shown, np.tile(made.landmarks, (12, 1, 1)), atol=1e-9)
    for i in (0, 11):
      one = head_motion.source_points(made, i, points[i])
      np.testing.assert_allclose(one, shown[i], atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_folds_over(seed):
  made = with_lids_closed(seed, 2.0)
  for frame in (0, 6, 11):
    places = 96 * head_motion.source_points(made, frame, GRID)
    down, across = np.gradient(places, axis=(0, 1))
    area = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    assert area.min() > 0.02


def test_heads_move_smoothly_and_by_as_much_as_the_amplitude_says():
  speeds, sizes = [], {}
  for amplitude in (0.0, 1.0, 2.0):
    made = [motion(seed, 24, amplitude) for seed in range(12)]
    points = np.stack([head_motion.moved_landmarks(m) for m in made])
    moved = np.linalg.norm(points - head_motion.template(), axis=-1)
    sizes[amplitude] = np.sqrt(np.square(moved).mean())
    speeds.append(np.linalg.norm(np.diff(points[:, :, 2], axis=1), axis=-1).max())  # of noses
  assert sizes[0] < 1e-9
  assert 0.01 < sizes[1] < 0.06 < 2.5 * sizes[1]
  assert sizes[2] > 1.6 * sizes[1]
  assert speeds[0] < 1e-9
  assert speeds[1] < 0.02  # 2.5 pixels of 128 a frame


def test_the_background_moves_less_than_the_face():
  nose, corner = head_motion.template()[2], np.array([0.02, 0.02])
  still = np.tile([nose, corner], (24, 1, 1))
  away = [head_motion.source_points(motion(s), slice(None), still) - still for s in range(12)]
  face, background = np.sqrt(np.square(away).sum(-1).mean((0, 1)))
  assert background < 0.5 * face


def test_a_seed_gives_the_same_motion_another_seed_another():
  one, same, other = motion(3), motion(3), motion(4)
  np.testing.assert_array_equal(one.heights, same.heights)
  for name, curve in one.curves.items():
    np.testing.assert_array_equal(curve, same.curves[name])
  assert np.abs(one.curves["yaw"] - other.curves["yaw"]).max() > 0.01


def test_lids_close_now_and_then_and_the_light_changes_a_little():
  made = [motion(seed, 250) for seed in range(20)]  # ten seconds each
  closed = np.mean([np.diff(m.curves["blink"] > 0.5).sum() / 2 for m in made])
  assert 2 < closed < 6  # of 4 expected
  assert all(m.curves["blink"].min() >= 0 and m.curves["blink"].max() <= 1 for m in made)
  light = np.stack([head_motion.light(m, i, GRID) for m in made for i in (0, 125, 249)])
  assert 0.6 < light.min() < 0.97 < 1.03 < light.max() < 1.6
  assert np.abs(np.diff(light, axis=2)).max() < 0.01  # no edges
