"""The faces of a clip: found and followed, cut out upright, restored, put back.

Two passes over the clip: `find_faces` keeps boxes and landmarks alone, and `restore_faces` holds
as many frames as the recursion looks ahead. A face's number is its place among all that were found,
whichever of them are restored.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from keep_jax import choice as choices
from keep_jax.choice import Choice, FaceTrack
from vsr_jax.errors import UserError
from vsr_jax.faces import align, paste, sharpness, tracks
from vsr_jax.faces.detections import Detector
from vsr_jax.frames import Frame, as_frames, paired

# Restores the faces of each frame, by track; see `streaming.Restorer.stream_tracks`.
StreamTracks = Callable[[Iterable[Mapping[int, np.ndarray]]], Iterator[Mapping[int, np.ndarray]]]
Arrays = dict[int, np.ndarray]  # by the number of the face
Masks = Callable[[np.ndarray], np.ndarray]  # uint8 [b s s 3] -> float32 [b s s]; face_masks

# Crop pixels per frame pixel, below which crops are averaged: taking single points gives aliases.
# On a sharp face, the points are as close to the low-pass filtered face at 0.65, and 1.7 dB farther
# away at 0.5, 4.5 dB at 0.3.
_LEAST_SCALE = 0.65


@dataclasses.dataclass(frozen=True, eq=False)
class RestoredFrame:
  """A frame with its faces restored.

  Attributes:
    frame: the input frame.
    image: uint8 RGB [int(S h) int(S w) 3], the enlarged frame with the restored faces pasted.
    crops: face number -> aligned face before restoration, uint8 RGB [size size 3].
    restored: face number -> aligned face after restoration, uint8 RGB [size size 3].
  """

  frame: Frame
  image: np.ndarray
  crops: dict[int, np.ndarray]
  restored: dict[int, np.ndarray]


def find_faces(
  frames: Iterable[np.ndarray],
  detect: Detector,
  choice: Literal["largest", "all"] | Choice = "largest",
  *,
  size: int = align.SIZE,
  robust: bool = True,
  measure: bool = False,
  span: tuple[int, int | None] = (0, None),
  look_ahead: int = 0,
) -> tuple[list[FaceTrack], int]:
  """Finds the faces of a clip, follows them and chooses whom to restore; the first pass.

  Args:
    frames: RGB [h w 3], uint8 or float in [0, 1]; see `as_frames`.
    detect: the detector.
    choice: whom to restore.
    size: the aligned crops' side, in pixels.
    robust: see `align.fit`.
    measure: measure the faces' sharpness even if the choice does not need it.
    span: (start, stop) of the frames to restore, stop None: to the end. The others are only used to
      track the faces and to smooth their landmarks.
    look_ahead: number of frames after `stop` that the returned tracks still cover.

  Returns:
    All faces in order of their first frame, restored or not, and the number of frames wanted; the
    first of these is number 0.

  Raises:
    ValueError: see `as_frames` and `choice.choose`.
  """
  choice = Choice(choice) if isinstance(choice, str) else choice
  found, sharp = [], []
  height = width = 0

  def thumbnails():
    nonlocal height, width
    for frame in as_frames(frames):
      height, width = frame.shape[:2]
      found.append(detect(frame))
      if measure or choice.skip_sharp:
        sharp.append(np.array([_sharpness(frame, points) for points in found[-1].landmarks]))
      yield tracks.thumbnail(frame)

  cuts = tracks.cuts(thumbnails())
  scores = [detections.scores for detections in found]
  faces = []
  first, end = span[0], min(len(found), len(found) if span[1] is None else span[1])
  for track in tracks.follow(found, cuts):
    if track.stop <= first or track.start >= end:
      continue
    track = track.part(max(track.start, first), min(track.stop, end + look_ahead))
    with contextlib.suppress(ValueError):  # no frame in which the landmarks lie apart: no face
      matrices = align.fit(track.landmarks, size, robust=robust)[0]
      sharp_here = float(np.median(track.pick(sharp))) if sharp else None
      score = float(track.pick(scores).mean())
      track = dataclasses.replace(track, start=track.start - first)
      faces.append(FaceTrack(track, matrices, score, sharp_here))
  return choices.choose(faces, choice, height, width, size), end - first


def _sharpness(frame: np.ndarray, landmarks: np.ndarray) -> float:
  try:
    matrices, _ = align.fit(landmarks[None])
  except ValueError:  # the landmarks are one point; such a face is never restored
    return 0.0
  return sharpness.measure(align.align(frame, matrices[0]))


def restore_faces(
  frames: Iterable[Frame],
  faces: Sequence[FaceTrack],
  restore: StreamTracks,
  *,
  size: int = align.SIZE,
  upscale: float = 1,
  background: Iterator[np.ndarray] | None = None,
  masks: Masks | None = None,
  input_colors: bool = False,
  seconds: collections.defaultdict[str, float] | None = None,
) -> Generator[RestoredFrame, None, None]:
  """Restores the faces of a clip in their frames; the second pass.

  Args:
    frames: the frames that `find_faces` saw.
    faces: what it found.
    restore: the network, a stream of several tracks.
    size: the aligned crops' side, in pixels, as in `find_faces`.
    upscale: S >= 1, by which frames are enlarged.
    background: what each frame is to show around the faces, uint8 RGB, resized to S h x S w
      where it is not of that size (see `paste.enlarge`); None: the frame itself, enlarged by
      Lanczos.
    masks: of restored faces, such as `parsenet.face_masks`; None: the feathered square alone.
    input_colors: give restored faces the input's colors, see `paste.with_colors_of`.
    seconds: counters "align", "background" and "paste", which get the time of that work.

  Yields:
    The frames in order. Pixels outside the faces are those of the enlarged frame; grey faces stay
    grey. Faces are pasted back to front, none over another's head, be that restored or not.

  Raises:
    UserError: the background ends before the clip, or see `paste.enlarged_size`.
  """
  seconds = collections.defaultdict(float) if seconds is None else seconds

  def aligned():
    for t, frame in enumerate(frames):
      with _timed(seconds, "align"):
        matrices = {i: faces[i].matrix(t) for i in _back_to_front(faces, t)}
        chosen = {i: m for i in sorted(matrices) if (m := faces[i].restored_matrix(t)) is not None}
        crops = {i: _cut_out(faces[i], frame.image, m, size) for i, m in chosen.items()}
      yield crops, (frame, matrices, crops)

  for restored, (frame, matrices, crops) in paired(restore, aligned()):
    with _timed(seconds, "background"):
      behind = _next_upscaler(background, frame)
    with _timed(seconds, "paste"):
      restored = {i: _match_color(crops[i], x, input_colors) for i, x in restored.items()}
      parts = _make_masks(restored, masks)
      image = paste.paste(
        frame.image,
        [restored.get(i) for i in matrices],
        list(matrices.values()),
        upscale,
        upscaler=behind,
        masks=[parts.get(i) for i in matrices],
        apart=True,
      )
    yield RestoredFrame(frame, image, crops, restored)


def restore_in_memory(
  frames: Any,
  restore: StreamTracks,
  detect: Detector,
  choice: Literal["largest", "all"] | Choice = "largest",
  *,
  size: int,
  upscale: float = 1,
  input_colors: bool = False,
) -> Iterator[np.ndarray]:
  """Restores the faces of a clip that is held in memory: both passes, from arrays to arrays.

  Args:
    frames: RGB [t h w 3], uint8 or float in [0, 1], or an iterable of frames; see `as_frames`.
    restore: `streaming.Restorer.stream_tracks` of a restorer.
    detect: a detector, see `vsr_jax.faces.detector.make_detector`.
    choice: whom to restore.
    size: the side of the faces that the model restores, `restorer.model.arch.image_size`.
    upscale, input_colors: see `restore_faces`.

  Yields:
    Each frame, uint8 RGB [int(S h) int(S w) 3], with its faces restored.

  Raises:
    ValueError, UserError: see `find_faces` and `restore_faces`.
  """
  images = list(as_frames(frames))
  faces, _ = find_faces(images, detect, choice, size=size)
  clip = (Frame(image, Fraction(i), i) for i, image in enumerate(images))
  for result in restore_faces(
    clip, faces, restore, size=size, upscale=upscale, input_colors=input_colors
  ):
    yield result.image


def _cut_out(face: FaceTrack, image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
  """Cuts a face out: bilinearly, or averaged over where it is much larger than the crop.

  One way for a whole track, as the two are not equally sharp.
  """
  align_face = align.align_reduced if face.scale < _LEAST_SCALE else align.align
  return align_face(image, matrix, size)


def _back_to_front(faces: Sequence[FaceTrack], t: int) -> list[int]:
  """The numbers of frame t's faces, restored or not, the farthest first."""
  there = [i for i, face in enumerate(faces) if face.is_face and face.covers(t)]
  return sorted(there, key=lambda i: faces[i].sizes[t - faces[i].track.start])


