"""What the paper's Table 3 has besides: frames by motion, and Net^D's reconstruction."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fmanet_jax import evaluate
from fmanet_jax.model import degrade, learn_degradation
from fmanet_jax.reconstruction import Reconstructor
from tests.data_prep.helpers import write_clip_set
from tests.fmanet_jax.evaluating import data, frames_of, repeated, run, scores, stand_in
from tests.support import fmanet
from vsr_jax.images import read_image

__all__ = ["data", "run", "stand_in"]  # fixtures


def test_frames_are_told_apart_by_the_truths_motion(run, data, monkeypatch, tmp_path):
  followed = []

  def follow(before, frame):  # the frame's place in the set tells its motion
    followed.append((before, frame))
    return np.full((1, 2, 2, 2), (15 * len(followed), 0), np.float32)

  monkeypatch.setattr(evaluate, "Follower", lambda *_: follow)
  found = run(data, "--by-motion", "--clips", "beach")
  truths = frames_of(data, "sharp", "beach")
  assert len(followed) == 4  # with the frame before the first one that is scored
  for number, pair in enumerate(followed):
    np.testing.assert_array_equal(pair, truths[number : number + 2])
  motion = found["clips"][0]["motion"]
  assert {name: part["frames"] for name, part in motion.items()} == {
    "[0, 20)": 1,
    "[20, 40)": 1,
    "≥ 40": 2,
  }
  blurry = frames_of(data, "blur_bicubic", "beach")
  ends = scores(truths[3:5], [repeated(frame) for frame in blurry[3:5]])
  assert motion["≥ 40"]["scores"]["FMA-Net"]["psnr"] == pytest.approx(ends["psnr"], rel=1e-12)
  assert found["flow"] == "raft_small"
  assert "| [20, 40) | FMA-Net | 1 |" in (tmp_path / "out" / "metrics.md").read_text()
  followed.clear()
  found = run(data, "--by-motion", "--clips", "beach", "--all-frames")
  parts = found["clips"][0]["motion"].values()
  assert (found["total"]["frames"], sum(part["frames"] for part in parts)) == (6, 5)


def test_the_reconstruction_is_scored_against_the_input(run, tmp_path, monkeypatch):
  write_clip_set(tmp_path / "large", {"alley": 4}, h=56, w=64)

  def stream(decode, length, span):
    assert (length, span) == (4, range(1, 3))
    for number in span:
      blurry, sharp = decode(number)
      assert sharp.shape == (224, 256, 3)
      flow = np.zeros((*blurry.shape[:2], 3), np.float32)
      yield blurry // 2, jax.numpy.asarray(flow + [2, 0, 9], np.float32)

  monkeypatch.setattr(evaluate, "Reconstructor", lambda *_: SimpleNamespace(stream=stream))
  found = run(tmp_path / "large", "--reconstruction")
  assert found["methods"] == ["bicubic", "FMA-Net", "reconstruction"]
  blurry = frames_of(tmp_path / "large", "blur_bicubic", "alley")[1:-1]
  want = scores(blurry, [frame // 2 for frame in blurry])
  assert found["total"]["scores"]["reconstruction"] == pytest.approx(want, rel=1e-12)
  told = json.loads((tmp_path / "out" / "strips" / "alley.json").read_text())
  assert list(told["widths"]) == ["input", "bicubic", "FMA-Net", "flow of FMA-Net", "truth"]
  left = sum(list(told["widths"].values())[:3])
  strip = read_image(tmp_path / "out" / "strips" / "alley.png")
  np.testing.assert_array_equal(strip[200, left + 100], [255, 64, 64])
  text = (tmp_path / "out" / "metrics.md").read_text()
  assert f"| total | reconstruction | 2 | {want['psnr']:.2f} |" in text  # no difference
  run(tmp_path / "large", "--reconstruction", "--outputs", tmp_path, code=2)


def test_the_reconstruction_is_net_ds():
  model, params = fmanet.load(fmanet.TINY)
  rng = np.random.default_rng(0)
  blurry = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
  sharp = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
  reconstructor = Reconstructor(model, params)
  given = list(reconstructor.stream(lambda i: (blurry[i], sharp[i]), 4, range(4)))
  found, flows = zip(*given, strict=True)
  order = [0, 0, 1, 2, 3, 3]
  windows = [order[i : i + 3] for i in range(4)]
  x, y = (jax.numpy.stack([frames[w] for w in windows]) / 255 for frames in (blurry, sharp))
  degradation = learn_degradation(model, params, x)
  want, _ = degrade(model, degradation, y)
  assert np.std(want) > 0.05
  np.testing.assert_allclose(np.stack(found) / 255, np.clip(want, 0, 1), atol=0.6 / 255)
  np.testing.assert_allclose(np.stack(flows), degradation.image_flow[:, 0], rtol=1e-3, atol=1e-4)
