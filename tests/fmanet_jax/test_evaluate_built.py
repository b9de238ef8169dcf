"""Evaluation on a set that data_prep.build made: its clips are those of the folders."""

from __future__ import annotations

import argparse
import shutil

import numpy as np

from data_prep import built, clips
from fmanet_jax import evaluate
from tests.data_prep.helpers import write_clip_set
from tests.data_prep.test_recorded import Source


def test_a_built_set_is_found_and_read_as_its_folders(tmp_path, monkeypatch):
  data, folder = tmp_path / "data", tmp_path / "built"
  write_clip_set(data, {"alley": 4, "beach": 6})
  source = Source(clips.find_clips(data, num_frames=3))
  source.skipped = [{"name": "cove", "reason": "damaged"}]
  for module in (evaluate.recorded, built):
    monkeypatch.setattr(module, "Records", lambda folder, split: source)
  folder.mkdir()
  (folder / built.INFO).write_text("{}")

  chosen = {"split": "test", "clips": None, "frames": 5}
  found, skipped = evaluate.find_scored(argparse.Namespace(data=folder, **chosen), 3)
  assert list(skipped) == ["cove"]
  want, _ = evaluate.find_scored(argparse.Namespace(data=data, **chosen), 3)
  for clip, other in zip(found, want, strict=True):
    assert clip.name == other.name
    for stream in ("sharp", "blurry"):
      pairs = zip(getattr(clip, stream), getattr(other, stream), strict=True)
      for frame, file in pairs:
        np.testing.assert_array_equal(clips.read_frame(frame), clips.read_frame(file))

  # Its frames have no names; another method's are told by their number.
  shutil.copytree(data / "sharp" / "alley", tmp_path / "theirs")
  outputs = evaluate.find_outputs(tmp_path / "theirs", found[0], 1)
  assert [path.name for path in outputs] == ["00000001.png", "00000002.png"]
