"""The restore command from end to end: what it writes, keeps, says and refuses."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import sys
from fractions import Fraction

import av
import jax
import numpy as np
import pytest

from fmanet_jax import restore, streaming
from tests.support import fmanet
from tests.support.interrupts import send_when_seen
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import video, video_cli
from vsr_jax.checkpoint import export_params
from vsr_jax.enlarge import enlarger
from vsr_jax.images import encode_image
from vsr_jax.ops.resize import resize_bicubic


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A checkpoint of a tiny model, x2."""
  folder = tmp_path_factory.mktemp("restore") / "weights"
  fmanet.save(folder)
  return folder


@pytest.fixture(scope="module")
def restorer(weights):
  return streaming.Restorer(*streaming.load(weights))


@pytest.fixture
def clip(tmp_path):
  """Eight frames of 24x16 with sound, at 12.5 frames a second."""
  path = tmp_path / "clip.mkv"
  tone = np.sin(np.arange(48_000) / 20)
  rate = Fraction(25, 2)
  encode(path, moving_waves(8, 16, 24), "ffv1", "bgr0", rate=rate, sound=("aac", tone))
  return path


@pytest.fixture
def run(weights, restorer, monkeypatch, run_main):
  """Runs the command in this process, on one device and with one compile for all runs."""
  monkeypatch.setattr(streaming, "Restorer", lambda model, params, mesh: restorer)

  def run(*args, code=0, checkpoint=weights):
    return run_main(restore.main, *args, "--checkpoint", checkpoint, code=code)

  return run


def read(path):
  with video.open_reader(str(path)) as reader:
    return reader.info, [frame.image for frame in reader], reader


def assert_refused(said, pattern):
  """One line, and no traceback."""
  lines = said.err.strip().splitlines()
  assert len(lines) == 1
  assert re.search(pattern, lines[0]), lines[0]


def test_every_frame_is_restored_with_its_time_and_sound(run, restorer, clip, tmp_path):
  said = run(clip, tmp_path / "out.mp4", "--quality", "0")
  info, results, _ = read(tmp_path / "out.mp4")
  frames = read(clip)[1]
  np.testing.assert_array_equal(results, list(restorer.stream(frames)))
  assert info.frame_rate == Fraction(25, 2)
  assert info.has_audio
  speed = r"[\d.]+ s, [\d.]+ (frames/s|s/frame)( after \d+ s of compiling)?\n$"
  assert re.search(rf"out.mp4: 8 frames of 48x32 in {speed}", said.out)
  assert "8/8" in said.err  # the progress bar knows the end
  assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mp4"]


@pytest.mark.parametrize(
  ("text", "span"),
  [
    ("2:5", slice(2, 5)),
    ("6:", slice(6, None)),
    (":1", slice(0, 1)),
    ("5:99", slice(5, 8)),
    (f"6:{10**20}", slice(6, 8)),
  ],
)
def test_a_range_of_frames_is_restored_as_in_the_whole_clip(
  run, restorer, clip, tmp_path, text, span
):
  said = run(clip, tmp_path / "out", "--frames", text)
  expected = list(restorer.stream(read(clip)[1]))[span]
  np.testing.assert_array_equal(read(tmp_path / "out")[1], expected)
  assert f"{len(expected)}/{len(expected)}" in said.err


def test_frames_of_a_folder_keep_their_names(run, clip, tmp_path):
  (tmp_path / "in").mkdir()
  for i, image in enumerate(read(clip)[1]):
    (tmp_path / "in" / f"shot {i + 8}.jpg").write_bytes(encode_image(image, ".jpg"))
  run(tmp_path / "in", tmp_path / "out", "--frames", "1:4")
  assert sorted(os.listdir(tmp_path / "out")) == ["shot 10.png", "shot 11.png", "shot 9.png"]


def test_side_by_side_has_the_enlarged_input_at_the_left(run, restorer, clip, tmp_path):
  run(clip, tmp_path / "out", "--side-by-side")
  frames = read(clip)[1]
  for frame, restored, both in zip(
    frames, restorer.stream(frames), read(tmp_path / "out")[1], strict=True
  ):
    np.testing.assert_array_equal(both[:, :48], resize_bicubic(frame, 2))
    np.testing.assert_array_equal(both[:, 48:], restored)


