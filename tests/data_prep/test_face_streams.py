"""Clips of faces as streams: the frames of the batches, whole frames, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data_prep.helpers import texture
from vsr_jax.data_prep import face_pipeline
from vsr_jax.data_prep.clip import Clip
from vsr_jax.data_prep.face_degrade import PRESETS
from vsr_jax.data_prep.face_streams import aligned_size, face_clip, template
from vsr_jax.errors import UserError
from vsr_jax.images import encode_image

MILD = PRESETS["mild"]


def clip_of(height: int, width: int, landmarks=(), count: int = 3, **streams) -> Clip:
  frames = [texture(height, width, 3 * i) for i in range(count)]
  return Clip(
    "anna", count, {"sharp": [encode_image(x) for x in frames], **streams}, 0, {}, landmarks
  )


def landmarks(count: int = 3) -> np.ndarray:
  return np.stack([template(64) + (20 + 2 * i, 10) for i in range(count)])


@pytest.mark.parametrize("points", [(), landmarks()], ids=["aligned", "with landmarks"])
def test_streams_give_the_frames_of_the_batches(points):
  clip = clip_of(64, 64) if len(points) == 0 else clip_of(96, 128, points)
  source = face_clip(clip, MILD, 64)
  (batch,) = face_pipeline.evaluation_batches([clip], low_quality=MILD, chunk=3, size=64)
  np.testing.assert_array_equal(np.stack(list(source.good())), batch["gt"][0])
  np.testing.assert_array_equal(np.stack(list(source.low())), batch["lq"][0])
  np.testing.assert_array_equal(np.stack(list(source.low())), batch["lq"][0])  # once more
  assert (source.scale, source.shape) == (4, (64, 64))


def test_whole_frames_are_left_as_they_are():
  source = face_clip(clip_of(96, 128, landmarks()), MILD, None)
  assert (source.scale, source.shape) == (4, (96, 128))
  np.testing.assert_array_equal(next(source.good()), texture(96, 128, 0))
  assert [x.shape for x in source.low()] == [(24, 32, 3)] * 3


def test_landmarks_are_those_of_the_scored_frames():
  found = landmarks()
  found[1] = 0  # one point: the nearest frame's are taken
  points = landmarks()[[0, 0, 2]]
  aligned = face_clip(clip_of(96, 128, found), MILD, 64)
  np.testing.assert_allclose(aligned.landmarks, np.tile(template(64), (3, 1, 1)), atol=1e-6)
  np.testing.assert_allclose(face_clip(clip_of(96, 128, found), MILD, None).landmarks, points)
  already = dataclasses.replace(clip_of(64, 64, found), aligned=True)
  np.testing.assert_allclose(face_clip(already, MILD, 64).landmarks, points)
  assert aligned_size(already) == 64
  assert face_clip(already, MILD, None).low_quality == MILD.at_size(64)
  assert face_clip(clip_of(96, 128), MILD, None).low_quality == MILD
  np.testing.assert_array_equal(next(face_clip(already, MILD, 64).good()), texture(64, 64, 0))
  assert face_clip(clip_of(96, 128), MILD, None).landmarks is None
  without = face_clip(clip_of(64, 64), MILD, 64)
  np.testing.assert_array_equal(without.landmarks, np.tile(template(64), (3, 1, 1)))


def test_low_quality_frames_of_the_set():
  small = [encode_image(np.full((32, 32, 3), i, np.uint8)) for i in range(3)]
  source = face_clip(clip_of(64, 64, low_quality=small), "low_quality", 64)
  assert source.scale == 2
  assert [x[0, 0, 0] for x in source.low()] == [0, 1, 2]


def test_the_size_of_aligned_clips():
  assert aligned_size(clip_of(64, 64)) == 64
  assert aligned_size(clip_of(96, 128, landmarks())) is None
  aligned = dataclasses.replace(clip_of(64, 64, landmarks()), aligned=True)
  assert aligned_size(aligned) == 64
  assert face_clip(aligned, MILD, 64).matrices is None
  with pytest.raises(UserError, match="clip anna: 128x96 without landmarks is no aligned face"):
    aligned_size(clip_of(96, 128))


WRONG = encode_image(np.zeros((24, 24, 3), np.uint8))


@pytest.mark.parametrize(
  ("clip", "low_quality", "size", "message"),
  [
    (clip_of(64, 64), MILD, 128, "clip anna: its faces are 64x64, not 128x128"),
    (clip_of(64, 64), MILD, 62, "--size 62: must be a multiple"),
    (clip_of(64, 64, low_quality=[WRONG] * 3), "low_quality", 64, "frames of 24x24, which do not"),
    (clip_of(64, 64), "low_quality", 64, "clip anna has no stream low_quality"),
    (clip_of(96, 128, landmarks(2)), MILD, 64, "frame 2: has no landmarks"),
    (clip_of(96, 128, np.zeros((3, 5, 2))), MILD, 64, "its landmarks are no face"),
  ],
)
def test_bad_clips_are_told(clip, low_quality, size, message):
  with pytest.raises(UserError, match=message):
    face_clip(clip, low_quality, size)


def test_frames_of_a_size_that_cannot_be_reduced_are_told():
  with pytest.raises(UserError, match="clip anna: frames of 60x60 cannot be reduced by 4"):
    next(face_clip(clip_of(60, 60), MILD, 60).low())
