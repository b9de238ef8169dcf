"""Detectors by name: their common behaviour, and their landmarks against marks made by eye."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage

from tests.vsr_jax.faces.marks import MARKS, read_frame
from vsr_jax.errors import UserError
from vsr_jax.faces.detector import make_batch_detector, make_detector

RETINAFACE = "retinaface_mobile0.25_1mb"
RELEASED = "weights/retinaface_mobilenet0.25_Final.pth"


def errors(detect, data):
  """Mean distance of each marked frame's five landmarks, in distances of the eyes."""
  found = []
  for clip, index, marks in MARKS:
    marks = np.array(marks)
    detections = detect(read_frame(data / clip, index))
    assert len(detections), clip
    distance = np.linalg.norm(detections.landmarks - marks, axis=-1).mean(1).min()
    found.append(distance / np.linalg.norm(marks[0] - marks[1]))
  return np.array(found)


@pytest.mark.slow
def test_mtcnn_agrees_with_the_eye(shared):
  found = errors(make_detector(), shared / "data")
  # Measured 0.053, at most 0.113 (a face tilted by 28 degrees); marks are good to about 0.02.
  assert found.mean() < 0.07
  assert found.max() < 0.15


@pytest.mark.slow
def test_retinaface_agrees_with_the_eye(shared):
  found = errors(make_detector(RETINAFACE, shared / RELEASED), shared / "data")
  # Measured 0.094, at most 0.152: this network is the smallest of its kind.
  assert found.mean() < 0.12
  assert found.max() < 0.2


def test_a_large_frame_is_reduced_and_its_face_in_its_own_pixels():
  photo = skimage.data.astronaut()
  large = cv2.resize(photo, (1030, 1530), interpolation=cv2.INTER_CUBIC)
  detect = make_detector(max_side=512)
  small, reduced = detect(photo), detect(large)
  assert len(small) == len(reduced) == 1
  scale = np.array([1030, 1530]) / 512
  # The reduced picture's aspect differs, so its crops do: to 5% of a face of 120 pixels.
  np.testing.assert_allclose(reduced.landmarks / scale, small.landmarks, atol=6)
  np.testing.assert_allclose(reduced.boxes / np.tile(scale, 2), small.boxes, atol=15)


def test_faces_below_the_smallest_are_left_out():
  photo = skimage.data.astronaut()
  (box,) = make_detector()(photo).boxes
  side = (box[2:] - box[:2]).max()
  assert len(make_detector(min_face=0.9 * side)(photo)) == 1
  assert len(make_detector(min_face=1.1 * side)(photo)) == 0


def test_a_batch_equals_its_frames():
  photo = skimage.data.astronaut()[:256]
  frames = [photo, np.zeros_like(photo), np.ascontiguousarray(photo[:, ::-1])]
  detect = make_detector()
  for together, alone in zip(make_batch_detector()(frames), map(detect, frames), strict=True):
    np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-3)
    np.testing.assert_allclose(together.landmarks, alone.landmarks, atol=1e-3)
  assert make_batch_detector()([]) == []
  with pytest.raises(UserError, match="several sizes"):
    make_batch_detector()([photo, photo[:100]])


@pytest.mark.slow
def test_retinaface_by_name(shared):
  photo = skimage.data.astronaut()
  detect = make_detector(RETINAFACE, shared / RELEASED, max_side=320)
  (found,) = detect(photo).landmarks
  (other,) = make_detector()(photo).landmarks
  eyes = np.linalg.norm(other[0] - other[1])
  assert np.linalg.norm(found - other, axis=-1).mean() < 0.15 * eyes
  assert len(make_detector(RETINAFACE, shared / RELEASED, min_face=400)(photo)) == 0


@pytest.mark.parametrize(
  ("arguments", "options", "message"),
  [
    (("yolo",), {}, "yolo: no such face detector; choose one of mtcnn, retinaface_mobile0.25"),
    (("retinaface_resnet50",), {}, "its weights do not ship"),
    (("retinaface_resnet50", "/nowhere/x.pth"), {}, "/nowhere/x.pth cannot be read"),
    (("mtcnn", "/nowhere"), {}, "/nowhere/pnet.pt cannot be read"),
    ((), {"min_face": 0}, "min_face 0, max_side None: give at least"),
    ((), {"max_side": 8}, "max_side 8: give at least"),
  ],
)
def test_what_cannot_be_used_is_told(arguments, options, message):
  with pytest.raises(UserError, match=message):
    make_detector(*arguments, **options)


def test_other_arrays_are_refused():
  with pytest.raises(UserError, match="give uint8 RGB"):
    make_detector()(np.zeros((64, 64, 3), np.float32))