def test_by_tiles_on_demand_and_where_frames_do_not_fit(run, restorer, clip, tmp_path, monkeypatch):
  run(clip, tmp_path / "tiled", "--tile", "20", "--frames", ":3")
  expected = list(enlarger.enlarge_frames(restorer, read(clip)[1][:4], 20))[:3]
  np.testing.assert_array_equal(read(tmp_path / "tiled")[1], expected)
  monkeypatch.setattr(enlarger, "fitting_tile", lambda *_: 20)
  said = run(clip, tmp_path / "alone", "--frames", ":3")
  assert "note: whole frames do not fit the memory; restoring by tiles of 20 pixels" in said.out
  np.testing.assert_array_equal(read(tmp_path / "alone")[1], expected)


def test_the_good_frames_of_a_truncated_file_are_restored(run, restorer, tmp_path):
  path, cut = tmp_path / "clip.mkv", tmp_path / "cut.mkv"
  encode(path, moving_waves(8, 16, 24), "ffv1", "bgr0")
  cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
  said = run(cut, tmp_path / "out")
  assert re.search(r"[\r\n]warning: .*cut.mkv: the file is damaged or cut short after", said.err)
  assert "UserWarning" not in said.err
  results = read(tmp_path / "out")[1]
  assert 1 <= len(results) < 8
  with pytest.warns(UserWarning, match="cut short"):
    frames = read(cut)[1]
  np.testing.assert_array_equal(results, list(restorer.stream(frames)))


def inputs(tmp_path):
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
  (tmp_path / "no_frames").mkdir()
  tone = np.sin(np.arange(16_000) / 20)
  encode_sound(tmp_path / "sound.m4a", tone)


def encode_sound(path, tone):
  with av.open(str(path), "w", format="mp4") as file:
    track = file.add_stream("aac", rate=48_000)
    track.codec_context.layout = "mono"
    samples = (32767 * tone).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
    file.mux(track.encode(frame))
    file.mux(track.encode(None))


@pytest.mark.parametrize(
  ("name", "pattern"),
  [
    ("nothing.mp4", "nothing.mp4: no such file or folder"),
    ("empty.mp4", "empty.mp4: is empty"),
    ("noise.mp4", "noise.mp4: not a readable video"),
    ("no_frames", "no_frames: no frames in this folder"),
    ("sound.m4a", "sound.m4a: holds no video"),
  ],
)
def test_bad_input_is_refused(run, tmp_path, name, pattern):
  inputs(tmp_path)
  before = sorted(os.listdir(tmp_path))
  assert_refused(run(tmp_path / name, tmp_path / "out.mp4", code=2), pattern)
  assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
  ("arguments", "pattern"),
  [
    (["--dtype", "float8"], "--dtype: invalid choice: 'float8'"),
    (["--frames", "3"], "'3' is not of the form A:B"),
    (["--frames", "-3:5"], "--frames: expected one argument"),
    (["--frames=-3:5"], "'-3:5' is not of the form A:B"),
    (["--frames", "1:2:3"], "'1:2:3' is not of the form A:B"),
    (["--frames", "5:5"], "'5:5' holds no frame"),
    (["--frames", f"{'9' * 5000}:"], "clip.mkv: ends before frame 9223372036854775807"),
    (["--frames", "8:"], "clip.mkv: ends before frame 8"),
    (["--tile", "16"], "--tile 16: must be above the overlap of 16 pixels"),
    (["--tile", "many"], "--tile: invalid int value: 'many'"),
    (["--quality", "52"], "--quality: '52' is not a number from 0 to 51"),
    (["--colour"], "unrecognized arguments: --colour"),
  ],
)
def test_bad_arguments_are_refused(run, clip, tmp_path, arguments, pattern):
  assert_refused(run(clip, tmp_path / "out.mp4", *arguments, code=2), pattern)
  assert os.listdir(tmp_path) == ["clip.mkv"]


