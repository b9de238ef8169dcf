"""The command that makes aligned clip sets of real videos of faces."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import skimage.data

from tests.vsr_jax.clips import encode
from vsr_jax.data_prep import align, animate, face_pipeline, head_motion
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.faces import align as face_align
from vsr_jax.faces import detector

PHOTO = skimage.data.astronaut()[:256, 80:336]


@pytest.fixture
def run(run_main):
  return functools.partial(run_main, align.main)


def test_videos_become_aligned_clips_with_landmarks(run, tmp_path):
  frames = np.stack([np.roll(PHOTO, 3 * i, axis=1) for i in range(6)])
  encode(tmp_path / "head.mkv", frames, "ffv1", "bgr0", rate=30)
  encode(tmp_path / "wall.mkv", np.full_like(frames, 90), "ffv1", "bgr0", rate=30)
  out = tmp_path / "out"
  arguments = tmp_path / "head.mkv", tmp_path / "wall.mkv", "--out", out, "--size", 64
  said = run(*arguments, "--sigma", 0)
  assert "skipped wall:" in said.out
  assert "no face found" in said.out
  (clip,) = open_clips(out, streams=(SHARP,)).clips
  assert (clip.name, clip.length, clip.rate, clip.aligned) == ("head", 6, 30, True)
  points = np.stack([clip.landmarks[i] for i in range(6)])
  np.testing.assert_allclose(points, np.tile(face_align.TEMPLATE / 8, (6, 1, 1)), atol=2)
  images = clip.decode_all(SHARP, range(6)).astype(float)
  assert np.abs(images - images[0])[:, 16:56, 16:48].mean() < 6  # the head stays, the wall moves
  assert face_pipeline.images([clip], seed=0, size=64)[0]["gt"].shape == (64, 64, 3)
  assert "1 of 2 were there" in run(*arguments, "--sigma", 0).out


def test_nothing_to_align_is_an_error(run, tmp_path):
  encode(tmp_path / "wall.mkv", np.full((2, 64, 64, 3), 90, np.uint8), "ffv1", "bgr0")
  out = tmp_path / "out"
  assert "no clip could be made" in run(tmp_path / "wall.mkv", "--out", out, code=2).err
  assert "--size 8" in run(tmp_path / "wall.mkv", "--out", out, "--size", 8, code=2).err


def test_the_landmarks_of_an_aligned_photo_are_found_near_the_template():
  detect = detector.make_detector()
  matrices, _ = face_align.fit(detect(PHOTO).landmarks[:1], 256)
  found = animate.find_landmarks(face_align.align(PHOTO, matrices[0], 256), detect)
  assert 0 < np.abs(found - head_motion.template()).max() < 0.03
