"""What KEEP's evaluation scores, writes and keeps; stand-ins restore and look at faces."""

from __future__ import annotations

import json
import weakref
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from keep_jax import evaluate
from tests.data_prep import layouts
from tests.data_prep.helpers import texture, write_png
from tests.keep_jax.evaluating import (
  LENGTHS,
  SIZE,
  data,
  find,
  follow,
  look,
  repeated,
  run,
  stand_ins,
)
from tests.vsr_jax import clips
from vsr_jax import plotting
from vsr_jax.data_prep.face_degrade import PRESETS
from vsr_jax.data_prep.face_streams import FaceClip, face_clip, template
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.faces.detections import Detections
from vsr_jax.images import read_image
from vsr_jax.metrics import rgb_psnr, ssim
from vsr_jax.ops.resize import resize_bicubic

__all__ = ["data", "run", "stand_ins"]  # fixtures


def source(data, name, preset="mild", size=SIZE) -> FaceClip:
  (clip,) = (clip for clip in open_clips(data, streams=("sharp",)).clips if clip.name == name)
  return face_clip(clip, PRESETS[preset], size)


def mean_and_spread(values):
  return float(np.mean(values)), float(np.std(values))


def expected(data, name, restore, preset="mild"):
  """The measures of a clip by their definitions."""
  good, low = (
    list(x) for x in (source(data, name, preset).good(), source(data, name, preset).low())
  )
  outputs = [restore(frame) for frame in low]
  pairs = list(zip(good, outputs, strict=True))
  points = template(SIZE)
  errors = [find(y, points)[0] - find(x, points)[0] for x, y in pairs]
  identities = [
    float(look(x) @ look(y) / np.linalg.norm(look(x)) / np.linalg.norm(look(y))) for x, y in pairs
  ]
  distances = [np.linalg.norm(error, axis=-1).mean() for error in errors]
  ids, sigma_ids = mean_and_spread(identities)
  akd, sigma_akd = mean_and_spread(distances)
  return {
    "psnr": np.mean([rgb_psnr(x, y, 0) for x, y in pairs]),
    "ssim": np.mean([ssim(x, y, 0) for x, y in pairs]),
    "lpips": np.mean([np.abs(x.astype(float) - y).mean() / 255 for x, y in pairs]),
    "ids": ids,
    "akd": akd,
    "sigma_ids": sigma_ids,
    "sigma_akd": sigma_akd,
    "tlme": np.mean([np.linalg.norm(b - a, axis=-1).mean() for a, b in pairwise(errors)]),
    "warping": np.mean(
      [np.square((b.astype(float) - a) / 255).mean() for a, b in pairwise(outputs)]
    ),
  }


def bicubic(frame):
  return resize_bicubic(frame, size=(SIZE, SIZE))


def test_clips_are_scored_as_the_metrics_are_defined(run, data):
  found, _ = run(data, "--checkpoint", "weights")
  assert found["complete"]
  assert found["methods"] == ["bicubic", "weights", "truth"]
  assert [(row["name"], row["frames"]) for row in found["clips"]] == list(LENGTHS.items())
  for row in found["clips"]:
    for method, restore in (("bicubic", bicubic), ("weights", repeated)):
      want = expected(data, row["name"], restore)
      assert row["scores"][method] == pytest.approx(want, rel=1e-5, abs=1e-6)
    own = row["scores"]["truth"]
    assert [name for name, x in own.items() if x is not None] == ["warping"]
  for method in found["methods"]:  # the mean over clips
    for name, x in found["total"]["scores"][method].items():
      values = [row["scores"][method][name] for row in found["clips"]]
      assert x == (None if values[0] is None else pytest.approx(np.mean(values), rel=1e-9))


def test_frames_are_told_apart_by_the_truths_motion(run, data, stand_ins):
  seen = []

  def moving(before, frame):
    seen.append(frame)
    flow, mask = follow(before, frame)
    return flow + 25.0 * (len(seen) == 2), mask  # of the length 35

  stand_ins.networks = stand_ins.networks._replace(follow=moving)
  found, _ = run(data, "--checkpoint", "weights", "--clips", "anna")
  (clip,) = found["clips"]
  motion = clip["motion"]
  assert {name: part["frames"] for name, part in motion.items()} == {"[0, 20)": 3, "[20, 40)": 1}
  good = list(source(data, "anna").good())
  low = list(source(data, "anna").low())
  want = rgb_psnr(good[2], repeated(low[2]), 0)
  assert motion["[20, 40)"]["scores"]["weights"]["psnr"] == pytest.approx(want, rel=1e-9)
  whole = [rgb_psnr(x, repeated(y), 0) for x, y in zip(good, low, strict=True)]
  assert clip["scores"]["weights"]["psnr"] == pytest.approx(np.mean(whole), rel=1e-9)


