"""Which clips are found in each layout, and what is said of damaged ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from data_prep import clips
from tests.data_prep.helpers import texture, write_clip, write_clip_set, write_flow
from vsr_jax.errors import UserError


@pytest.fixture
def clip_set(tmp_path):
  write_clip_set(tmp_path, {"beach": 5, "alley": 3})
  return tmp_path


def reds_folder(root, subset, stream, name, nested=True):
  place = root / f"{subset}_{stream}" if nested else root
  place = place / subset / f"{subset}_{stream}"
  return (place if stream == clips.SHARP else place / "X4") / name


def write_reds(root, subset, names, nested=True, length=3):
  for i, name in enumerate(names):
    folders = {s: reds_folder(root, subset, s, name, nested) for s in clips.STREAMS}
    write_clip(folders, [texture(96, 128, 20 * i + k) for k in range(length)])


def test_a_clip_set_is_listed_by_its_index(clip_set):
  (clip_set / "sharp" / "unfinished").mkdir()  # not in the index
  found = clips.find_clips(clip_set)
  assert [c.name for c in found] == ["alley", "beach"]
  beach = found[1]
  assert [len(f) for f in (beach.blurry, beach.sharp, beach.sharp_lr)] == [5, 5, 5]
  assert (beach.height, beach.width, beach.scale, beach.flow) == (24, 32, 4, None)
  assert beach.sharp[2] == clip_set / "sharp" / "beach" / "00000002.png"


def test_only_the_streams_asked_for_must_exist(clip_set):
  shutil.rmtree(clip_set / "sharp_bicubic")
  found = clips.find_clips(clip_set, streams=(clips.SHARP,))
  assert found[0].sharp_lr == ()
  with pytest.raises(UserError, match=r"sharp_bicubic/alley: missing"):
    clips.find_clips(clip_set)


@pytest.mark.parametrize("nested", [True, False])
def test_reds_as_released_is_split_by_rule(tmp_path, nested):
  write_reds(tmp_path, "train", ["000", "001", "011", "015", "020", "239"], nested)
  write_reds(tmp_path, "val", ["000", "001"], nested)
  train = clips.find_clips(tmp_path)
  assert [c.name for c in train] == ["001", "239", "240", "241"]
  assert train[3].blurry[0] == reds_folder(
    tmp_path, "val", clips.BLUR_BICUBIC, "001", nested
  ).joinpath("00000000.png")
  test = clips.find_clips(tmp_path, split="test")
  assert [c.name for c in test] == ["000", "011", "015", "020"]
  assert test[0].sharp[0].parent == reds_folder(tmp_path, "train", clips.SHARP, "000", nested)


def test_reds_as_the_released_script_moves_it(tmp_path):
  write_reds(tmp_path, "train", ["001", "239", "240", "269"])
  write_reds(tmp_path, "val", ["000", "011", "015", "020"])
  assert [c.name for c in clips.find_clips(tmp_path)] == ["001", "239", "240", "269"]
  test = clips.find_clips(tmp_path, split="test")
  assert [c.name for c in test] == ["000", "011", "015", "020"]
  assert "val_sharp" in str(test[0].sharp[0])


def test_an_incomplete_reds4_is_named(tmp_path):
  write_reds(tmp_path, "train", ["000", "011", "020"], length=1)
  with pytest.raises(UserError, match="clips 015 of REDS4"):
    clips.find_clips(tmp_path, split="test")


def test_streams_of_unequal_length_are_named(clip_set):
  (clip_set / "sharp" / "beach" / "00000004.png").unlink()
  with pytest.raises(UserError, match=r"sharp/beach: 4 frames, but .*blur_bicubic/beach has 5"):
    clips.find_clips(clip_set)


def test_sizes_that_do_not_belong_together_are_named(clip_set):
  shutil.rmtree(clip_set / "sharp" / "alley")
  shutil.copytree(clip_set / "sharp_bicubic" / "beach", clip_set / "sharp" / "alley")
  for extra in ("00000003.png", "00000004.png"):
    (clip_set / "sharp" / "alley" / extra).unlink()
  with pytest.raises(UserError, match=r"different scales \[1, 4\]"):
    clips.find_clips(clip_set)


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_damaged_clip_is_skipped_named_and_counted(clip_set, caplog, keep):
  frame = clip_set / "sharp" / "beach" / "00000002.png"
  frame.write_bytes(frame.read_bytes()[:keep])
  assert [c.name for c in clips.find_clips(clip_set)] == ["alley"]
  assert "1 clips skipped: beach" in caplog.text
  assert "00000002.png" in caplog.text


def test_no_clip_long_enough(clip_set, caplog):
  assert [c.name for c in clips.find_clips(clip_set, num_frames=5)] == ["beach"]
  assert "alley (has 3 frames, a window 5)" in caplog.text
  with pytest.raises(UserError, match="no usable clip of at least 7 frames"):
    clips.find_clips(clip_set, num_frames=7)


def test_missing_flow_names_the_command(clip_set):
  write_flow(clip_set, "alley", 3, 3, 1.0)
  with pytest.raises(
    UserError, match=r"clip beach has no flow.* data_prep\.flow_labels .*--frames 3"
  ):
    clips.find_clips(clip_set, num_frames=3, need_flow=True)
  write_flow(clip_set, "beach", 5, 3, 1.0)
  assert len(clips.find_clips(clip_set, num_frames=3, need_flow=True)) == 2
  with pytest.raises(UserError, match="--frames 5"):  # labels of windows that are too short
    clips.find_clips(clip_set, num_frames=5, need_flow=True)


def test_flow_labels_cut_short_count_as_missing(clip_set):
  for name, length in (("alley", 3), ("beach", 5)):
    write_flow(clip_set, name, length, 3, 1.0)
  path = clip_set / "flow" / "beach.array_record"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match="beach has no flow"):
    clips.find_clips(clip_set, num_frames=3, need_flow=True)


def test_labels_of_longer_windows_serve_shorter_ones(clip_set):
  write_flow(clip_set, "beach", 5, 5, 1.5)
  beach = clips.find_clips(clip_set, num_frames=5)[0]
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
  clip = clips.find_clips(tmp_path, num_frames=3, need_flow=True)[0]
  np.testing.assert_array_equal(clip.flow.read(1, 3)[:, 0, 0, 0], [-2, 0, 3])
  np.save(folder / "00000001_00000002.npy", np.zeros((24, 30, 2), np.float32))
  with pytest.raises(UserError, match=r"00000001_00000002\.npy: cannot read this flow label"):
    clip.flow.read(1, 3)


@pytest.mark.parametrize("text", ["", "{}", '{"clips": [{"name": 3}]}', "[1]"])
def test_a_broken_index_is_named(clip_set, text):
  (clip_set / clips.INDEX).write_text(text)
  with pytest.raises(UserError, match=r"clips\.json: not the index"):
    clips.find_clips(clip_set)


def test_nothing_to_find(tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    clips.find_clips(tmp_path / "missing")
  with pytest.raises(UserError, match="neither a clip set"):
    clips.find_clips(tmp_path)


def test_the_index_is_replaced_in_one_step(clip_set):
  entries = clips.read_index(clip_set)
  clips.write_index(clip_set, entries[:1])
  assert json.loads((clip_set / clips.INDEX).read_text())["clips"] == entries[:1]
  assert not list(clip_set.glob("*.part"))
