"""Strips of frames: which are shown, what part of them, and what is written beside."""

from __future__ import annotations

import json

import numpy as np

from vsr_jax.frame_strip import HEIGHT, FrameStrip
from vsr_jax.images import read_image


def test_the_same_middle_of_input_and_truth_is_shown(tmp_path):
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 256, (3, 300, 520, 3), dtype=np.uint8)
  strip = FrameStrip(range(5, 8), side=128)
  for number, frame in enumerate(truth, 5):
    low = frame[2::4, 2::4]
    strip.add(number, low, {"ours": frame}, frame, {"ours": {"psnr": np.inf, "ssim": 1.0}})
  strip.save(tmp_path, "clip")
  told = json.loads((tmp_path / "clip.json").read_text())
  assert told["widths"] == {"input": HEIGHT, "ours": HEIGHT, "truth": HEIGHT}
  assert told["frames"][1] == {"number": 6, "scores": {"ours": {"ssim": 1.0}}}
  picture = read_image(tmp_path / "clip.png")
  assert picture.shape == (3 * HEIGHT, 3 * HEIGHT, 3)
  middle = truth[1, 86:214, 196:324]
  for left in (HEIGHT, 2 * HEIGHT):
    shown = picture[HEIGHT : 2 * HEIGHT : 2, left : left + HEIGHT : 2]
    np.testing.assert_array_equal(shown[20:], middle[20:])
  low = truth[1, 2::4, 2::4][(75 - 32) // 2 :][:32, (130 - 32) // 2 :][:, :32]
  shown = picture[HEIGHT : 2 * HEIGHT : 8, :HEIGHT:8]
  np.testing.assert_array_equal(shown[5:], low[5:])


def test_few_frames_of_a_long_clip_are_kept(tmp_path):
  strip = FrameStrip(range(100))
  frame = np.zeros((8, 8, 3), np.uint8)
  for number in range(100):
    strip.add(number, frame, {}, frame, {})
  strip.save(tmp_path, "clip")
  told = json.loads((tmp_path / "clip.json").read_text())
  assert [x["number"] for x in told["frames"]] == [0, 33, 66, 99]
