"""Flow labels: what is stored where, resuming, and RAFT's padding and channel order."""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from tests.data_prep.helpers import texture, write_clip_set
from vsr_jax import files
from vsr_jax.data_prep import flow_labels, flow_store
from vsr_jax.data_prep.clip import SHARP_BICUBIC, STREAMS
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.flow import raft
from vsr_jax.locks import locked


@pytest.fixture
def clip_set(tmp_path):
  write_clip_set(tmp_path, {"beach": 5})
  return tmp_path


def brightness(centres, neighbours):
  """Stands in for RAFT: a flow that tells which frames it was given."""
  assert centres.dtype == np.uint8
  assert centres.shape == (4, 24, 32, 3)  # always filled up: one shape, one compilation
  flow = np.zeros((*centres.shape[:3], 2), np.float32)
  flow[..., 0] = centres.mean((1, 2, 3))[:, None, None]
  flow[..., 1] = neighbours.mean((1, 2, 3))[:, None, None]
  return flow


@pytest.fixture
def unlabelled(clip_set):
  """The folder for labels, which exists, and the clip."""
  opened, (clip,) = flow_labels.find_unlabelled(clip_set, "train", 3)
  assert opened.clips == [clip]
  opened.flow_folder.mkdir()
  return opened.flow_folder, clip


@pytest.mark.parametrize("num_frames", [3, 5])
def test_labels_are_stored_by_centre_and_offset(clip_set, unlabelled, num_frames):
  folder, frames = unlabelled
  done = []
  made = flow_labels.label_clip(frames, folder, brightness, num_frames, 4, done.append)
  assert sum(done) == len(list(flow_labels.pairs(5, num_frames)))
  clip = open_clips(clip_set, num_frames=num_frames, need_flow=True).clips[0]
  assert clip.flow == made
  mean = [frame.mean() for frame in clip.decode_each(SHARP_BICUBIC, range(clip.length))]
  n = num_frames // 2
  for centre in range(5):
    window = clip.flow.read(centre, num_frames)
    assert window.shape == (num_frames, 24, 32, 2)
    assert not window[n].any()
    for offset in flow_store.offsets(num_frames):
      inside = 0 <= centre + offset < 5
      expected = (mean[centre], mean[centre + offset]) if inside else (0, 0)
      np.testing.assert_allclose(window[n + offset, 3, 5], expected, rtol=2**-11)  # float16
  # Between 64 and 128 float16 is a multiple of 1/16; the file has what it needs and no more.
  assert 64 < min(mean) < max(mean) < 128
  assert 0 < made.error <= 1 / 32
  assert 5 * (num_frames - 1) * 24 * 32 * 2 * 2 < made.size < 200_000


def test_an_interrupted_clip_leaves_no_labels(unlabelled):
  folder, clip = unlabelled

  def stop(_):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    flow_labels.label_clip(clip, folder, brightness, 3, 4, stop)
  assert not list(folder.iterdir())


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_the_system(unlabelled, monkeypatch):
  folder, clip = unlabelled
  (folder / "x.part").symlink_to("/dev/full")
  monkeypatch.setattr(files, "part_name", lambda path: str(folder / "x.part"))
  with pytest.raises(OSError, match="No space left"):
    flow_labels.label_clip(clip, folder, brightness, 3, 4, lambda _: None)
  assert not list(folder.iterdir())


def test_a_clip_may_lose_its_labels(unlabelled):
  folder, clip = unlabelled
  flow_labels.label_clip(clip, folder, brightness, 3, 4, lambda _: None)
  flow_store.drop_labels(folder, "other")
  assert list(flow_store.open_labels(folder)) == ["beach"]
  flow_store.drop_labels(folder, "beach")
  assert flow_store.open_labels(folder) == {}
  assert [path.name for path in folder.iterdir()] == [flow_store.INDEX]


@pytest.mark.parametrize(
  "text", ["", "[]", '{"origin": {}}', '{"origin": {}, "clips": {"beach": {"file": "x"}}}']
)
def test_a_damaged_index_is_named(clip_set, unlabelled, text):
  folder, _ = unlabelled
  (folder / flow_store.INDEX).write_text(text)
  with pytest.raises(UserError, match=r"flow/labels\.json: damaged"):
    open_clips(clip_set)


def test_a_damaged_file_of_labels_is_named(clip_set, unlabelled):
  folder, frames = unlabelled
  made = flow_labels.label_clip(frames, folder, brightness, 3, 4, lambda _: None)
  path = pathlib.Path(made.path)
  path.write_bytes(path.read_bytes()[:10_000])  # less than two of the five records
  with pytest.raises(UserError, match=r"beach\.array_record: cut short; make it again"):
    made.read(4, 3)


