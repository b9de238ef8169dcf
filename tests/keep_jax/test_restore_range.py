"""Frames at the ends of --frames A:B see their real neighbours."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import skimage.data

from keep_jax import restore
from tests.keep_jax import tiny
from tests.vsr_jax.clips import encode
from vsr_jax import video

pytestmark = pytest.mark.usefixtures("shared_restorers", "shared_detections")

PHOTO = skimage.data.astronaut()[:280, 60:400]


@pytest.fixture
def run(run_main):
  return functools.partial(run_main, restore.main)


def read(path):
  with video.open_reader(str(path)) as reader:
    return np.stack([frame.image for frame in reader])


def test_faces_are_where_they_are_in_the_whole_clip(run, tmp_path):
  """Their landmarks are smoothed over the frames around, too."""
  moving = np.stack([PHOTO[10:234, i * 3 : i * 3 + 256] for i in range(7)])
  encode(tmp_path / "clip.mkv", moving, "ffv1", "bgr0")
  run(tmp_path / "clip.mkv", tmp_path / "whole", "--no-network")
  said = run(tmp_path / "clip.mkv", tmp_path / "part", "--no-network", "--frames", "3:5")
  assert "2 frames of 256x224, 1 face track, 0 frames without a face" in said.out
  assert "2/2" in said.err
  assert "3/2" not in said.err
  np.testing.assert_array_equal(read(tmp_path / "part"), read(tmp_path / "whole")[3:5])
  listed = run(tmp_path / "clip.mkv", "--list-faces", "--frames", "3:5").out
  assert " 3:5 " in listed


def test_gains_look_ahead_beyond_the_range(run, tmp_path):
  faces = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
  encode(tmp_path / "face.mkv", faces, "ffv1", "bgr0")
  tiny.save(tmp_path / "weights")
  flags = ("--aligned", "--checkpoint", tmp_path / "weights", "--window", "4", "--look-ahead", "1")
  run(tmp_path / "face.mkv", tmp_path / "whole", *flags)
  said = run(tmp_path / "face.mkv", tmp_path / "part", *flags, "--frames", "0:5")
  np.testing.assert_array_equal(read(tmp_path / "part"), read(tmp_path / "whole")[:5])
  assert "5 frames of 32x32" in said.out
