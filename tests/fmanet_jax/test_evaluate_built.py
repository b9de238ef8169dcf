"""Evaluation on a set that data_prep.build made: its clips are those of the folders."""

from __future__ import annotations

import argparse
import shutil

import numpy as np
import pytest

from fmanet_jax import evaluate
from tests.data_prep.built_sets import write_built_clips
from tests.data_prep.helpers import write_clip_set
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError


def test_a_built_set_is_found_and_read_as_its_folders(tmp_path):
  data, folder = tmp_path / "data", tmp_path / "1.0.0"
  write_clip_set(data, {"alley": 4, "beach": 6})
  skipped = [{"name": "cove", "reason": "damaged"}]
  write_built_clips(folder, open_clips(data).clips, "validation", skipped)

  chosen = {"split": "validation", "clips": None, "frames": 5}
  found, skipped = evaluate.find_scored(argparse.Namespace(data=folder, **chosen), 3)
  assert skipped == {"cove": "damaged"}
  want, _ = evaluate.find_scored(argparse.Namespace(data=data, **chosen), 3)
  for clip, other in zip(found, want, strict=True):
    assert (clip.name, clip.length) == (other.name, other.length)
    for stream in (SHARP, BLUR_BICUBIC):
      frames = range(clip.length)
      np.testing.assert_array_equal(
        clip.decode_all(stream, frames), other.decode_all(stream, frames)
      )

  # Its frames have no names; another method's are told by their number.
  shutil.copytree(data / "sharp" / "alley", tmp_path / "theirs" / "alley")
  outputs = evaluate.find_outputs(tmp_path / "theirs", found[0], 1)
  assert [path.name for path in outputs.images] == ["00000001.png", "00000002.png"]

  with pytest.raises(UserError, match="has no split test, only validation"):
    evaluate.find_scored(argparse.Namespace(data=folder, **chosen | {"split": "test"}), 3)
