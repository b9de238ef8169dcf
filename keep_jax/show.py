"""Pictures of the faces found: boxes drawn over frames, the picture strip, the crops."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from keep_jax.choice import FaceTrack
from keep_jax.faces import RestoredFrame
from vsr_jax import video
from vsr_jax.drawing import at_height
from vsr_jax.faces import align, detections

STRIP_FRAMES = 5  # rows of the picture strip
STRIP_HEIGHT = 256  # a row's, in pixels

_GREY = (160, 160, 160)


def draw_faces(
  image: np.ndarray, faces: list[FaceTrack], frame: int, upscale: float = 1
) -> np.ndarray:
  """Draws the boxes and landmarks of a frame's faces, with their numbers, over a copy of it.

  Those that are not restored there have a grey box.
  """
  for grey in (True, False):
    here = [
      i
      for i, f in enumerate(faces)
      if f.covers(frame) and (f.restored_matrix(frame) is None) == grey
    ]
    if not here:
      continue
    tracks = [faces[i].track for i in here]
    boxes, points = (
      upscale * np.stack([getattr(track, name)[frame - track.start] for track in tracks])
      for name in ("boxes", "landmarks")
    )
    found = detections.Detections(boxes, np.ones(len(here), np.float32), points)
    image = detections.draw(
      image, found, [str(i) for i in here], _GREY if grey else detections.GREEN
    )
  return image


def table(faces: list[FaceTrack], first: int = 0) -> str:
  """A text table of the faces, one per line; `first` is added to frame numbers."""
  lines = ["face  frames           size  score  sharpness  centre x, y  restored"]
  for i, face in enumerate(faces):
    track = face.track
    frames = f"{first + track.start}:{first + track.stop}"
    x, y = np.median((track.boxes[:, :2] + track.boxes[:, 2:]) / 2, axis=0)
    count = len(face.frames)
    told = "yes" if count == len(face.matrices) else f"{count} frames" if count else "no"
    sharp = "" if face.sharpness is None else f"{face.sharpness:.2f}"
    lines.append(
      f"{i:4}  {frames:15}  {face.side:4.0f}  {face.score:5.3f}  {sharp:>9}  {x:5.0f}, {y:4.0f}  "
      + told
      + f" ({face.skip_reason})" * bool(face.skip_reason)
    )
  return "\n".join(lines if faces else ["no face found"])


def save_sheet(path: str, frames: Iterable[video.Frame], faces: list[FaceTrack]) -> None:
  """Writes a picture with one row per face: the frame where it is largest, and its aligned crop."""
  wanted: dict[int, list[int]] = {}
  for i, face in enumerate(faces):
    sides = np.where(face.track.found, face.sizes, 0)
    wanted.setdefault(face.track.start + int(sides.argmax()), []).append(i)
  rows = {}
  for t, frame in enumerate(frames):
    for i in wanted.get(t, ()):
      whole, matrix = draw_faces(frame.image, faces, t), faces[i].matrix(t)
      assert matrix is not None  # the frame was chosen from the face's own track
      rows[i] = np.hstack(
        [at_height(x, STRIP_HEIGHT) for x in (whole, align.align(frame.image, matrix))]
      )
  _save(path, [rows[i] for i in sorted(rows)])


class Strip:
  """The picture strip: input, aligned and restored face of a few frames with faces."""

  def __init__(self, faces: list[FaceTrack], total: int):
    """Picks frames of the first `total`."""
    self.rows: list[np.ndarray] = []
    self._faces = faces
    frames = sorted({t for face in faces for t in face.frames.tolist() if t < total})
    picks = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).astype(int)
    self._frames = {frames[i] for i in picks}

  def add(self, t: int, result: RestoredFrame) -> None:
    if t not in self._frames or not result.restored:
      return
    matrices = {
      i: m for i in result.restored if (m := self._faces[i].restored_matrix(t)) is not None
    }
    i = max(matrices, key=lambda i: -align.scale(matrices[i]))  # the largest
    whole = draw_faces(result.frame.image, self._faces, t)
    self.rows.append(
      np.hstack([at_height(x, STRIP_HEIGHT) for x in (whole, result.crops[i], result.restored[i])])
    )

  def save(self, path: str) -> None:
    _save(path, self.rows)


def _save(path: str, rows: list[np.ndarray]) -> None:
  picture = np.vstack(rows)
  height, width, _ = picture.shape
  with video.open_writer(path, height, width, Fraction(1)) as target:
    target.write(picture)


class Crops:
  """Writes the aligned and the restored faces: DIR/face_000_{aligned,restored}/00000000.png."""

  def __init__(
    self,
    folder: str | None,
    faces: list[FaceTrack],
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

  def write(self, t: int, result: RestoredFrame) -> None:
    if not self._folder:
      return
    for i in result.restored:
      if i not in self._open:
        self._open[i] = self._start(self._folder, i)
      closing, writers = self._open[i]
      for writer, images in zip(writers, (result.crops, result.restored), strict=True):
        writer.write(images[i])
      if t == self._faces[i].frames[-1]:
        closing.close()
        del self._open[i]

  def _start(self, folder: str, face: int) -> tuple[contextlib.ExitStack, list[video.Writer]]:
    closing = self._stack.enter_context(contextlib.ExitStack())
    names = (f"face_{face:03d}_{kind}" for kind in ("aligned", "restored"))
    paths = (os.path.join(folder, name) for name in names)
    size = (self._size, self._size)
    opened = (video.open_writer(path, *size, self._rate) for path in paths)
    return closing, [closing.enter_context(writer) for writer in opened]
