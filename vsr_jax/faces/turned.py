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

_EVERY = 4  # one in so many frames with faces in doubt is looked at turned


def turning(detect: Detector) -> Detector:
  """Makes a detector that looks at a frame turned where it is not sure of what it finds.

  It begins with the turn that worked last, or upright. All others are tried at the clip's first
  frame if it leaves doubt, so that a picture's faces are found, and where a clip's faces are gone;
  where there are still none, one more a frame, and while faces are in doubt, one in a few frames.
  So a clip without faces takes twice the time. The order of frames matters: make one for each clip.

  Returns:
    the function from a frame to its `Detections`, all of one turn. Landmarks keep their order as
    the upright face has it: in a face upside down the first eye is at the picture's right.
  """
  turn, missed, doubtful, tried = 0, False, 0, 0
  first = True

  def look(frame: np.ndarray, turn: int) -> Detections:
    found = detect(np.ascontiguousarray(np.rot90(frame, turn)) if turn else frame)
    return turned_back(found, turn, *frame.shape[:2])

  def others(found: Detections) -> list[int]:
    """Which turns to try next."""
    nonlocal first, missed, doubtful, tried
    turns = [other for other in TURNS if other != turn]
    everything = first or not (missed or len(found))
    first, missed = False, not len(found)
    if _doubt(found) <= 1 - _SURE:
      return []
    if everything:
      return turns
    if len(found):
      doubtful += 1
      if doubtful % _EVERY:
        return []
    tried += 1
    return [turns[tried % len(turns)]]

  def detect_turned(frame: np.ndarray) -> Detections:
    nonlocal turn, missed
    found = look(frame, turn)
    seen = [(look(frame, other), other) for other in others(found)]
    best, other = min(seen, key=lambda x: _doubt(x[0]), default=(found, turn))
    if _doubt(best) * _LESS_DOUBT < _doubt(found):
      turn, missed = other, False
      return best
    if not len(found):
      turn = 0
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
