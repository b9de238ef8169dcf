"""KEEP's demonstration: what it writes and says, with a tiny model and a short clip."""

from __future__ import annotations

import functools
import json
import os

import av
import numpy as np
import pytest
import skimage.data

from keep_jax import demo, streaming, weights
from tests.keep_jax import tiny
from tests.vsr_jax.clips import encode
from vsr_jax import video
from vsr_jax.faces.detector import make_detector
from vsr_jax.metrics import rgb_psnr
from vsr_jax.ops.resize import resize_bicubic

FILES = ["metrics.json", "metrics.md", "restored.mp4", "side_by_side.mp4", "side_by_side.png"]


@pytest.fixture
def run(tmp_path, run_main):
  return functools.partial(run_main, demo.main, "--out", tmp_path / "out")


def read(path):
  with video.open_reader(str(path)) as reader:
    return np.stack([frame.image for frame in reader])


def test_the_demonstration(run, tmp_path, monkeypatch):
  clip = tmp_path / "clip"
  clip.mkdir()
  photo = skimage.data.astronaut()[:280, 60:400]
  truth = np.stack([photo[10:234, 2 * i : 2 * i + 256] for i in range(3)])
  low = np.stack([resize_bicubic(resize_bicubic(frame, 0.25), 4) for frame in truth])
  tone = np.sin(np.arange(6_000) / 20)
  encode(clip / "truth.mp4", truth, "ffv1", "bgr0")
  encode(clip / "input.mp4", low, "ffv1", "bgr0", sound=("aac", tone))
  monkeypatch.setattr(demo, "CLIP", clip)
  monkeypatch.setattr(weights, "DEMO_WEIGHTS", tmp_path / "weights")
  tiny.save(tmp_path / "weights")
  said = run()
  out = tmp_path / "out"
  assert sorted(os.listdir(out)) == FILES
  assert "| face | KEEP | 3 |" in said.out
  assert all(name in said.out for name in FILES)

  found = json.loads((out / "metrics.json").read_text())
  assert found["complete"]
  scores = found["total"]["scores"]
  assert scores["bicubic"].keys() == {"psnr", "ssim", "ids", "akd"}
  expected = np.mean([rgb_psnr(a, b, border=0) for a, b in zip(truth, low, strict=True)])
  assert scores["bicubic"]["psnr"] == pytest.approx(expected)
  assert scores["KEEP"]["ids"] < scores["bicubic"]["ids"] < 1  # weights are random
  assert scores["KEEP"]["akd"] > scores["bicubic"]["akd"] > 0

  with av.open(str(out / "restored.mp4")) as file:
    assert file.streams.audio
  restored, both = read(out / "restored.mp4"), read(out / "side_by_side.mp4")
  assert restored.shape == truth.shape
  assert np.abs(restored[:, 205:].astype(int) - low[:, 205:]).mean() < 3  # below the face
  assert np.abs(restored[:, 60:160, 70:170].astype(int) - low[:, 60:160, 70:170]).mean() > 20
  assert np.abs(both[:, :, :256].astype(int) - low).mean() < 3
  picture = read(out / "side_by_side.png")[0]
  assert picture.shape == (448, 768, 3)


def test_missing_weights_are_told(run, monkeypatch, tmp_path):
  monkeypatch.setattr(weights, "DEMO_WEIGHTS", tmp_path / "demo_weights")
  said = run(code=2)
  assert said.err.count("\n") == 1
  assert "demo_weights: KEEP's demonstration weights are missing" in said.err
  assert not (tmp_path / "out").exists()


def test_the_packaged_clip():
  truth, low = (video.probe(str(demo.CLIP / name)) for name in ("truth.mp4", "input.mp4"))
  assert (truth.height, truth.width, truth.frame_count) == (176, 288, 60)
  assert (low.height, low.width, low.frame_count) == (176, 288, 60)
  assert "CC0 1.0" in (demo.CLIP / "README.txt").read_text()
  assert sum(path.stat().st_size for path in demo.CLIP.iterdir()) < 2**19


def test_the_packaged_weights_restore_the_packaged_clip():
  """The fine detail of a face that bicubic lacks is there, about as much as in the truth."""
  files = [path for path in weights.DEMO_WEIGHTS.rglob("*") if path.is_file()]
  assert 0 < sum(path.stat().st_size for path in files) <= 12e6
  truth, low = (demo.read(demo.CLIP / name)[:8] for name in ("truth.mp4", "input.mp4"))
  detect = make_detector()
  places = demo.find_landmarks(truth, detect)
  restored = demo.restore(streaming.Restorer(*streaming.load()), low, detect)
  found = []
  for true, (before, frame), place in zip(truth, restored, places, strict=True):
    (left, top), (right, bottom) = place.min(0).astype(int), place.max(0).astype(int)
    face = slice(top, bottom), slice(left, right)
    found.append([detail(image[face]) for image in (true.image, before, frame.image)])
    assert rgb_psnr(true.image, frame.image) > rgb_psnr(true.image, before) - 1.5
  of_truth, of_bicubic, of_keep = np.mean(found, axis=0)
  assert of_bicubic < 0.6 * of_truth
  assert 0.75 * of_truth < of_keep < 1.3 * of_truth


@pytest.mark.slow
def test_the_demonstration_as_it_ships(run, tmp_path):
  """Landmarks are nearer to the truth's than in bicubic frames, over the whole clip."""
  run()
  scores = json.loads((tmp_path / "out/metrics.json").read_text())["total"]["scores"]
  assert scores["KEEP"]["akd"] < scores["bicubic"]["akd"]


def detail(image):
  """The mean difference of neighbouring pixels."""
  return np.mean([np.abs(np.diff(image.astype(int), axis=axis)).mean() for axis in (0, 1)])
