"""Metrics against the released evaluation's numbers, scikit-image and their properties."""

from __future__ import annotations

import functools
import math
import pathlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vsr_jax.metrics import (
  ClipScore,
  Metric,
  Score,
  Sums,
  clip_score,
  magnitude,
  rgb_psnr,
  ssim,
  tof,
)
from vsr_jax.metrics.sums import compute, mean_over_clips

PARITY = pathlib.Path(__file__).resolve().parents[1] / "parity"


@functools.cache
def golden() -> dict[str, np.ndarray]:
  """Four frames of Big Buck Bunny, a degraded copy, and what the released code says of them."""
  with np.load(PARITY / "metrics.npz") as file:
    return dict(file)


def frames(seed: int, h: int = 20, w: int = 24) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  a = rng.integers(0, 256, (h, w, 3))
  b = np.clip(a + rng.integers(-30, 31, a.shape), 0, 255)
  return a.astype(np.uint8), b.astype(np.uint8)


@pytest.mark.parametrize("border", [1, 4])
def test_psnr_and_ssim_equal_the_released_code(border):
  data = golden()
  for metric, name in ((rgb_psnr, "rgb_psnr"), (ssim, "ssim")):
    scores = [metric(a, b, border) for a, b in zip(data["a"], data["b"], strict=True)]
    np.testing.assert_allclose(scores, data[f"{name}/{border}"], rtol=1e-12)  # both in float64


def test_tof_equals_the_released_code():
  a, b, expected = (golden()[name] for name in ("a", "b", "tof"))
  scores = [tof(a[i], a[i + 1], b[i], b[i + 1]) for i in range(len(expected))]
  # The reference averaged in float32. OpenCV's flow may differ by rounding between machines.
  np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("border", [0, 3])
def test_psnr_and_ssim_equal_scikit_image(border):
  # scikit-image has no border: ours is a crop beforehand. Its SSIM leaves out
  # the 5 pixels where the window reaches outside, which is our valid region.
  a, b = frames(0, 40, 36)
  inside = np.s_[border : 40 - border, border : 36 - border]
  psnr = peak_signal_noise_ratio(a[inside], b[inside], data_range=255)
  assert rgb_psnr(a, b, border) == pytest.approx(psnr, rel=1e-12)
  similarity = structural_similarity(
    a[inside],
    b[inside],
    channel_axis=2,
    data_range=255,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
  )
  assert ssim(a, b, border) == pytest.approx(similarity, rel=1e-9)


@given(seed=st.integers(0, 2**32 - 1), h=st.integers(19, 40), w=st.integers(19, 40))
def test_psnr_and_ssim_are_symmetric_and_perfect_only_for_equal_frames(seed, h, w):
  a, b = frames(seed, h, w)
  assert rgb_psnr(a, b) == rgb_psnr(b, a) < math.inf
  assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
  assert -1 <= ssim(a, b) < 1
  assert rgb_psnr(a, a) == math.inf
  assert ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_psnr_of_a_known_error():
  a = np.full((12, 12, 3), 100, np.uint8)
  b = a.copy()
  b[4:8, 4:8, 0] = 110  # a third of the values inside the border are off by 10
  assert rgb_psnr(a, b) == pytest.approx(10 * math.log10(255**2 * 3 / 100), rel=1e-12)
  b[0] = 0  # outside the border
  assert rgb_psnr(a, b) == pytest.approx(10 * math.log10(255**2 * 3 / 100), rel=1e-12)


def moving(shift: float, size: int = 64) -> np.ndarray:
  y, x = np.mgrid[:size, :size]
  waves = np.sin((x - shift) / 3) + np.sin(y / 4) + np.sin((x - shift + y) / 5)
  return np.repeat((128 + 40 * waves)[..., None], 3, axis=2).round().astype(np.uint8)


def test_tof_is_the_distance_between_motions():
  still, one, two = moving(0), moving(1), moving(2)
  assert tof(still, one, still, one) == 0
  assert tof(still, one, still, still) == pytest.approx(1, abs=0.1)  # Farneback's own error
  assert tof(still, two, still, still) == pytest.approx(2, abs=0.2)
  assert tof(still, one, still, two) == tof(still, two, still, one)


def test_tof_weighs_red_green_and_blue_as_luma():
  rng = np.random.default_rng(3)
  a, b = (
    cv2.GaussianBlur(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8), None, 2) for _ in "ab"
  )
  luma = [np.repeat((frame @ [0.299, 0.587, 0.114]).round()[..., None], 3, 2) for frame in (a, b)]
  grey_a, grey_b = (frame.astype(np.uint8) for frame in luma)
  swapped = tof(a, b, a[..., ::-1], b[..., ::-1])
  assert tof(a, b, grey_a, grey_b) < 0.05 * swapped  # levels may differ by one: rounding


@pytest.mark.parametrize(("height", "width"), [(47, 64), (64, 47)])
def test_tof_refuses_frames_without_a_centre(height, width):
  a, b = frames(0, height, width)
  with pytest.raises(ValueError, match="48 pixels"):
    tof(a, b, a, b)


@pytest.mark.parametrize(("height", "width"), [(48, 79), (74, 48), (80, 107)])
def test_tof_counts_the_centre_only(height, width):
  a, b = frames(0, height, width)
  grey_a, grey_b = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b))
  there, back = (
    cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    for pair in ((grey_a, grey_b), (grey_b, grey_a))
  )
  distance = np.sqrt(np.square(there - back).sum(axis=-1))
  for axis, size in enumerate(distance.shape):
    centre = max(n for n in range(0, size, 32) if n <= size - 16)
    start = (size - centre) // 2
    distance = distance.take(range(start, start + centre), axis)
  assert tof(a, b, b, a) == pytest.approx(distance.mean(), rel=1e-5)  # a float32 mean


