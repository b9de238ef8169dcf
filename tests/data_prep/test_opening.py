"""Which clips are found in each layout, and what is said of damaged ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.data_prep.helpers import texture, write_clip, write_clip_set, write_flow
from vsr_jax.data_prep import clip_set
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, STREAMS
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError


@pytest.fixture
def prepared(tmp_path):
  write_clip_set(tmp_path, {"beach": 5, "alley": 3})
  return tmp_path


def reds_folder(root, subset, stream, name, nested=True):
  place = root / f"{subset}_{stream}" if nested else root
  place = place / subset / f"{subset}_{stream}"
  return (place if stream == SHARP else place / "X4") / name


def write_reds(root, subset, names, nested=True, length=3):
  for i, name in enumerate(names):
    folders = {s: reds_folder(root, subset, s, name, nested) for s in STREAMS}
    write_clip(folders, [texture(96, 128, 20 * i + k) for k in range(length)])


def test_a_clip_set_is_listed_by_its_index(prepared):
  (prepared / "sharp" / "unfinished").mkdir()  # not in the index
  found = open_clips(prepared).clips
  assert [c.name for c in found] == ["alley", "beach"]
  beach = found[1]
  assert {stream: len(frames) for stream, frames in beach.streams.items()} == dict.fromkeys(
    STREAMS, 5
  )
  assert (beach.length, beach.sizes[BLUR_BICUBIC], beach.scale) == (5, (24, 32), 4)
  assert beach.flow is None
  assert beach.streams[SHARP].path(2) == prepared / "sharp" / "beach" / "00000002.png"


def test_only_the_streams_asked_for_must_exist(prepared):
  shutil.rmtree(prepared / "sharp_bicubic")
  found = open_clips(prepared, streams=(SHARP,)).clips
  assert found[0].streams.keys() == {SHARP}
  with pytest.raises(UserError, match=r"sharp_bicubic/alley: missing"):
    open_clips(prepared)


@pytest.mark.parametrize("nested", [True, False])
def test_reds_as_released_is_split_by_rule(tmp_path, nested):
  write_reds(tmp_path, "train", ["000", "001", "011", "015", "020", "239"], nested)
  write_reds(tmp_path, "val", ["000", "001"], nested)
  train = open_clips(tmp_path).clips
  assert [c.name for c in train] == ["001", "239", "240", "241"]
  assert train[3].streams[BLUR_BICUBIC].path(0) == reds_folder(
    tmp_path, "val", BLUR_BICUBIC, "001", nested
  ).joinpath("00000000.png")
  test = open_clips(tmp_path, split="test").clips
  assert [c.name for c in test] == ["000", "011", "015", "020"]
  folder = reds_folder(tmp_path, "train", SHARP, "000", nested)
  assert test[0].streams[SHARP].path(0).parent == folder


def test_reds_as_the_released_script_moves_it(tmp_path):
  write_reds(tmp_path, "train", ["001", "239", "240", "269"])
  write_reds(tmp_path, "val", ["000", "011", "015", "020"])
  assert [c.name for c in open_clips(tmp_path).clips] == ["001", "239", "240", "269"]
  test = open_clips(tmp_path, split="test").clips
  assert [c.name for c in test] == ["000", "011", "015", "020"]
  assert "val_sharp" in test[0].label(SHARP, 0)


def test_an_incomplete_reds4_is_named(tmp_path):
  write_reds(tmp_path, "train", ["000", "011", "020"], length=1)
  with pytest.raises(UserError, match="clips 015 of REDS4"):
    open_clips(tmp_path, split="test")


def test_streams_of_unequal_length_are_named(prepared):
  (prepared / "sharp" / "beach" / "00000004.png").unlink()
  with pytest.raises(UserError, match=r"sharp/beach: 4 frames, but .*blur_bicubic/beach has 5"):
    open_clips(prepared)


def test_sizes_that_do_not_belong_together_are_named(prepared):
  shutil.rmtree(prepared / "sharp" / "alley")
  shutil.copytree(prepared / "sharp_bicubic" / "beach", prepared / "sharp" / "alley")
  for extra in ("00000003.png", "00000004.png"):
    (prepared / "sharp" / "alley" / extra).unlink()
  with pytest.raises(UserError, match=r"different scales \[1, 4\]"):
    open_clips(prepared)


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_damaged_clip_is_skipped_named_and_counted(prepared, caplog, keep):
  frame = prepared / "sharp" / "beach" / "00000002.png"
  frame.write_bytes(frame.read_bytes()[:keep])
  assert [c.name for c in open_clips(prepared).clips] == ["alley"]
  assert "1 clips skipped: beach" in caplog.text
  assert "00000002.png" in caplog.text


def test_no_clip_long_enough(prepared, caplog):
  assert [c.name for c in open_clips(prepared, num_frames=5).clips] == ["beach"]
  assert "alley (has 3 frames, a window 5)" in caplog.text
  with pytest.raises(UserError, match="no usable clip of at least 7 frames"):
    open_clips(prepared, num_frames=7)


def test_missing_flow_names_the_command(prepared):
  write_flow(prepared, "alley", 3, 3, 1.0)
  with pytest.raises(
    UserError, match=r"clip beach has no flow.* vsr_jax.data_prep\.flow_labels .*--frames 3"
  ):
    open_clips(prepared, num_frames=3, need_flow=True)
  write_flow(prepared, "beach", 5, 3, 1.0)
  assert len(open_clips(prepared, num_frames=3, need_flow=True).clips) == 2
  with pytest.raises(UserError, match="--frames 5"):  # labels of windows that are too short
    open_clips(prepared, num_frames=5, need_flow=True)


def test_flow_labels_cut_short_count_as_missing(prepared):
  for name, length in (("alley", 3), ("beach", 5)):
    write_flow(prepared, name, length, 3, 1.0)
  path = prepared / "flow" / "beach.array_record"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match="beach has no flow"):
    open_clips(prepared, num_frames=3, need_flow=True)


def test_labels_of_longer_windows_serve_shorter_ones(prepared):
  write_flow(prepared, "beach", 5, 5, 1.5)
  beach = open_clips(prepared, num_frames=5).clips[0]
  for num_frames, expected in ((5, [-3, -1.5, 0, 1.5, 3]), (3, [-1.5, 0, 1.5])):
    flow = beach.flow.read(2, num_frames)
    assert flow.dtype == np.float32
    assert flow.shape == (num_frames, 24, 32, 2)
    np.testing.assert_array_equal(flow[:, 3, 4, 0], expected)


def test_released_flow_files_are_read(tmp_path):
  write_reds(tmp_path, "train", ["001"])
  folder = reds_folder(tmp_path, "train", "flow_bicubic", "001")
  folder.mkdir(parents=True)
  for neighbour, value in (("00000000", -2.0), ("00000002", 3.0)):
    np.save(folder / f"00000001_{neighbour}.npy", np.full((24, 32, 2), value, np.float32))
  clip = open_clips(tmp_path, num_frames=3, need_flow=True).clips[0]
  np.testing.assert_array_equal(clip.flow.read(1, 3)[:, 0, 0, 0], [-2, 0, 3])
  np.save(folder / "00000001_00000002.npy", np.zeros((24, 30, 2), np.float32))
  with pytest.raises(UserError, match=r"00000001_00000002\.npy: cannot read this flow label"):
    clip.flow.read(1, 3)


@pytest.mark.parametrize("text", ["", "{}", '{"clips": [{"name": 3}]}', "[1]"])
def test_a_broken_index_is_named(prepared, text):
  (prepared / clip_set.INDEX).write_text(text)
  with pytest.raises(UserError, match=r"clips\.json: not the index"):
    open_clips(prepared)


def test_nothing_to_find(tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    open_clips(tmp_path / "missing")
  with pytest.raises(UserError, match="neither a clip set"):
    open_clips(tmp_path)


def test_the_index_is_replaced_in_one_step(prepared):
  entries = clip_set.read_index(prepared)
  clip_set.write_index(prepared, entries[:1])
  assert json.loads((prepared / clip_set.INDEX).read_text())["clips"] == entries[:1]
  assert not list(prepared.glob("*.part"))
