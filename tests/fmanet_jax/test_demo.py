"""The demonstration: what it writes and says, and that its clip is what its notes tell."""

from __future__ import annotations

import functools
import json
import os

import numpy as np
import pytest

from fmanet_jax import demo, streaming
from tests.support import fmanet
from tests.vsr_jax.clips import moving_waves
from vsr_jax import video
from vsr_jax.metrics import rgb_psnr
from vsr_jax.ops.resize import resize_bicubic


@pytest.fixture
def run(tmp_path, run_main):
  return functools.partial(run_main, demo.main, "--out", tmp_path / "out")


@pytest.fixture
def weights(tmp_path):
  folder = tmp_path / "weights"
  fmanet.save(folder)
  return folder


def write(path, images):
  with video.open_writer(str(path), *images.shape[1:3], 25, quality=0) as writer:
    for image in images:
      writer.write(image)


def read(path):
  with video.open_reader(str(path)) as reader:
    return np.stack([frame.image for frame in reader])


def test_the_demonstration(run, weights, tmp_path, monkeypatch):
  clip = tmp_path / "clip"
  clip.mkdir()
  truth = moving_waves(4, 48, 64)
  blurry = resize_bicubic(truth, 0.5)
  write(clip / "truth.mp4", truth)
  write(clip / "input.mp4", blurry)
  monkeypatch.setattr(demo, "CLIP", clip)
  said = run("--checkpoint", weights)
  out = tmp_path / "out"
  files = ["metrics.json", "metrics.md", "restored.mp4", "side_by_side.mp4", "side_by_side.png"]
  assert sorted(os.listdir(out)) == files
  assert "| bigbuckbunny | FMA-Net | 4 |" in said.out
  assert all(name in said.out for name in files)

  bicubic = resize_bicubic(blurry, 2)
  found = json.loads((out / "metrics.json").read_text())
  expected = np.mean([rgb_psnr(a, b) for a, b in zip(truth, bicubic, strict=True)])
  assert found["complete"]
  assert found["total"]["scores"]["bicubic"]["psnr"] == pytest.approx(expected)

  restored, both = read(out / "restored.mp4"), read(out / "side_by_side.mp4")
  assert restored.shape == truth.shape
  # Coded at a high quality: a few levels on average; what random weights restore is noise.
  assert np.abs(both[:, :, :64].astype(int) - bicubic).mean() < 3
  assert np.abs(both[:, :, 64:].astype(int) - restored).mean() < 6
  picture = read(out / "side_by_side.png")[0]
  assert picture.shape == (96, 192, 3)
  shown = [i for i in range(4) if (picture[:48, :64] == bicubic[i]).all()]
  assert len(shown) == 1
  np.testing.assert_array_equal(picture[:48, 128:], truth[shown[0]])


def test_missing_weights_are_told(run, monkeypatch, tmp_path):
  monkeypatch.setattr(streaming, "DEMO_WEIGHTS", tmp_path / "demo_weights")
  said = run(code=2)
  assert said.err.count("\n") == 1
  assert "demo_weights: the demonstration weights are missing" in said.err
  assert not (tmp_path / "out").exists()


def test_weights_of_another_scale_are_told(run, weights):
  said = run("--checkpoint", weights, code=2)  # x2; the packaged clip is for x4
  assert "demo_clip: no clip to restore at scale 2; take another checkpoint" in said.err


@pytest.mark.slow
def test_the_packaged_weights_sharpen_the_packaged_clip():
  files = [path for path in streaming.DEMO_WEIGHTS.rglob("*") if path.is_file()]
  assert 0 < sum(path.stat().st_size for path in files) <= 4e6
  blurry, truth = (
    # In the middle.
    read(demo.CLIP / name)[10:13, 13 * s : 77 * s, 40 * s : 120 * s]
    for name, s in (("input.mp4", 1), ("truth.mp4", 4))
  )
  restored = streaming.Restorer(*streaming.load()).stream(blurry)
  gains = [
    rgb_psnr(sharp, output) - rgb_psnr(sharp, resize_bicubic(frame, 4))
    for sharp, output, frame in zip(truth, restored, blurry, strict=True)
  ]
  assert min(gains) > 0.3  # dB; 0.7 on average over the clip


def test_the_packaged_clip():
  truth, blurry = (video.probe(str(demo.CLIP / name)) for name in ("truth.mp4", "input.mp4"))
  assert (truth.height, truth.width, truth.frame_count) == (360, 640, 40)
  assert (blurry.height, blurry.width, blurry.frame_count) == (90, 160, 40)
  assert "Creative Commons Attribution 3.0" in (demo.CLIP / "README.txt").read_text()
  assert sum(path.stat().st_size for path in demo.CLIP.iterdir()) < 2**21
