"""Face detections: their type, non-maximum suppression, and drawing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from vsr_jax.errors import UserError

# In RGB, one a landmark: the eyes, the nose, the corners of the mouth.
_COLOURS = ((255, 64, 64), (64, 255, 64), (64, 128, 255), (255, 255, 0), (255, 0, 255))

GREEN = (0, 255, 0)


@dataclasses.dataclass(frozen=True)
class Detections:
  """The n faces of a frame, the surest first; all float32.

  Coordinates are pixels from the frame's top left. Whether whole numbers are corners or centres of
  pixels is not defined: the networks' rounding is coarser than that.

  Attributes:
    boxes: [n 4] left, top, right, bottom; they may reach over the frame's edge.
    scores: [n] in [0, 1].
    landmarks: [n 5 2], (x, y) of the eye on the picture's left, the other eye, the tip of the
      nose, the corner of the mouth on the left, the other corner.
  """

  boxes: np.ndarray
  scores: np.ndarray
  landmarks: np.ndarray

  def __len__(self) -> int:
    return len(self.scores)

  def __getitem__(self, index: np.ndarray | slice) -> Detections:
    """Some of the faces, by a slice, a mask or an array of indices."""
    return Detections(self.boxes[index], self.scores[index], self.landmarks[index])


Detector = Callable[[np.ndarray], Detections]  # takes a uint8 RGB frame [h w 3]
BatchDetector = Callable[[Sequence[np.ndarray]], list[Detections]]  # takes frames of one size


def none_found() -> Detections:
  """The detections of a frame without faces."""
  return Detections(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
  )


def check_frame(frame: np.ndarray) -> None:
  """Raises `UserError` unless the frame is uint8 RGB [h w 3] and has pixels."""
  if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
    raise UserError(f"a frame of {frame.dtype} {frame.shape}: give uint8 RGB [h w 3]")


def suppress(
  boxes: np.ndarray,
  scores: np.ndarray,
  threshold: float,
  *,
  relative_to_smaller: bool = False,
  inclusive: bool = False,
) -> np.ndarray:
  """Greedy non-maximum suppression: where boxes overlap, the surest stays.

  Args:
    boxes: [n 4] left, top, right, bottom.
    scores: [n].
    threshold: a box is dropped if its intersection with a kept box exceeds this share of their
      union.
    relative_to_smaller: the share is of the smaller box instead of the union.
    inclusive: right and bottom belong to the box, so that its sides are one pixel longer.

  Returns:
    [k] indices of the kept boxes, the surest first; of equal scores the earlier first.
  """
  extra = np.float32(inclusive)
  area = (boxes[:, 2:] - boxes[:, :2] + extra).prod(1)
  order = np.argsort(-scores, kind="stable")
  kept = []
  while order.size:
    best, rest = order[0], order[1:]
    kept.append(best)
    corner = np.maximum(boxes[best, :2], boxes[rest, :2])
    shared = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - corner + extra
    shared = np.maximum(shared, 0).prod(1)
    smaller = np.minimum(area[best], area[rest])
    whole = smaller if relative_to_smaller else area[best] + area[rest] - shared
    order = rest[shared <= threshold * whole]
  return np.array(kept, np.int64)


def draw(
  frame: np.ndarray,
  detections: Detections,
  labels: Sequence[str] | None = None,
  colour: tuple[int, int, int] = GREEN,
) -> np.ndarray:
  """Draws boxes, labels and landmarks over a frame.

  Args:
    frame: uint8 RGB [h w 3]; it stays as it is.
    detections: its faces.
    labels: one a face; None: their scores.
    colour: the boxes' and labels', RGB.

  Returns:
    uint8 RGB [h w 3].
  """
  picture = np.ascontiguousarray(frame).copy()
  line = max(1, round(max(frame.shape[:2]) / 500))
  if labels is None:
    labels = [f"{score:.3f}" for score in detections.scores]
  for box, label, landmarks in zip(detections.boxes, labels, detections.landmarks, strict=True):
    left, top, right, bottom = (int(v) for v in np.rint(box))
    cv2.rectangle(picture, (left, top), (right, bottom), colour, line)
    where = (left, max(top - 2 * line, 10 * line))
    cv2.putText(picture, label, where, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * line, colour)
    for (x, y), point in zip(np.rint(landmarks).astype(int), _COLOURS, strict=True):
      cv2.circle(picture, (int(x), int(y)), 2 * line, point, -1)
  return picture
