"""Flow labels: what is stored where, resuming, and RAFT's padding and channel order."""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from data_prep import clips, flow_labels
from tests.data_prep.helpers import texture, write_clip_set
from vsr_jax.errors import UserError
from vsr_jax.flow import raft


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


@pytest.mark.parametrize("num_frames", [3, 5])
def test_labels_are_stored_by_centre_and_offset(clip_set, num_frames):
  clip = clips.find_clips(clip_set)[0]
  path = clips.flow_path(clip_set, clip.name)
  path.parent.mkdir()
  done = []
  flow_labels.label_clip(clip, path, brightness, num_frames, 4, done.append)
  assert sum(done) == len(list(flow_labels.pairs(5, num_frames)))
  clip = clips.find_clips(clip_set, num_frames=num_frames, need_flow=True)[0]
  labels = np.load(path)
  assert labels.dtype == np.float16
  assert labels.shape == (5, num_frames - 1, 24, 32, 2)
  mean = [clips.read_frame(frame).mean() for frame in clip.sharp_lr]
  for centre in range(5):
    for slot, offset in enumerate(clips.offsets(num_frames)):
      inside = 0 <= centre + offset < 5
      expected = (mean[centre], mean[centre + offset]) if inside else (0, 0)
      np.testing.assert_allclose(labels[centre, slot, 3, 5], expected, rtol=1e-3)  # float16
  window = clips.read_flow(clip, 2, num_frames)
  assert not window[num_frames // 2].any()


def test_an_interrupted_clip_leaves_no_labels(clip_set):
  clip = clips.find_clips(clip_set)[0]
  path = clips.flow_path(clip_set, clip.name)
  path.parent.mkdir()

  def stop(_):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    flow_labels.label_clip(clip, path, brightness, 3, 4, stop)
  assert not list(path.parent.iterdir())


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_the_system(clip_set):
  clip = clips.find_clips(clip_set)[0]
  path = clips.flow_path(clip_set, clip.name)
  path.parent.mkdir()
  path.with_suffix(".npy.part").symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left"):
    flow_labels.label_clip(clip, path, brightness, 3, 4, lambda _: None)
  assert not list(path.parent.iterdir())


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
  monkeypatch.setattr(flow_labels.raft_weights, "load", lambda path: (raft.SMALL, {}))
  monkeypatch.setattr(flow_labels, "make_estimate", lambda *_, **__: brightness)
  arguments = [clip_set, "--weights", "some.pth", "--batch", 4]
  run(monkeypatch, *arguments)
  path = clips.flow_path(clip_set, "beach")
  origin = json.loads((path.parent / flow_labels.ORIGIN).read_text())
  assert origin == {"weights": "some.pth", "channel_order": "rgb", "iterations": 12}
  written = path.stat().st_mtime_ns
  run(monkeypatch, *arguments)
  assert "1 of 1 clips have labels" in capsys.readouterr().out
  assert path.stat().st_mtime_ns == written
  # Longer windows need other labels; they are not mixed with those of another make.
  with pytest.raises(UserError, match="labels made otherwise"):
    run(monkeypatch, *arguments, "--frames", 5, "--channel-order", "bgr")
  run(monkeypatch, *arguments, "--frames", 5)
  assert np.load(path).shape[1] == 4


def test_two_runs_do_not_share_a_folder(clip_set, monkeypatch):
  with clips.locked(clip_set / clips.FLOW), pytest.raises(UserError, match="another run"):
    run(monkeypatch, clip_set, "--weights", "some.pth")


@pytest.mark.parametrize("wrong", [["--frames", "4"], ["--frames", "1"], ["--batch", "0"]])
def test_impossible_options_are_refused(clip_set, monkeypatch, wrong):
  with pytest.raises(UserError, match="--help tells"):
    run(monkeypatch, clip_set, "--weights", "some.pth", *wrong)


def test_missing_weights_are_named(clip_set, monkeypatch):
  with pytest.raises(UserError, match=r"none\.pth"):
    run(monkeypatch, clip_set, "--weights", clip_set / "none.pth")
