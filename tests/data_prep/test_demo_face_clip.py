"""The packaged clip of a face: what it holds, and that the command makes such a clip."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import keep_jax
from tests.data_prep.helpers import texture, write_png
from tests.vsr_jax.clips import read_sound
from vsr_jax import video
from vsr_jax.data_prep import demo_face_clip, demo_split
from vsr_jax.faces import detector
from vsr_jax.faces.detections import none_found
from vsr_jax.metrics import rgb_psnr

CLIP = pathlib.Path(keep_jax.__file__).parent / "assets/demo_clip"


def read(path):
  with video.open_reader(str(path)) as reader:
    return reader.info, np.stack([frame.image for frame in reader])


@pytest.fixture(scope="module")
def packaged():
  return {name: read(CLIP / f"{name}.mp4") for name in ("input", "truth")}


def test_the_packaged_clip_is_small_and_its_files_belong_together(packaged):
  assert sum(path.stat().st_size for path in CLIP.iterdir()) < 300_000
  low, truth = packaged["input"][1], packaged["truth"][1]
  assert low.shape == truth.shape == (60, 176, 288, 3)
  assert packaged["input"][0].frame_rate == packaged["truth"][0].frame_rate == 25
  there, later = (np.mean([rgb_psnr(low[i], truth[i + k]) for i in range(50)]) for k in (0, 5))
  assert 24 < there < 30
  assert later < there - 0.5
  assert "faker_male_512_59" in (CLIP / "README.txt").read_text()
  assert "faker_male_512_59" in demo_split.HELD_OUT


def test_its_sound_is_there_and_quiet():
  samples, start = read_sound(CLIP / "input.mp4")
  assert len(samples) / 48_000 == pytest.approx(2.4, abs=0.05)
  assert abs(start) < 0.05
  assert 0.01 < np.abs(samples).max() < 0.1


def test_the_detector_that_ships_finds_the_face_and_no_other(packaged):
  """Also at the strongest turn and with closed lids."""
  detect = detector.make_detector()
  for i in range(0, 60, 10):
    good, bad = (detect(packaged[name][1][i]) for name in ("truth", "input"))
    for found in (good, bad):
      assert (found.scores > 0.9).sum() == 1
    assert np.abs(good.landmarks[0] - bad.landmarks[0]).max() < 12  # of a face of 64 pixels


def test_the_command_makes_a_clip_of_a_portrait(run_main, monkeypatch, tmp_path):
  monkeypatch.setattr(detector, "make_detector", lambda: lambda _: none_found())
  monkeypatch.setattr(demo_face_clip, "FRAMES", 5)
  monkeypatch.setattr(demo_face_clip, "HEIGHT", 64)
  monkeypatch.setattr(demo_face_clip, "WIDTH", 96)
  monkeypatch.setattr(demo_face_clip, "FACE", 56)
  write_png(tmp_path / "anna.png", texture(64, 64))
  said = run_main(demo_face_clip.main, tmp_path / "anna.png", tmp_path / "out")
  assert "input.mp4: 5 frames" in said.out
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["input.mp4", "truth.mp4"]
  (info, low), (_, truth) = (read(tmp_path / f"out/{name}.mp4") for name in ("input", "truth"))
  assert low.shape == truth.shape == (5, 64, 96, 3)
  assert info.frame_rate == 25
  samples, _ = read_sound(tmp_path / "out/input.mp4")
  assert len(samples) / 48_000 == pytest.approx(0.2, abs=0.05)
  (tmp_path / "flat.png").write_bytes(b"no picture")
  said = run_main(demo_face_clip.main, tmp_path / "flat.png", tmp_path / "out", code=2)
  assert "flat.png: not a readable image" in said.err


def test_a_portrait_is_continued_without_an_edge():
  still = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  wide = demo_face_clip.with_surroundings(still)
  assert wide.shape == (192, 192, 3)
  middle = slice(64 + 12, 128 - 12)
  np.testing.assert_array_equal(wide[middle, middle], still[12:-12, 12:-12])
  steps = np.abs(np.diff(wide[64:110].astype(int), axis=0)).mean((0, 2))  # by column
  assert steps[:60].max() < 0.2 * steps[90:100].mean()
  assert np.abs(np.diff(steps)).max() < 0.3 * steps[90:100].mean()
