"""Faces that lie on their side or upside down, for detectors that know upright ones."""

from __future__ import annotations

import numpy as np

from vsr_jax.faces.detections import Detections, Detector

# Quarters, counterclockwise, by which the frame is turned.
TURNS = (0, 1, 2, 3)

# With a score like this nobody looks further: MTCNN's for upright faces are nearly all above it.
_SURE = 0.9995

# MTCNN sees many a turned face as an upright one, its landmarks in the wrong places, with scores of
# 0.7 to 0.999; turned rightly it leaves much less doubt. So by this a turn must be less in doubt.
_LESS_DOUBT = 10


def turning(detect: Detector) -> Detector:
  """Makes a detector that looks at a frame turned where it is not sure of what it finds.

  It begins with the turn that worked last, or upright. Where that leaves doubt, others are tried:
  one more pass a frame, so in a clip without faces each turn in every third frame; all at the
  clip's first frame and after surer ones, so that a picture's faces and those of a clip that turns
  are found at once. The order of frames matters, so make one for each clip.

  Returns:
    the function from a frame to its `Detections`, all of one turn. Landmarks keep their order as
    the upright face has it: of a face upside down the first eye is at the picture's right.
  """
  turn, doubtful = 0, 0  # the last turn, and for how many frames nothing was sure

  def detect_turned(frame: np.ndarray) -> Detections:
    nonlocal turn, doubtful

    def look(turn: int) -> Detections:
      found = detect(np.ascontiguousarray(np.rot90(frame, turn)) if turn else frame)
      return turned_back(found, turn, *frame.shape[:2])

    found = look(turn)
    if _doubt(found) <= 1 - _SURE:
      doubtful = 0
      return found
    others = [other for other in TURNS if other != turn]
    if doubtful:
      others = [others[doubtful % len(others)]]
    best, other = min(((look(other), other) for other in others), key=lambda x: _doubt(x[0]))
    if _doubt(best) * _LESS_DOUBT < _doubt(found):
      found, turn = best, other
    elif not len(found):
      turn = 0
    doubtful = doubtful + 1 if _doubt(found) > 1 - _SURE else 0
    return found

  return detect_turned


def _doubt(found: Detections) -> float:
  return 1 - float(found.scores.max(initial=0))


def turned_back(found: Detections, turn: int, height: int, width: int) -> Detections:
  """What was found in `np.rot90(frame, turn)`, in the pixels of the frame [height width 3]."""
  boxes = _points_back(found.boxes.reshape(-1, 2, 2), turn, height, width)
  boxes = np.concatenate([boxes.min(1), boxes.max(1)], -1)
  return Detections(boxes, found.scores, _points_back(found.landmarks, turn, height, width))


def _points_back(points: np.ndarray, turn: int, height: int, width: int) -> np.ndarray:
  x, y = points[..., 0], points[..., 1]
  right, bottom = np.float32(width - 1), np.float32(height - 1)
  x, y = [(x, y), (right - y, x), (right - x, bottom - y), (y, bottom - x)][turn]
  return np.stack([x, y], -1)
