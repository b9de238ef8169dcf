"""Clips of records give FMA-Net the batches that the same clips in folders give."""

from __future__ import annotations

import pickle
import types

import numpy as np
import pytest

from data_prep import clips, pipeline
from data_prep.recorded import open_clips, recorded_clips
from tests.data_prep.helpers import write_clip_set
from vsr_jax.errors import UserError


class Source:
  """What `built.Records` promises, in memory; counts how often a record is opened."""

  def __init__(self, found):
    streams = {"blur_bicubic": "blurry", "sharp": "sharp", "sharp_bicubic": "sharp_lr"}
    self.frames = [
      {stream: [f.read_bytes() for f in getattr(clip, x)] for stream, x in streams.items()}
      for clip in found
    ]
    self.clips = [
      {
        "name": clip.name,
        "frames": len(clip.blurry),
        "sizes": {
          stream: [clip.height * k, clip.width * k]
          for stream, k in {"blur_bicubic": 1, "sharp": clip.scale, "sharp_bicubic": 1}.items()
        },
      }
      for clip in found
    ]
    self.opened = 0
    self.labels = {clip.name: clip.flow for clip in found if clip.flow}

  def flow(self):
    return self.labels

  def __getitem__(self, index):
    self.opened += 1
    return types.SimpleNamespace(frames=self.frames[index])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  root = tmp_path_factory.mktemp("clips")
  write_clip_set(root, {"beach": 6, "alley": 4})
  return clips.find_clips(root, num_frames=3)


def test_batches_are_those_of_the_folders(found):
  source = Source(found)
  recorded = recorded_clips(source)
  assert [clip.flow for clip in recorded] == [clip.flow for clip in found]
  options = {
    "num_frames": 3,
    "crop": 16,
    "batch_size": 2,
    "seed": 7,
    "flow": found[0].flow is not None,
  }
  one, other = (pipeline.make_dataset(x, **options) for x in (found, recorded))
  for i in range(3):
    for name in one[i]:
      np.testing.assert_array_equal(one[i][name], other[i][name])
  assert [clip.scale for clip in recorded] == [4, 4]


def test_a_record_is_opened_once_a_window(found):
  source = Source(found[:1])
  recorded = recorded_clips(source)
  assert source.opened == 0
  options = {"num_frames": 3, "crop": 16, "batch_size": 1, "seed": 7, "flow": False}
  _ = pipeline.make_dataset(recorded, **options)[0]
  assert source.opened == 1


def test_clips_go_to_other_processes(found):
  copy = pickle.loads(pickle.dumps(recorded_clips(Source(found))))
  np.testing.assert_array_equal(
    clips.read_frame(copy[1].sharp[-1]), clips.read_frame(found[1].sharp[-1])
  )
  assert len(copy[1].sharp[2:4]) == 2


def test_bad_input_is_named(found):
  source = Source(found)
  source.frames[1]["sharp"][2] = b"damaged"
  recorded = recorded_clips(source)
  name = found[1].name
  with pytest.raises(UserError, match=f"clip {name}, frame 2 of sharp: cannot be decoded"):
    clips.read_frame(recorded[1].sharp[2])
  del source.clips[1]["sizes"]["sharp_bicubic"]
  with pytest.raises(UserError, match=f"clip {name} has no stream sharp_bicubic"):
    recorded_clips(source)
  assert len(recorded_clips(source, ["sharp"])) == 2
  source.clips[1]["sizes"]["sharp"] = [48, 64]
  with pytest.raises(UserError, match="different scales .2, 4."):
    recorded_clips(source, ["sharp"])


def test_a_built_set_without_its_version_is_named(tmp_path):
  (tmp_path / "x4/1.0.0").mkdir(parents=True)
  (tmp_path / "x4/1.0.0/dataset_info.json").write_text("{}")
  with pytest.raises(UserError, match=r"x4: name a version, such as .*x4/1\.0\.0"):
    open_clips(tmp_path / "x4")
