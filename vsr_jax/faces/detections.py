"""What a face detector finds in a frame."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Detections:
  """The n faces of a frame; all float32.

  Attributes:
    boxes: [n 4] left, top, right, bottom in pixels; they may reach over the frame's edge.
    scores: [n] in [0, 1].
    landmarks: [n 5 2], (x, y) in pixels of the eye on the picture's left, the other eye, the tip of
      the nose, the corner of the mouth on the left, the other corner.
  """

  boxes: np.ndarray
  scores: np.ndarray
  landmarks: np.ndarray
