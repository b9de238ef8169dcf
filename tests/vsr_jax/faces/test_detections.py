"""What detectors share: suppression, the record, the overlay."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from vsr_jax.errors import UserError
from vsr_jax.faces.detections import Detections, check_frame, draw, none_found, suppress


def overlap(a, b, relative_to_smaller):
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  shared = max(width, 0) * max(height, 0)
  first, second = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
  return shared / (min(first, second) if relative_to_smaller else first + second - shared)


@hypothesis.given(st.integers(0, 10_000), st.integers(0, 30), st.booleans())
def test_suppression_keeps_the_surest_of_what_overlaps(seed, count, relative_to_smaller):
  rng = np.random.default_rng(seed)
  corner = rng.integers(0, 40, (count, 2))
  boxes = np.concatenate([corner, corner + rng.integers(5, 40, (count, 2))], 1).astype(np.float32)
  scores = rng.permutation(count).astype(np.float32)
  kept = suppress(boxes, scores, 0.41, relative_to_smaller=relative_to_smaller)
  assert list(scores[kept]) == sorted(scores[kept], reverse=True)
  for i in range(count):  # kept if and only if no surer kept box overlaps it
    surer = [k for k in kept if scores[k] > scores[i]]
    hidden = any(overlap(boxes[i], boxes[k], relative_to_smaller) > 0.41 for k in surer)
    assert hidden != (i in kept)


def test_an_inclusive_box_is_a_pixel_longer():
  # Without the extra pixel they share 1 of 3 pixels' union, with it 4 of 8 (2x2 of 2x3 each).
  boxes = np.array([[0, 0, 1, 2], [0, 1, 1, 3]], np.float32)
  scores = np.array([1, 0.5], np.float32)
  assert list(suppress(boxes, scores, 0.4)) == [0, 1]
  assert list(suppress(boxes, scores, 0.4, inclusive=True)) == [0]


def test_some_of_the_faces():
  found = Detections(
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.array([0.9, 0.8, 0.7], np.float32),
    np.arange(30, dtype=np.float32).reshape(3, 5, 2),
  )
  part = found[found.scores < 0.85]
  assert len(part) == 2
  np.testing.assert_array_equal(part.landmarks, found.landmarks[1:])
  assert len(none_found()) == len(found[:0]) == 0


def test_the_overlay_marks_the_face_and_spares_the_frame():
  frame = np.zeros((60, 80, 3), np.uint8)
  landmarks = np.array([[30, 25], [50, 25], [40, 35], [32, 45], [48, 45]], np.float32)
  found = Detections(
    np.array([[20, 15, 60, 55]], np.float32), np.ones(1, np.float32), landmarks[None]
  )
  picture = draw(frame, found)
  assert not frame.any()
  assert picture[55, 40].tolist() == picture[30, 20].tolist() == [0, 255, 0]
  colours = {tuple(picture[int(y), int(x)]) for x, y in landmarks}
  assert len(colours) == 5
  assert (0, 0, 0) not in colours
  assert not picture[5, 70].any()
  outside = Detections(found.boxes - 50, found.scores, found.landmarks + 500)
  assert draw(frame, outside).shape == frame.shape
  np.testing.assert_array_equal(draw(frame, none_found()), frame)


@pytest.mark.parametrize(
  "frame",
  [
    np.zeros((8, 8, 3), np.float32),
    np.zeros((8, 8), np.uint8),
    np.zeros((8, 8, 4), np.uint8),
    np.zeros((0, 8, 3), np.uint8),
  ],
)
def test_other_arrays_are_no_frames(frame):
  with pytest.raises(UserError, match="give uint8 RGB"):
    check_frame(frame)