@pytest.fixture(scope="module")
def params():
  shapes = jax.eval_shape(lambda: raft.init(raft.SMALL, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def estimates(params):
  return [flow_labels.make_estimate(raft.SMALL, params, bgr=bgr) for bgr in (False, True)]


def test_frames_are_padded_below_and_right_and_the_flow_is_cut_back(estimates, params):
  images = np.stack([texture(60, 69), texture(60, 69, 2)])
  padded = np.zeros((2, 64, 72, 3), np.uint8)
  padded[:, :60, :69] = images
  expected = jax.jit(lambda x, y: raft.raft(raft.SMALL, params, x, y, 12))(padded[:1], padded[1:])
  flow = np.asarray(estimates[0](images[:1], images[1:]))
  assert np.abs(flow).max() > 0.1
  # One program padded inside, the other not: they round differently, 12 times over.
  np.testing.assert_allclose(flow, np.asarray(expected)[:, :60, :69], rtol=1e-3, atol=1e-3)


def test_bgr_is_the_reversed_order(estimates):
  images = np.stack([texture(60, 69), texture(60, 69, 2)])
  rgb, bgr = estimates
  reversed_flow = np.asarray(rgb(images[:1, ..., ::-1], images[1:, ..., ::-1]))
  np.testing.assert_allclose(bgr(images[:1], images[1:]), reversed_flow, rtol=1e-3, atol=1e-3)
  assert np.abs(reversed_flow - np.asarray(rgb(images[:1], images[1:]))).max() > 0.01


def run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["flow_labels", *map(str, arguments)])
  flow_labels.main()


def test_the_command_labels_what_is_missing(clip_set, monkeypatch, capsys):
  monkeypatch.setattr(flow_labels.raft_conversion, "load", lambda path: (raft.SMALL, {}))
  monkeypatch.setattr(flow_labels, "make_estimate", lambda *_, **__: brightness)
  arguments = [clip_set, "--weights", "some.pth", "--batch", 4]
  run(monkeypatch, *arguments)
  folder = clip_set / flow_store.FOLDER
  text = capsys.readouterr().out
  assert "0 of 1 clips have labels" in text
  # Three frames with both neighbours, two labels of 24x32 each, as released; all five here.
  assert f"as released, in float32, {3 * 2 * 24 * 32 * 8 / 1e9:.3f} GB; float16 changed" in text
  origin = json.loads((folder / flow_store.INDEX).read_text())["origin"]
  assert origin == {"weights": "some.pth", "channel_order": "rgb", "iterations": 12}
  path = folder / "beach.array_record"
  written = path.stat().st_mtime_ns
  run(monkeypatch, *arguments)
  assert "1 of 1 clips have labels" in capsys.readouterr().out
  assert path.stat().st_mtime_ns == written
  # Longer windows need other labels; they are not mixed with those of another make.
  with pytest.raises(UserError, match="labels made otherwise"):
    run(monkeypatch, *arguments, "--frames", 5, "--channel-order", "bgr")
  run(monkeypatch, *arguments, "--frames", 5)
  assert flow_store.open_labels(folder)["beach"].neighbours == 4


def test_without_weights_those_that_ship_are_taken(clip_set, monkeypatch):
  taken = []
  monkeypatch.setattr(
    flow_labels, "make_estimate", lambda net, params, **_: taken.append(params) or brightness
  )
  run(monkeypatch, clip_set, "--batch", 4)
  jax.tree.map(np.testing.assert_array_equal, *taken, flow_labels.raft_conversion.load()[1])
  index = json.loads((clip_set / flow_store.FOLDER / flow_store.INDEX).read_text())
  assert index["origin"]["weights"] == "raft_small.npz"


def test_two_runs_do_not_share_a_folder(clip_set, monkeypatch):
  with locked(clip_set / flow_store.FOLDER), pytest.raises(UserError, match="another run"):
    run(monkeypatch, clip_set, "--weights", "some.pth")


@pytest.mark.parametrize(
  "wrong", [["--frames", "4"], ["--frames", "1"], ["--batch", "0"], ["--batch", "9999"]]
)
def test_impossible_options_are_refused(clip_set, monkeypatch, wrong):
  with pytest.raises(UserError, match="--help tells"):
    run(monkeypatch, clip_set, "--weights", "some.pth", *wrong)


def test_missing_weights_are_named(clip_set, monkeypatch):
  with pytest.raises(UserError, match=r"none\.pth"):
    run(monkeypatch, clip_set, "--weights", clip_set / "none.pth")


@pytest.mark.parametrize("stream", STREAMS)
def test_a_clip_damaged_within_is_left_out_and_named(tmp_path, monkeypatch, capsys, caplog, stream):
  write_clip_set(tmp_path, {"alley": 5, "beach": 5, "creek": 5})
  path = tmp_path / stream / "beach" / "00000002.png"
  data = path.read_bytes()
  path.write_bytes(data[:40] + bytes(len(data) - 60) + data[-20:])
  monkeypatch.setattr(flow_labels.raft_conversion, "load", lambda path: (raft.SMALL, {}))
  monkeypatch.setattr(flow_labels, "make_estimate", lambda *_, **__: brightness)
  with pytest.raises(UserError, match="1 of 3 clips could not be read.*: beach;"):
    run(monkeypatch, tmp_path, "--weights", "some.pth", "--batch", 4)
  assert "beach gets no labels" in capsys.readouterr().err
  assert flow_store.open_labels(tmp_path / flow_store.FOLDER).keys() == {"alley", "creek"}
  found = open_clips(tmp_path, num_frames=3, need_flow=True).clips
  assert [clip.name for clip in found] == ["alley", "creek"]
  assert "1 clips skipped: beach" in caplog.text
  assert "00000002.png: cannot be decoded" in caplog.text