def _make_masks(faces: Arrays, masks: Masks | None) -> Arrays:
  if not masks or not faces:
    return {}
  return dict(zip(faces, masks(np.stack(list(faces.values()))), strict=True))


def _match_color(crop: np.ndarray, face: np.ndarray, all_colors: bool) -> np.ndarray:
  """A restored face that is grey where its input is; with `all_colors`, of the input's colors."""
  face = paste.with_colors_of(crop, face) if all_colors else face
  return paste.to_grey(face) if paste.is_grey(crop) else face


def _next_upscaler(background: Iterator[np.ndarray] | None, frame: Frame) -> paste.Upscaler | None:
  """What makes a frame's background: the next image, where there are any."""
  if background is None:
    return None
  image = next(background, None)
  if image is None:
    raise UserError(f"the background ends before frame {frame.index}; make it of all frames")
  return lambda _: image


def identity(
  frames: Iterable[Mapping[int, np.ndarray]],
) -> Iterator[Mapping[int, np.ndarray]]:
  """The identity instead of a network: shows what aligning and pasting alone do to a frame."""
  yield from frames


@contextlib.contextmanager
def _timed(seconds: collections.defaultdict[str, float], name: str) -> Iterator[None]:
  began = time.perf_counter()
  try:
    yield
  finally:
    seconds[name] += time.perf_counter() - began
