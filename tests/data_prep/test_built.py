"""Clips of records give FMA-Net the batches that the same clips in folders give."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from tests.data_prep import built_sets
from tests.data_prep.helpers import write_clip_set, write_flow
from vsr_jax.data_prep import array_record, blur_pipeline, built
from vsr_jax.data_prep.clip import SHARP, STREAMS
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  root = tmp_path_factory.mktemp("clips")
  lengths = {"beach": 6, "alley": 4}
  write_clip_set(root, lengths)
  for name, length in lengths.items():
    write_flow(root, name, length, 3, 1.0)
  return open_clips(root, num_frames=3, need_flow=True).clips


@pytest.fixture
def folder(found, tmp_path):
  """A built set of the same clips, with the same labels."""
  place = tmp_path / "reds/x4/1.0.0"
  built_sets.write_built_clips(place, found)
  (place / "flow").mkdir()
  for clip in found:
    write_flow(place, clip.name, clip.length, 3, 1.0)
  (place / "flow").rename(place / "train")
  (place / "flow").mkdir()
  (place / "train").rename(place / "flow/train")
  return place


def test_batches_are_those_of_the_folders(found, folder):
  opened = open_clips(folder, num_frames=3, need_flow=True)
  assert (opened.verified, opened.bytes, opened.left_out) == (True, 2000, {})
  options = {"num_frames": 3, "crop": 16, "batch_size": 2, "seed": 7}
  one, other = (blur_pipeline.make_dataset(x, **options) for x in (found, opened.clips))
  for i in range(3):
    for name in one[i]:
      np.testing.assert_array_equal(one[i][name], other[i][name])
  assert [clip.scale for clip in opened.clips] == [4, 4]


def test_a_record_is_opened_once_a_window(found, folder, monkeypatch):
  opened, parse = [], array_record.parse_example
  monkeypatch.setattr(
    array_record, "parse_example", lambda *a, **k: opened.append(a) or parse(*a, **k)
  )
  clips = open_clips(folder).clips
  assert opened == []
  options = {"num_frames": 3, "crop": 16, "batch_size": 1, "seed": 7, "flow": False}
  _ = blur_pipeline.make_dataset(clips[:1], **options)[0]
  assert len(opened) == 1


def test_clips_go_to_other_processes(found, folder):
  copy = pickle.loads(pickle.dumps(open_clips(folder).clips))
  np.testing.assert_array_equal(copy[1].decode(SHARP, 5), found[1].decode(SHARP, 5))
  assert len(copy[1].streams[SHARP][2:4]) == 2


def change_index(folder, edit):
  path = folder / built.INDEX
  index = json.loads(path.read_text())
  edit(index["train"]["clips"])
  path.write_text(json.dumps(index))


def test_bad_input_is_named(found, folder):
  name = found[1].name
  change_index(folder, lambda clips: clips[1]["sizes"].update(sharp=[48, 64]))
  with pytest.raises(UserError, match="different scales .2, 4."):
    open_clips(folder, streams=[SHARP, "blur_bicubic"])
  change_index(folder, lambda clips: clips[1]["sizes"].pop("sharp_bicubic"))
  with pytest.raises(UserError, match=f"clip {name} has no stream sharp_bicubic, only sharp, blur"):
    open_clips(folder)
  with pytest.raises(UserError, match="is not the clip beach; build the data set again"):
    open_clips(folder, streams=[SHARP]).clips[1].decode(SHARP, 0)


def test_a_damaged_frame_is_named(found, tmp_path):
  frames = list(found[1].streams[SHARP])
  frames[2] = b"damaged"
  streams = {**found[1].streams, SHARP: frames}
  clip = type(found[1])("beach", 6, streams, sizes=found[1].sizes)
  built_sets.write_built_clips(tmp_path / "1.0.0", [clip])
  (opened,) = open_clips(tmp_path / "1.0.0").clips
  with pytest.raises(UserError, match="clip beach, frame 2 of sharp: cannot be decoded"):
    opened.decode(SHARP, 2)
  assert opened.decode(SHARP, 1).shape == (96, 128, 3)
  assert opened.streams.keys() == set(STREAMS)


def test_a_built_set_without_its_version_is_named(tmp_path):
  (tmp_path / "x4/1.0.0").mkdir(parents=True)
  (tmp_path / "x4/1.0.0/dataset_info.json").write_text("{}")
  with pytest.raises(UserError, match=r"x4: name a version, such as .*x4/1\.0\.0"):
    open_clips(tmp_path / "x4")