def test_metrics_refuse_frames_that_do_not_match():
  a, b = frames(0, 64, 64)
  for metric in (rgb_psnr, ssim, lambda a, b: tof(a, a, b, b)):
    with pytest.raises(ValueError, match="different sizes"):
      metric(a, b[1:])
    with pytest.raises(ValueError, match="uint8"):
      metric(a, b / 255)
    with pytest.raises(ValueError, match="uint8"):
      metric(a[..., 0], b[..., 0])


def test_metrics_refuse_frames_smaller_than_the_border():
  a, b = frames(0, 8, 64)
  with pytest.raises(ValueError, match="64x8 are too small"):
    rgb_psnr(a, b)
  a, b = frames(0, 64, 18)
  with pytest.raises(ValueError, match="18x64 are too small"):
    ssim(a, b)


def means(score: Score) -> dict[str, float]:
  return compute(clip_score.METRICS, score)


def test_clip_score_totals_over_frames_and_pairs():
  data = golden()
  clip = ClipScore()
  parts = [clip.add(a, b) for a, b in zip(data["a"], data["b"], strict=True)]
  assert [part.sums["tof"].count for part in parts] == [0, 1, 1, 1]
  assert clip.score == sum(parts, Score())
  found = means(clip.score)
  assert clip.score.frames == 4
  assert found["psnr"] == pytest.approx(data["rgb_psnr/4"].mean(), rel=1e-9)
  assert found["ssim"] == pytest.approx(data["ssim/4"].mean(), rel=1e-9)
  assert found["tof"] == pytest.approx(data["tof"].mean(), rel=1e-6)


def test_scores_of_parts_are_those_of_their_frames():
  data = golden()
  clip, slow = ClipScore(), Score()
  for number, (a, b) in enumerate(zip(data["a"], data["b"], strict=True)):
    added = clip.add(a, b, part="slow" if number in (1, 3) else "fast" if number else None)
    slow += Score(1, added.sums) if number in (1, 3) else Score()
  assert {name: part.frames for name, part in clip.score.parts.items()} == {"slow": 2, "fast": 1}
  assert clip.score.parts["slow"] == slow
  assert means(slow)["psnr"] == pytest.approx(data["rgb_psnr/4"][[1, 3]].mean(), rel=1e-9)
  assert clip.score.frames == 4


@pytest.mark.parametrize(
  ("length", "name"),
  [(0, "[0, 20)"), (19.99, "[0, 20)"), (20, "[20, 40)"), (40, "≥ 40"), (1e9, "≥ 40")],
)
def test_magnitudes_have_ranges(length, name):
  flow = np.broadcast_to(np.float32([0.6, -0.8]) * np.float32(length), (1, 4, 6, 2))
  (found,) = magnitude.magnitude(flow)
  assert float(found) == pytest.approx(length, rel=1e-6)
  assert magnitude.range_of(length) == name


def test_what_is_no_magnitude_has_no_range():
  assert magnitude.range_of(math.nan) is None
  assert magnitude.range_of(math.inf) is None


values = st.lists(st.floats(-1e4, 1e4), max_size=20)


@settings(max_examples=50)
@given(parts=st.lists(values, min_size=1, max_size=8), data=st.data())
def test_merging_in_any_split_and_order_equals_the_whole(parts, data):
  whole = np.concatenate(parts)
  shuffled = [Score(len(p), {"x": Sums.of(p)}) for p in data.draw(st.permutations(parts))]
  split = data.draw(st.integers(0, len(parts)))
  merged = sum(shuffled[:split], Score()) + sum(shuffled[split:], Score())
  mean = Metric("mean", "", 0, True, "x")
  spread = Metric("spread", "", 0, True, "x", spread=True)
  assert merged.frames == len(whole)
  if not len(whole):
    assert all(math.isnan(x) for x in compute([mean, spread], merged).values())
    return
  # Sums of the same numbers in another order: float64 rounding of at most 1e4, and its square.
  assert mean.compute(merged) == pytest.approx(whole.mean(), rel=1e-12, abs=1e-9)
  assert spread.compute(merged) == pytest.approx(whole.std(), rel=1e-4, abs=1e-3)


def test_a_total_is_a_mean_over_frames_or_over_clips():
  long = Score(3, {"psnr": Sums.of([30, 30, 30]), "tof": Sums.of([1, 3])})
  short = Score(1, {"psnr": Sums.of([10]), "tof": Sums()})
  assert means(long + short) == {"psnr": 25, "ssim": pytest.approx(np.nan, nan_ok=True), "tof": 2}
  by_clip = mean_over_clips(clip_score.METRICS, [long, short])
  assert (by_clip["psnr"], by_clip["tof"]) == (20, 2)  # the short clip has no pair


def test_equal_frames_make_the_mean_psnr_infinite():
  a, b = frames(0)
  clip = ClipScore()
  clip.add(a, a)
  assert means(clip.score)["psnr"] == math.inf
  assert math.isnan(means(clip.score)["tof"])  # one frame has no pair
  other = Score(1, {"psnr": Sums.of([rgb_psnr(a, b)])})
  assert means(clip.score + other)["psnr"] == math.inf


def test_mean_over_nothing_is_nan():
  assert all(math.isnan(value) for value in means(Score()).values())