def test_the_setting_and_the_table_say_what_is_compared(run, data, tmp_path):
  found, said = run(data, "--checkpoint", "ours=weights", "--degradation", "train", "--window", 7)
  setting = {
    "scored": "aligned",
    "size": SIZE,
    "degradation": "train",
    "mode": "as_released",
    "window": 7,
    "checkpoints": {"ours": "weights"},
  }
  assert {name: found[name] for name in setting} == setting
  text = (tmp_path / "out" / "metrics.md").read_text()
  assert "Scored: aligned faces, 64x64. Input: train" in text
  assert "mode as_released (chunks of 7 frames): ours (64 pixels)" in text
  assert "| total | ours | 8 |" in text
  assert text in said.out


def test_the_demonstration_weights_are_the_default(run, data):
  found, _ = run(data)
  assert found["methods"] == ["bicubic", "KEEP", "truth"]
  assert found["checkpoints"] == {"KEEP": None}


def test_every_method_gets_the_same_input(run, data, stand_ins, tmp_path):
  inputs = tmp_path / "inputs"
  run(
    data, "--checkpoint", "a=w", "--checkpoint", "b=v", "--save-inputs", inputs, "--mode", "stream"
  )
  for name in LENGTHS:
    saved = [read_image(path) for path in sorted((inputs / name).iterdir())]
    np.testing.assert_array_equal(saved, list(source(data, name).low()))
  first, second = (restorer.seen for restorer in stand_ins.restorers)
  np.testing.assert_array_equal(first, second)
  np.testing.assert_array_equal(first[5:], list(source(data, "ben").low()))
  assert [restorer.options[0] for restorer in stand_ins.restorers] == ["stream"] * 2


def test_saved_frames_score_the_same(run, data, tmp_path):
  first, _ = run(data, "--checkpoint", "keep=weights", "--save-frames", tmp_path / "saved")
  (tmp_path / "videos").mkdir()
  for name in LENGTHS:  # another method's, as videos
    clips.encode(tmp_path / "videos" / f"{name}.mp4", np.stack(list(source(data, name).good())))
  rows = "--outputs", tmp_path / "saved" / "keep", "--outputs", f"v={tmp_path / 'videos'}"
  second, _ = run(data, *rows, out="out2")
  assert second["methods"] == ["bicubic", "keep", "v", "truth"]
  for before, after in zip(first["clips"], second["clips"], strict=True):
    assert after["scores"]["keep"] == before["scores"]["keep"]
    assert after["scores"]["v"]["psnr"] > 25  # coded
  third, _ = run(data, *rows, "--frames", 2, out="out3")
  assert [row["frames"] for row in third["clips"]] == [2, 2]
  assert third["clips"][0]["scores"]["keep"]["psnr"] is not None


def test_a_model_of_another_size_is_resized(run, data, stand_ins):
  stand_ins.side = 2 * SIZE
  found, _ = run(data, "--checkpoint", "w")
  assert found["size"] == SIZE  # the clips are aligned at that
  assert found["clips"][0]["scores"]["w"]["psnr"] == pytest.approx(
    expected(data, "anna", repeated)["psnr"]
  )


def test_strips_and_plots(run, data, tmp_path, monkeypatch):
  _, said = run(data, "--outputs", data, out="out2")
  assert "matplotlib is missing" in said.err
  assert list((tmp_path / "out2" / "plots").iterdir()) == []
  assert {path.stem for path in (tmp_path / "out2" / "strips").iterdir()} == LENGTHS.keys()
  monkeypatch.setattr(plotting, "is_installed", lambda: True)
  found, _ = run(data, "--checkpoint", "w", "--clips", "anna")
  assert found["skipped"] == {}
  strip = read_image(tmp_path / "out" / "strips" / "anna.png")
  height = 256
  assert strip.shape == (4 * height, 4 * height, 3)  # input, bicubic, w, truth
  good = list(source(data, "anna").good())
  for row, number in enumerate((0, 1, 3, 4)):
    place = strip[row * height + 32 : (row + 1) * height, 3 * height + 80 :]
    np.testing.assert_array_equal(place[::4, ::4], good[number][8:, 20:])
  told = json.loads((tmp_path / "out" / "strips" / "anna.json").read_text())
  assert [frame["number"] for frame in told["frames"]] == [0, 1, 3, 4]
  low = list(source(data, "anna").low())
  psnr = rgb_psnr(good[3], repeated(low[3]), 0)
  assert told["frames"][2]["scores"]["w"]["psnr"] == pytest.approx(psnr)
  assert told["frames"][2]["scores"]["w"].keys() == {"psnr", "ssim", "lpips"}
  plot = read_image(tmp_path / "out" / "plots" / "anna.png")
  assert plot.min() < 100
  assert plot.shape[0] > 300


