"""The exposure model against closed forms, and the small operations around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_prep.helpers import texture
from vsr_jax.data_prep import exposure
from vsr_jax.ops.resize import resize_bicubic


def numbered(count: int, h: int = 32, w: int = 40) -> list[np.ndarray]:
  return [np.full((h, w, 3), 10 + i, np.uint8) for i in range(count)]


@given(st.floats(1.0, 3.0))
@settings(max_examples=20, deadline=None)
def test_light_and_back_is_the_identity(gamma):
  values = np.arange(256, dtype=np.uint8).reshape(16, 16)
  # At a gamma of 3 the light of value 1 is 6e-8: float32 still tells it from 0.
  np.testing.assert_array_equal(
    exposure.from_light(exposure.to_light(values, gamma), gamma), values
  )


@given(st.integers(1, 5), st.sampled_from([0.25, 0.5, 1.0]), st.integers(0, 14))
@settings(max_examples=30, deadline=None)
def test_outputs_are_the_frames_whose_exposure_lies_inside(stride, shutter, count):
  outputs = list(
    exposure.expose(numbered(count), stride=stride, shutter=shutter, gamma=1.0, interpolate=False)
  )
  half = shutter * stride / 2
  first = int(np.ceil(half))
  expected = [t for t in range(first, count, stride) if t + half <= count - 1]
  assert [int(o.sharp[0, 0, 0]) - 10 for o in outputs] == expected


def test_high_frame_rates_are_averaged_by_the_trapezoidal_rule():
  rng = np.random.default_rng(0)
  frames = list(rng.integers(100, 130, (11, 8, 8, 3), dtype=np.uint8))
  outputs = list(exposure.expose(frames, stride=4, gamma=2.2, interpolate=False))
  light = (np.array(frames) / 255.0) ** 2.2
  weights = np.array([0.5, 1, 1, 1, 0.5]) / 4
  assert len(outputs) == 2
  for output, t in zip(outputs, (2, 6), strict=True):
    mean = np.tensordot(weights, light[t - 2 : t + 3], 1)
    expected = 255 * mean ** (1 / 2.2)
    np.testing.assert_array_equal(output.sharp, frames[t])
    assert np.abs(output.blurry - expected).max() <= 0.5 + 1e-3  # rounding to 8 bits


@pytest.mark.parametrize("stride", [1, 2])
def test_interpolated_exposure_of_a_translation_is_the_mean_along_its_path(stride):
  speed = 3.0
  frames = [texture(96, 128, speed * i) for i in range(6)]
  outputs = list(exposure.expose(frames, stride=stride, gamma=1.0))
  times = (np.arange(64) + 0.5) / 64 - 0.5
  for k, output in enumerate(outputs):
    t = 1 + k * stride
    path = [texture(96, 128, speed * (t + stride * s)).astype(float) for s in times]
    inner = (slice(16, -16), slice(16, -16))  # content enters at the edges
    np.testing.assert_array_equal(output.sharp, frames[t])
    error = np.abs(output.blurry - np.mean(path, axis=0))[inner].mean()
    ghost = (frames[t - 1].astype(float) + frames[t] + frames[t + 1])[inner] / 3
    ghost_error = np.abs(ghost - np.mean(path, axis=0)[inner]).mean()
    assert error < 0.5  # of 255; 8-bit rounding alone gives 0.25
    assert stride == 2 or error < ghost_error


def test_still_frames_stay_sharp():
  outputs = list(exposure.expose([texture(64, 64)] * 3))
  assert len(outputs) == 1
  difference = outputs[0].blurry.astype(int) - outputs[0].sharp
  assert np.abs(difference).max() <= 1


def test_a_moving_object_uncovers_the_right_background():
  background = texture(96, 160)
  frames = []
  for i in range(3):
    frame = background.copy()
    frame[30:66, 40 + 8 * i : 80 + 8 * i] = texture(36, 40, 5, 7) // 2
    frames.append(frame)
  blurry = next(exposure.expose(frames, gamma=1.0)).blurry.astype(float)
  # Half a pixel of the object's path before and after: beyond it nothing may have changed.
  untouched = np.ones((96, 160), bool)
  untouched[26:70, 36:104] = False
  assert np.abs(blurry - background)[untouched].mean() < 1.0
  # In the middle of the sweep the object is half transparent, without repeated edges.
  profile = np.abs(blurry[48, 44:52] - background[48, 44:52]).mean(-1)
  assert (np.diff(profile) > -6).all()


@pytest.mark.parametrize("interpolate", [True, False])
def test_exposures_do_not_cross_cuts(interpolate):
  rng = np.random.default_rng(1)
  dark = [texture(64, 64, i) // 3 for i in range(4)]
  bright = [255 - rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)] * 5
  outputs = list(exposure.expose(dark + bright, interpolate=interpolate))
  assert [o.scene for o in outputs] == [0, 0, 1, 1, 1]
  for output in outputs:
    assert abs(int(output.blurry.mean()) - int(output.sharp.mean())) <= 1


def test_memory_is_constant_in_the_clips_length():
  pulled = 0

  def endless():
    nonlocal pulled
    while True:
      pulled += 1
      yield numbered(1, 16, 16)[0]

  outputs = exposure.expose(endless(), stride=2, interpolate=False)
  for _ in range(10):
    next(outputs)
  assert pulled <= 2 * 10 + 2


@pytest.mark.parametrize(
  "wrong", [{"stride": 0}, {"shutter": 0.0}, {"shutter": 1.5}, {"subframes": 0}, {"gamma": 0.0}]
)
def test_impossible_exposures_are_refused(wrong):
  with pytest.raises(ValueError, match="impossible exposure"):
    next(exposure.expose(numbered(3), **wrong))


def test_hand_held_shows_windows_of_the_frames_at_the_given_speed():
  y, x = np.mgrid[:200, :250]
  frame = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)  # a pixel tells its place
  windows = list(exposure.hand_held([frame] * 400, 2.5, np.random.default_rng(2)))
  corners = np.array([window[0, 0, :2] for window in windows]).astype(int)
  for window, (left, top) in zip(windows, corners, strict=True):
    np.testing.assert_array_equal(window, frame[top : top + 180, left : left + 225])
  speed = np.sqrt((np.diff(corners, axis=0) ** 2).mean(axis=0))
  np.testing.assert_allclose(speed, 2.5, rtol=0.15)  # 400 frames of a random path, whole pixels


def test_halving_takes_means_and_cropping_keeps_the_corner():
  frame = texture(37, 51)
  half = exposure.halve(frame)
  means = frame[:36, :50].reshape(18, 2, 25, 2, 3).mean((1, 3))
  assert np.abs(half - means).max() <= 0.5
  np.testing.assert_array_equal(exposure.crop_to_multiple(frame, 4), frame[:36, :48])


def test_reduction_is_matlabs_bicubic():
  frame = texture(48, 64)
  np.testing.assert_array_equal(exposure.downsample(frame, 4), resize_bicubic(frame, 0.25))
