"""The restore command with what cannot be used: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import skimage.data

from keep_jax import restore
from tests.keep_jax import tiny
from tests.support.interrupts import send_when_seen
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import video_cli
from vsr_jax.checkpoint import export_params

FACE = skimage.data.astronaut()[:224, 100:356]


@pytest.fixture
def clip(tmp_path):
  path = tmp_path / "clip.mkv"
  encode(path, np.stack([FACE] * 3), "ffv1", "bgr0")
  return path


@pytest.fixture
def run(run_main):
  return functools.partial(run_main, restore.main)


def assert_refused(said, pattern):
  """One line at the end, and no traceback."""
  assert "Traceback" not in said.err
  line = said.err.strip().splitlines()[-1]
  assert re.search(f"error: .*{pattern}", line), said.err


def test_bad_inputs(run, tmp_path):
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
  (tmp_path / "no_frames").mkdir()
  before = sorted(os.listdir(tmp_path))
  refusals = {
    "nothing.mp4": "nothing.mp4: no such file or folder",
    "empty.mp4": "empty.mp4: is empty",
    "noise.mp4": "noise.mp4: not a readable video",
    "no_frames": "no_frames: no frames in this folder",
  }
  for name, pattern in refusals.items():
    assert_refused(run(tmp_path / name, tmp_path / "out.mp4", "--no-network", code=2), pattern)
  assert sorted(os.listdir(tmp_path)) == before


def test_bad_outputs(run, clip, tmp_path):
  refuse = functools.partial(run, clip, code=2)
  assert_refused(refuse(clip, "--no-network"), "clip.mkv: is the input")
  assert_refused(refuse(tmp_path / "no" / "out.mp4", "--no-network"), "there is no folder")
  assert_refused(refuse(tmp_path / "out.gif", "--no-network"), "unknown kind of output .gif")
  assert os.listdir(tmp_path) == ["clip.mkv"]


@pytest.mark.parametrize("total", ["known", "unknown"])
@pytest.mark.parametrize("flags", [("--no-network",), ("--no-network", "--aligned")])
def test_a_picture_as_the_output_of_a_clip_is_refused_before_work(
  run, tmp_path, monkeypatch, total, flags
):
  clip, seen = tmp_path / "clip.mkv", []
  encode(clip, np.stack([FACE[:128, :128]] * 3), "ffv1", "bgr0")
  find = restore.detector.make_detector

  def counting(*args):
    detect = find(*args)
    return lambda image: seen.append(1) or detect(image)

  monkeypatch.setattr(restore.detector, "make_detector", counting)
  if total == "unknown":
    monkeypatch.setattr(video_cli, "frame_total", lambda *_: None)
  said = run(clip, tmp_path / "out.png", *flags, code=2)
  line = "out.png: one image cannot hold several frames; name a folder or an .mp4 as output"
  assert said.err.splitlines()[-1].endswith(line)
  assert not seen
  assert os.listdir(tmp_path) == ["clip.mkv"]
  run(clip, tmp_path / "out.png", *flags, "--frames", "1:2")


def test_crops_that_cannot_be_written_are_refused_before_work(run, clip, tmp_path, monkeypatch):
  monkeypatch.setattr(restore.detector, "make_detector", None)
  theirs = tmp_path / "crops" / "face_000_aligned"
  theirs.mkdir(parents=True)
  (theirs / "mine.txt").touch()
  flags = ("--no-network", "--save-crops")
  refused = run(clip, tmp_path / "out.mp4", *flags, tmp_path / "crops", code=2)
  assert_refused(refused, "face_000_aligned: the folder holds other files")
  access = os.access
  readonly = str(tmp_path / "crops")
  monkeypatch.setattr(os, "access", lambda path, mode: path != readonly and access(path, mode))
  refused = run(clip, tmp_path / "out.mp4", *flags, tmp_path / "crops" / "new", code=2)
  assert_refused(refused, "new: the folder .*crops cannot be written")


def test_bad_checkpoints(run, clip, tmp_path):
  weights, out = tmp_path / "weights", tmp_path / "out.mp4"
  tiny.save(weights)
  copy = shutil.copytree(weights, tmp_path / "copy")
  refuse = functools.partial(run, clip, out, "--checkpoint", copy, code=2)
  for path in (copy / "params").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert_refused(refuse(), "copy: damaged")
  meta = {"model": dataclasses.asdict(tiny.ARCH)}
  export_params(copy, {"encoder": {"x": np.zeros(3)}}, meta)
  assert_refused(refuse(), "copy: a part of a KEEP, without .*gain")
  _, params = tiny.load()
  full = {part: tree for part, tree in params.items() if part != "flow"}
  export_params(copy, full | {"codebook": np.zeros((3, 3))}, meta)
  assert_refused(refuse(), "not the weights of this model")
  export_params(copy, {"net_d": {"x": np.zeros(3)}}, {"model": {"kernel_down": 20}})
  assert_refused(refuse(), "not a checkpoint of KEEP")
  shutil.rmtree(copy)
  assert_refused(refuse(), "copy: no such folder; .*of the released weights with `python -m")
  copy.write_text("weights")
  assert_refused(refuse(), "keep_jax.convert")
  assert not out.exists()


def test_a_truncated_clip_gives_its_good_frames_and_one_warning(run, tmp_path):
  path, cut = tmp_path / "clip.mkv", tmp_path / "cut.mkv"
  encode(path, np.stack([FACE] * 8), "ffv1", "bgr0")
  cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
  said = run(cut, tmp_path / "out", "--no-network")
  assert said.err.count("cut.mkv: the file is damaged or cut short after") == 1
  assert 1 <= len(os.listdir(tmp_path / "out")) < 8


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_the_older_output(run, clip, tmp_path):
  out = tmp_path / "out.mp4"
  out.write_text("older")
  strip = ("--strip", tmp_path / "strip.png")
  assert_refused(run(clip, out, "--no-network", *strip, code=2), "no space left on the disk")
  assert out.read_text() == "older"
  assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mp4"]


@pytest.mark.parametrize(
  ("phase", "number", "code", "line"),
  [
    ("finding faces", signal.SIGTERM, 2, "terminated by SIGTERM"),
    pytest.param("restoring", signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
  ],
)
def test_an_interrupted_run_keeps_the_older_output(tmp_path, phase, number, code, line):
  source, out = tmp_path / "clip.mkv", tmp_path / "out.mp4"
  # The first pass is slow, the second one fast.
  count, size = (400, (96, 96)) if phase == "finding faces" else (120, (480, 640))
  encode(source, moving_waves(count, *size), "libx264", preset="ultrafast")
  out.write_text("older")
  command = [sys.executable, "-m", "keep_jax.restore", source, out, "--quality", "0"]
  command.append("--identity")  # as --no-network was called
  ended, rest = send_when_seen(command, rf"{phase}:[^\r]* [1-9]\d*/{count}", number)
  assert ended == code, rest
  assert rest.strip().splitlines()[-1] == line
  assert "Traceback" not in rest
  assert out.read_text() == "older"
  assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mp4"]