def test_whole_frames_are_restored_as_the_command_does(run, tmp_path, monkeypatch):
  height, width = 192, 256
  for i in range(3):
    write_png(tmp_path / "data" / "anna" / f"{i:08d}.png", texture(height, width, 3 * i))

  def make_detector(*_):
    def detect(frame):
      points = template(2 * len(frame) // 3) + 4
      boxes = np.array([[*points.min(0), *points.max(0)]], np.float32)
      return Detections(boxes, np.ones(1, np.float32), points[None].astype(np.float32))

    return detect

  monkeypatch.setattr(evaluate.detector, "make_detector", make_detector)
  found, _ = run(
    tmp_path / "data", "--checkpoint", "w", "--whole-frames", "--save-frames", tmp_path
  )
  assert (found["scored"], found["size"]) == ("whole frames", None)
  assert found["skipped"] == {}
  (row,) = found["clips"]
  assert row["scores"]["w"]["ids"] is not None
  restored = [read_image(path) for path in sorted((tmp_path / "w" / "anna").iterdir())]
  low = list(source(tmp_path / "data", "anna", size=None).low())
  assert [x.shape for x in restored] == [(height, width, 3)] * 3
  for image, small in zip(restored, low, strict=True):
    enlarged = resize_bicubic(small, size=(height, width)).astype(int)
    difference = np.abs(image - enlarged).mean(-1)
    assert difference[88:98, 75:85].mean() > 30  # the face: the stand-in inverts it
    assert difference[:, -20:].mean() < 12  # around it: enlarged
  psnr = np.mean(
    [
      rgb_psnr(read_image(p), x, 0)
      for p, x in zip(sorted((tmp_path / "data" / "anna").iterdir()), restored, strict=True)
    ]
  )
  assert row["scores"]["w"]["psnr"] == pytest.approx(psnr)


def test_vfhqs_test_is_scored_by_its_low_quality_frames_and_landmarks(run, stand_ins, tmp_path):
  layouts.write_vfhq_test(tmp_path / "VFHQ", range(1), frames=2)
  stand_ins.side = 128
  found, _ = run(tmp_path / "VFHQ", "--checkpoint", "w", "--save-inputs", tmp_path / "inputs")
  assert (found["degradation"], found["size"]) == ("low_quality", 128)
  (row,) = found["clips"]
  assert row["frames"] == 2
  (clip,) = open_clips(tmp_path / "VFHQ", split="test", streams=None).clips
  low = list(face_clip(clip, "low_quality", 128).low())
  assert [frame.shape for frame in low] == [(32, 32, 3)] * 2
  (folder,) = (tmp_path / "inputs").iterdir()
  np.testing.assert_array_equal([read_image(p) for p in sorted(folder.iterdir())], low)


def test_low_quality_frames_of_the_set_are_the_default(data):
  (clip, _) = open_clips(data, streams=("sharp",)).clips
  own = SimpleNamespace(streams={"low_quality": [b""]}, stream=lambda name: None)
  assert evaluate.choose_degradation(None, [clip]) == "mild"
  assert evaluate.choose_degradation(None, [own]) == "low_quality"
  assert evaluate.choose_degradation(None, [own, clip]) == "mild"
  assert evaluate.choose_degradation("train", [own]) == "train"


def test_memory_does_not_grow_with_the_clip(run, data, monkeypatch):
  for i in range(60):
    write_png(data / "long" / f"{i:08d}.png", texture(SIZE, SIZE, 3 * i))
  alive = most = 0
  real = FaceClip.good

  def freed():
    nonlocal alive
    alive -= 1

  def good(self):
    nonlocal alive, most
    for frame in real(self):
      weakref.finalize(frame, freed)
      alive += 1
      most = max(most, alive)
      yield frame

  monkeypatch.setattr(FaceClip, "good", good)
  found, _ = run(data, "--checkpoint", "w", "--clips", "long")
  assert found["clips"][0]["frames"] == 60
  assert 0 < most < 12


def test_frames_without_a_face_do_not_count_for_faces(run, data, stand_ins):
  black = np.zeros((SIZE, SIZE, 3), np.uint8)
  write_png(data / "anna" / "00000002.png", black)
  found, _ = run(data, "--outputs", data)
  scores = found["clips"][0]["scores"]["data"]
  assert (scores["psnr"], scores["ids"], scores["akd"]) == (None, pytest.approx(1), 0)
  assert found["clips"][0]["frames"] == 5