def test_bad_outputs_are_refused(run, clip, tmp_path, monkeypatch):
  assert_refused(run(clip, tmp_path / "no/out.mp4", code=2), "there is no folder")
  assert_refused(run(clip, tmp_path / "out.gif", code=2), "unknown kind of output .gif")
  assert_refused(run(clip, clip, code=2), "clip.mkv: is the input; name another output")
  monkeypatch.setattr(video_cli, "LARGEST_SIDE", 60)
  run(clip, tmp_path / "whole.mp4", "--frames", ":1")
  said = run(clip, tmp_path / "out.mp4", "--side-by-side", code=2)
  assert_refused(said, "H.264 takes no frames of 96x32")
  with monkeypatch.context() as patch:
    patch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert_refused(run(clip, tmp_path / "out.mp4", code=2), "cannot be written")
  assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "whole.mp4"]


def test_a_picture_as_the_output_of_a_clip_is_refused_before_work(
  run, restorer, clip, tmp_path, monkeypatch
):
  line = "out.png: one image cannot hold several frames"
  monkeypatch.setattr(restorer, "_compiled", None)
  assert_refused(run(clip, tmp_path / "out.png", code=2), line)


def test_bad_checkpoints_are_refused(run, weights, clip, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(weights, copy)
  out = tmp_path / "out.mp4"
  missing = run(clip, out, checkpoint=tmp_path / "no", code=2)
  assert_refused(missing, "no: no such folder; give a run's folder, or make one of the released")
  assert "`python -m fmanet_jax.convert model_D.pt model_R.pt DIR`" in missing.err
  assert_refused(run(clip, out, checkpoint=tmp_path, code=2), "holds no checkpoint")
  for path in (copy / "params").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert_refused(run(clip, out, checkpoint=copy, code=2), "copy: damaged")
  export_params(copy, {"net_d": {"x": np.zeros(3)}}, {"model": dataclasses.asdict(fmanet.SMALLEST)})
  assert_refused(run(clip, out, checkpoint=copy, code=2), "not the weights of this model")
  export_params(copy, {"vqgan": {"x": np.zeros(3)}}, {"model": {"codebook": 1024}})
  assert_refused(run(clip, out, checkpoint=copy, code=2), "not a checkpoint of FMA-Net")
  assert not out.exists()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_and_keeps_the_older_output(run, clip, tmp_path):
  out = tmp_path / "out.mp4"
  out.write_text("older")
  said = run(clip, out, code=2)
  assert "error: no space left on the disk while writing" in said.err.splitlines()[-1]
  assert out.read_text() == "older"
  assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mp4"]


def test_a_device_without_enough_memory_is_told(run, clip, tmp_path, monkeypatch):
  def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")

  monkeypatch.setattr(enlarger, "enlarge_frames", exhausted)
  said = run(clip, tmp_path / "out.mp4", code=2)
  assert "the device's memory is too small for this; give a smaller --tile" in said.err
  assert os.listdir(tmp_path) == ["clip.mkv"]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "code", "line"),
  [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 2, "terminated by SIGTERM"),
  ],
)
def test_an_interrupted_run_leaves_nothing_and_keeps_the_older_output(
  weights, tmp_path, number, code, line
):
  source, out = tmp_path / "clip.mkv", tmp_path / "out.mp4"
  encode(source, moving_waves(6000, 16, 24), "libx264", preset="ultrafast")
  out.write_text("older")
  command = [sys.executable, "-m", "fmanet_jax.restore", source, out, "--checkpoint", weights]
  was_there = []
  # Once frames are coming.
  ended, rest = send_when_seen(
    command, r" [1-9]\d*/6000", number, lambda: was_there.extend(tmp_path.glob("out.mp4.*.part"))
  )
  assert len(was_there) == 1
  assert ended == code, rest
  assert rest.strip().splitlines()[-1] == line
  assert "Traceback" not in rest
  assert out.read_text() == "older"
  assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "out.mp4"]
