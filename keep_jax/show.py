"""Pictures of the faces found: boxes drawn over frames, the picture strip, the crops."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction

import cv2
import numpy as np

from keep_jax.faces import Face, Restored
from vsr_jax import video
from vsr_jax.faces import align, detections

STRIP_FRAMES = 5  # rows of the picture strip
STRIP_HEIGHT = 256  # of a row, in pixels


def draw_faces(image: np.ndarray, faces: list[Face], frame: int, upscale: float = 1) -> np.ndarray:
  """Draws the boxes and landmarks of a frame's faces, with their numbers, over a copy of it."""
  here = [(i, face.track) for i, face in enumerate(faces) if face.at(frame) is not None]
  if not here:
    return image
  boxes, points = (
    upscale * np.stack([getattr(track, name)[frame - track.start] for _, track in here])
    for name in ("boxes", "landmarks")
  )
  found = detections.Detections(boxes, np.ones(len(here), np.float32), points)
  return detections.draw(image, found, [str(i) for i, _ in here])


class Strip:
  """The picture strip: of a few frames with faces the input, the aligned and the restored face."""

  def __init__(self, faces: list[Face]):
    self.rows: list[np.ndarray] = []
    self._faces = faces
    frames = sorted({t for face in faces for t in range(face.track.start, face.track.stop)})
    picks = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).astype(int)
    self._frames = {frames[i] for i in picks}

  def add(self, t: int, result: Restored) -> None:
    if t not in self._frames or not result.faces:
      return
    i = max(result.faces, key=lambda i: -align.scale(self._faces[i].at(t)))  # the largest
    whole = draw_faces(result.frame.image, self._faces, t)
    self.rows.append(np.hstack([_at_height(x) for x in (whole, result.crops[i], result.faces[i])]))

  def save(self, path: str) -> None:
    picture = np.vstack(self.rows)
    with video.open_writer(path, *picture.shape[:2], Fraction(1)) as target:
      target.write(picture)


def _at_height(image: np.ndarray) -> np.ndarray:
  width = max(1, round(image.shape[1] * STRIP_HEIGHT / image.shape[0]))
  return cv2.resize(image, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)


class Crops:
  """Writes the aligned and the restored faces: DIR/face_000_{aligned,restored}/00000000.png."""

  def __init__(
    self,
    folder: str | None,
    faces: list[Face],
    size: int,
    rate: Fraction,
    stack: contextlib.ExitStack,
  ):
    self._folder, self._faces, self._size, self._rate = folder, faces, size, rate
    self._stack = stack
    # By face: what closes its writers, and the writers of its crops and of what was restored.
    self._open: dict[int, tuple[contextlib.ExitStack, list[video.Writer]]] = {}
    if folder:
      os.makedirs(folder, exist_ok=True)

  def write(self, t: int, result: Restored) -> None:
    if not self._folder:
      return
    for i in result.faces:
      if i not in self._open:
        self._open[i] = self._start(i)
      closing, writers = self._open[i]
      for writer, images in zip(writers, (result.crops, result.faces), strict=True):
        writer.write(images[i])
      if t + 1 == self._faces[i].track.stop:
        closing.close()
        del self._open[i]

  def _start(self, face: int) -> tuple[contextlib.ExitStack, list[video.Writer]]:
    closing = self._stack.enter_context(contextlib.ExitStack())
    names = (f"face_{face:03d}_{kind}" for kind in ("aligned", "restored"))
    paths = (os.path.join(self._folder, name) for name in names)
    size = (self._size, self._size)
    opened = (video.open_writer(path, *size, self._rate) for path in paths)
    return closing, [closing.enter_context(writer) for writer in opened]
