"""Detection of faces on their side or upside down, by detectors trained on upright faces."""

from __future__ import annotations

import numpy as np

from vsr_jax.faces.detections import Detections, Detector

# Quarters, counterclockwise, by which the frame is turned.
TURNS = (0, 1, 2, 3)

# Score from which no other rotation is tried; nearly all upright faces have a higher one by MTCNN.
_SURE_SCORE = 0.9995

# A rotation is accepted if it divides the doubt, 1 - score, by more than this. MTCNN often takes a
# rotated face for an upright one, with misplaced landmarks and scores of 0.7 to 0.999; in the right
# rotation its score is much nearer to 1.
_DOUBT_RATIO = 10

_RETRY_INTERVAL = 4  # of the frames whose faces are in doubt, every fourth is also tried rotated


def with_rotations(detect: Detector) -> Detector:
  """Makes a detector that also tries rotated frames where its scores leave doubt.

  A frame is first tried in the rotation that worked last, initially upright. The three others are
  all tried in the first frame, if it leaves doubt, and in the first frame in which no face is found
  any more. After that one more rotation per frame is tried while there is no face, and one every
  `_RETRY_INTERVAL` frames while faces are in doubt. So a clip without faces takes twice the time.
  The detector keeps state: make one for each clip.

  Returns:
    `frame -> Detections`, all in one rotation. Landmarks keep the order of the upright face: in a
    face upside down the first eye is at the picture's right.
  """
  turn, missed, doubtful, tried = 0, False, 0, 0
  first = True

  def detect_rotated(frame: np.ndarray, turn: int) -> Detections:
    found = detect(np.ascontiguousarray(np.rot90(frame, turn)) if turn else frame)
    return rotate_back(found, turn, *frame.shape[:2])

  def next_turns(found: Detections) -> list[int]:
    """Which turns to try next."""
    nonlocal first, missed, doubtful, tried
    turns = [other for other in TURNS if other != turn]
    everything = first or not (missed or len(found))
    first, missed = False, not len(found)
    if _doubt(found) <= 1 - _SURE_SCORE:
      return []
    if everything:
      return turns
    if len(found):
      doubtful += 1
      if doubtful % _RETRY_INTERVAL:
        return []
    tried += 1
    return [turns[tried % len(turns)]]

  def detect_in_best_rotation(frame: np.ndarray) -> Detections:
    nonlocal turn, missed
    found = detect_rotated(frame, turn)
    seen = [(detect_rotated(frame, other), other) for other in next_turns(found)]
    best, other = min(seen, key=lambda x: _doubt(x[0]), default=(found, turn))
    if _doubt(best) * _DOUBT_RATIO < _doubt(found):
      turn, missed = other, False
      return best
    if not len(found):
      turn = 0
    return found

  return detect_in_best_rotation


def _doubt(found: Detections) -> float:
  return 1 - float(found.scores.max(initial=0))


def rotate_back(found: Detections, turn: int, height: int, width: int) -> Detections:
  """Maps detections in `np.rot90(frame, turn)` to pixels of the frame [height width 3]."""
  boxes = _points_back(found.boxes.reshape(-1, 2, 2), turn, height, width)
  boxes = np.concatenate([boxes.min(1), boxes.max(1)], -1)
  return Detections(boxes, found.scores, _points_back(found.landmarks, turn, height, width))


def _points_back(points: np.ndarray, turn: int, height: int, width: int) -> np.ndarray:
  x, y = points[..., 0], points[..., 1]
  right, bottom = np.float32(width - 1), np.float32(height - 1)
  x, y = [(x, y), (right - y, x), (right - x, bottom - y), (y, bottom - x)][turn]
  return np.stack([x, y], -1)
