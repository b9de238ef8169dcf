"""The command that makes clip sets: what it writes, keeps, refuses and leaves behind."""

from __future__ import annotations

import errno
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from tests.data_prep.helpers import texture, write_flow, write_png
from vsr_jax import video
from vsr_jax.data_prep import clip_set, exposure, prepare
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, SHARP_BICUBIC, STREAMS
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.locks import locked

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_frames(folder: pathlib.Path, frames: list[np.ndarray]) -> pathlib.Path:
  for i, frame in enumerate(frames):
    write_png(folder / f"{i:04d}.png", frame)
  return folder


def run(monkeypatch, *arguments) -> None:
  monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
  prepare.main()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  root = tmp_path_factory.mktemp("inputs")
  still = [texture(256, 259)] * 4
  other = [255 - texture(256, 259, 9) // 4] * 5
  write_frames(root / "steady", [texture(257, 261, 2 * i) for i in range(5)])
  write_frames(root / "cut", still + other)
  write_frames(root / "small", [texture(252, 300)] * 4)
  write_frames(root / "short", [texture(256, 256)] * 4)
  (root / "broken.mp4").write_bytes(b"no video at all")
  return root


def test_a_set_is_made_and_a_rerun_keeps_it(inputs, tmp_path, monkeypatch, capsys):
  out = tmp_path / "out"
  sources = [inputs / name for name in ("steady", "cut", "small", "short", "broken.mp4")]
  run(monkeypatch, *sources, "--out", out)
  text = capsys.readouterr().out
  assert text.startswith("5 inputs to do, none done before\n")
  assert text.endswith(f"next: python -m vsr_jax.data_prep.flow_labels {out}\n")
  assert "2 clips, 6 frames; 3 inputs skipped" in text
  assert "small: low-resolution frames would be 75x63, training needs 64 pixels a side" in text
  assert "no scene of 3 frames" in text
  assert "broken.mp4: not a readable video" in text
  found = open_clips(out).clips
  # The scene before the cut has two frames with a whole exposure: too few.
  assert [(c.name, c.length) for c in found] == [("cut_scene001", 3), ("steady", 3)]
  assert sorted(p.name for p in out.iterdir()) == sorted([clip_set.INDEX, ".lock", *STREAMS])
  steady = found[1]
  assert (*steady.sizes[BLUR_BICUBIC], steady.scale) == (64, 65, 4)
  sharp = steady.decode(SHARP, 0)
  np.testing.assert_array_equal(sharp, texture(257, 261, 2)[:256, :260])  # not the first frame
  np.testing.assert_array_equal(steady.decode(SHARP_BICUBIC, 0), exposure.downsample(sharp, 4))

  times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
  run(monkeypatch, inputs / "steady", inputs / "cut", "--workers", 1, "--out", out)
  assert "0 inputs to do, 2 done before" in capsys.readouterr().out
  assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}

  # Another exposure replaces the clip; flow labels, which may no longer fit, go with it.
  before = steady.decode(BLUR_BICUBIC, 1)
  write_flow(out, "steady", 3, 3, 1.0)
  flow = out / "flow" / "steady.array_record"
  assert flow.exists()
  run(monkeypatch, inputs / "steady", "--shutter", "0.25", "--workers", 1, "--out", out)
  after = open_clips(out).clips
  assert [c.name for c in after] == ["cut_scene001", "steady"]
  assert not flow.exists()
  assert not np.array_equal(before, after[1].decode(BLUR_BICUBIC, 1))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 2), (signal.SIGINT, 130)])
