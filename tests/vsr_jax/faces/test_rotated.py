"""Faces on their side and upside down."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data

from vsr_jax import metrics
from vsr_jax.faces import align
from vsr_jax.faces.detections import Detections, none_found
from vsr_jax.faces.detector import make_detector
from vsr_jax.faces.rotated import rotate_back, with_rotations

PHOTO = skimage.data.astronaut()[:280, 60:400]


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_turned_face_is_aligned_as_the_upright_one(turn):
  detect = make_detector()
  want = align.align(PHOTO, align.fit(detect(PHOTO).landmarks[:1])[0][0])
  frame = np.ascontiguousarray(np.rot90(PHOTO, turn))
  found = with_rotations(detect)(frame)
  assert len(found) == 1
  left, top, right, bottom = found.boxes[0]
  assert left < right
  assert top < bottom
  assert ((found.landmarks[0] > (left, top)) & (found.landmarks[0] < (right, bottom))).all()
  crop = align.align(frame, align.fit(found.landmarks)[0][0])
  assert metrics.rgb_psnr(crop, want) > 20
  assert metrics.rgb_psnr(np.rot90(crop, 2), want) < 15


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_what_is_found_comes_back_to_its_pixel(turn):
  frame = np.zeros((5, 7, 3), np.uint8)
  frame[1, 4] = 255
  y, x = np.argwhere(np.rot90(frame, turn)[..., 0])[0]
  points = np.float32([[[x, y]] * 5])
  box = np.float32([[x - 1, y - 2, x + 1, y + 2]])
  back = rotate_back(Detections(box, np.ones(1, np.float32), points), turn, 5, 7)
  assert (back.landmarks == (4, 1)).all()
  dx, dy = (2, 1) if turn % 2 else (1, 2)
  assert back.boxes.tolist() == [[4 - dx, 1 - dy, 4 + dx, 1 + dy]]


def marked(value: int, height: int = 20, width: int = 30) -> np.ndarray:
  """A frame with a mark at its top left, in place of a face; 0: without."""
  frame = np.zeros((height, width, 3), np.uint8)
  frame[0, 0] = value
  return frame


class Detector:
  """Finds the mark at the top left; a mark of v scores v / 255."""

  def __init__(self):
    self.passes = 0

  def __call__(self, frame):
    self.passes += 1
    score = frame[0, 0, 0] / 255
    if not score:
      return none_found()
    return Detections(
      np.zeros((1, 4), np.float32), np.float32([score]), np.zeros((1, 5, 2), np.float32)
    )


def passes(frames) -> tuple[list[int], list[int]]:
  """How often the detector looks at each frame, and how much is found."""
  detector = Detector()
  detect, looks, found = with_rotations(detector), [], []
  for frame in frames:
    before = detector.passes
    found.append(len(detect(frame)))
    looks.append(detector.passes - before)
  return looks, found


def test_upright_faces_cost_one_pass():
  assert passes([marked(255)] * 3) == ([1] * 3, [1] * 3)


def test_no_face_costs_one_more_pass_than_once():
  assert passes([marked(0)] * 4) == ([4, 2, 2, 2], [0] * 4)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_the_turn_that_worked_is_tried_first(turn):
  frame = np.rot90(marked(255), turn)
  assert passes([frame] * 3) == ([4, 1, 1], [1] * 3)
  looks, found = passes([marked(255), *[frame] * 3, *[marked(255)] * 2])
  assert looks == [1, 4, 1, 1, 4, 1]
  assert found == [1] * 6


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_after_frames_without_a_face_a_turned_one_is_found_within_three(turn):
  looks, found = passes([*[marked(0)] * 4, *[np.rot90(marked(255), turn)] * 4])
  assert max(looks[1:]) == 2
  assert sum(found) >= 2
  assert found[-1] == 1


def test_faces_in_doubt_cost_little():
  assert passes([marked(230)] * 8) == ([4, 1, 1, 1, 2, 1, 1, 1], [1] * 8)
  looks, _ = passes([marked(255), marked(230)] * 8)
  assert sum(looks) == 18


def test_a_doubtful_turn_does_not_replace_an_upright_face():
  frame = marked(230)
  frame[-1, -1] = 235
  detect = with_rotations(Detector())
  assert float(detect(frame).scores[0]) == pytest.approx(230 / 255)
  frame[-1, -1] = 255
  assert float(with_rotations(Detector())(frame).scores[0]) == 1


def test_a_picture_turned_by_hand():
  """A face at an angle between the turns is the nearest one's."""
  height, width = PHOTO.shape[:2]
  turn = cv2.getRotationMatrix2D((width / 2, height / 2), 100, 1)
  frame = cv2.warpAffine(PHOTO, turn, (width, height))
  found = with_rotations(make_detector())(frame)
  eyes = found.landmarks[0, 1] - found.landmarks[0, 0]
  assert np.degrees(np.arctan2(-eyes[1], eyes[0])) == pytest.approx(100, abs=15)
