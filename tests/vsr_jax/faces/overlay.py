"""Draws both detectors' landmarks over the marks made by eye: docs/landmarks.jpg.

python -m tests.vsr_jax.faces.overlay ../shared docs/landmarks.jpg
"""

from __future__ import annotations

import pathlib
import sys

import cv2
import numpy as np
import PIL.Image

from tests.vsr_jax.faces.marks import MARKS, read_frame
from vsr_jax.faces.detector import make_detector

SIDE = 256  # of a face's picture
COLUMNS = 6
EYES = 0.32  # distance of the eyes, as a part of the side
MARK, MTCNN, RETINAFACE = (255, 255, 255), (0, 255, 0), (255, 140, 0)


def draw_face(frame: np.ndarray, marks: np.ndarray, found: dict[tuple, np.ndarray]) -> np.ndarray:
  """One face of uint8 [h w 3]: marks [5 2] as rings, landmarks found as dots in their colour."""
  scale = EYES * SIDE / np.linalg.norm(marks[1] - marks[0])
  shift = SIDE / 2 - scale * marks.mean(0)
  affine = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
  picture = cv2.warpAffine(frame, affine, (SIDE, SIDE), flags=cv2.INTER_AREA)
  for colour, points in {MARK: marks, **found}.items():
    radius, line = (6, 1) if colour == MARK else (2, -1)
    for x, y in points * scale + shift:
      cv2.circle(picture, (round(x), round(y)), radius, colour, line, cv2.LINE_AA)
  return picture


def main(shared: pathlib.Path, output: pathlib.Path) -> None:
  """Draws the frames whose licence lets them be shown (not those of `faces_low_quality`)."""
  detectors = {
    MTCNN: make_detector(),
    RETINAFACE: make_detector(
      "retinaface_mobile0.25_1mb", shared / "weights/retinaface_mobilenet0.25_Final.pth"
    ),
  }
  faces = []
  for clip, index, marks in MARKS:
    if not clip.startswith("faces/"):
      continue
    frame, marks = read_frame(shared / "data" / clip, index), np.array(marks)
    found = {}
    for colour, detect in detectors.items():
      landmarks = detect(frame).landmarks
      found[colour] = min(landmarks, key=lambda points: np.linalg.norm(points - marks))
    faces.append(draw_face(frame, marks, found))
  rows = [np.hstack(faces[i : i + COLUMNS]) for i in range(0, len(faces), COLUMNS)]
  PIL.Image.fromarray(np.vstack(rows)).save(output, quality=85)


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:]))