def test_stopping_leaves_finished_clips_and_nothing_half_written(inputs, tmp_path, number, code):
  frames = inputs / "long"
  if not frames.exists():
    write_frames(frames, [texture(256, 256, 2 * i) for i in range(300)])
  # A shell in the background would have had Ctrl-C ignored.
  start = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from vsr_jax.data_prep import prepare; from vsr_jax import cli; cli.run(prepare.main)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", start, frames, inputs / "steady", "--workers", "1", "--out", tmp_path],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  deadline = time.monotonic() + 120
  while not list(tmp_path.glob("long.*.part/*/sharp/*.png")) and time.monotonic() < deadline:
    time.sleep(0.1)
  os.killpg(process.pid, number)  # the workers get it, too
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == code, stderr
  assert "Traceback" not in stderr
  assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_a_full_disk_ends_the_run_and_leaves_no_part(inputs, tmp_path, monkeypatch):
  def fill(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "00000000.png")

  monkeypatch.setattr(prepare, "_write_frame", fill)
  monkeypatch.setattr(prepare, "start_worker", lambda: None)
  settings = {"halve": "no", "subframes": 8, "shutter": 1.0, "stride": 1, "shake": 0.0}
  settings |= {"gamma": 2.2, "scale": 4, "frames": None}
  origin = {"name": "steady", "path": str(inputs / "steady"), "settings": settings}
  todo, results = queue.Queue(), queue.Queue()
  todo.put((origin, tmp_path / "part"))
  todo.put(None)
  prepare._work(todo, results, threading.Event())
  (_, error) = results.get_nowait()
  assert isinstance(error, OSError)  # the parent raises it: `cli.run` knows what to say
  assert error.errno == errno.ENOSPC
  assert not list(tmp_path.iterdir())


def test_two_runs_do_not_share_a_folder(inputs, tmp_path, monkeypatch):
  with locked(tmp_path), pytest.raises(UserError, match="another run is writing"):
    run(monkeypatch, inputs / "steady", "--out", tmp_path)


def test_an_output_that_is_a_file_is_refused(inputs, tmp_path, monkeypatch):
  (tmp_path / "out").touch()
  with pytest.raises(UserError, match="out: cannot make this folder"):
    run(monkeypatch, inputs / "steady", "--out", tmp_path / "out")


def test_a_video_cut_short_gives_its_good_frames_and_a_note(tmp_path, monkeypatch, capsys):
  rng = np.random.default_rng(0)
  whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
  with video.open_writer(str(whole), 256, 256, Fraction(25)) as writer:
    for i in range(30):
      noise = rng.integers(0, 16, (256, 256, 3), dtype=np.uint8)  # frames of about one size
      writer.write(texture(256, 256, 2 * i) // 2 + noise)
  data = whole.read_bytes()
  cut.write_bytes(data[: len(data) * 4 // 5])
  run(monkeypatch, cut, "--workers", 1, "--out", tmp_path / "out")
  (clip,) = open_clips(tmp_path / "out").clips
  assert 3 <= clip.length < 25
  assert "incomplete cut: " in capsys.readouterr().out


def test_clips_of_one_name_are_refused(inputs, tmp_path, monkeypatch):
  other = write_frames(tmp_path / "steady", [texture(256, 256)] * 3)
  with pytest.raises(UserError, match="named like"):
    run(monkeypatch, inputs / "steady", other, "--out", tmp_path / "out")


def test_only_unusable_inputs_are_an_error(inputs, tmp_path, monkeypatch, capsys):
  with pytest.raises(UserError, match="no clip could be made"):
    run(
      monkeypatch,
      *(inputs / "broken.mp4", tmp_path / "missing.mp4"),
      *("--workers", 1, "--out", tmp_path / "out"),
    )
  assert "missing.mp4: no such file" in capsys.readouterr().out


@pytest.mark.parametrize(
  "wrong",
  [
    ["--shutter", "0"],
    ["--shutter", "1.5"],
    ["--stride", "0"],
    ["--stride", "1001"],
    ["--subframes", "99999999999999999999"],
    ["--scale", "17"],
    ["--workers", "513"],
    ["--shake", "-1"],
    ["--shake", "nan"],
    ["--gamma", "0"],
    ["--gamma", "nan"],
    ["--gamma", "inf"],
    ["--frames", "7"],
    ["--halve", "maybe"],
  ],
)
def test_impossible_options_are_refused(inputs, tmp_path, monkeypatch, wrong):
  with pytest.raises(UserError, match="--help tells"):
    run(monkeypatch, inputs / "steady", "--out", tmp_path, *wrong)
