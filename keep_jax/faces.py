"""The faces of a clip: found and followed, cut out upright, restored, put back.

Two passes over the clip: `find_faces` keeps boxes and landmarks alone, and `restore_faces` holds
as many frames as the recursion looks ahead.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.faces import align, paste, tracks
from vsr_jax.faces.detections import Detector
from vsr_jax.faces.tracks import Track
from vsr_jax.frames import as_frames
from vsr_jax.video import Frame

# Restores the faces of each frame, by track; see `inference.Restorer.stream_tracks`.
StreamTracks = Callable[
  [Iterable[Mapping[Hashable, np.ndarray]]], Iterator[Mapping[Hashable, np.ndarray]]
]
Masks = Callable[[np.ndarray], np.ndarray]  # uint8 [b s s 3] -> float32 [b s s]; face_masks


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
  """One person's face through one shot.

  Attributes:
    track: where it is.
    matrices: [n 2 3] from the frame to the aligned crop, one a frame of the track.
  """

  track: Track
  matrices: np.ndarray

  def at(self, frame: int) -> np.ndarray | None:
    """Its matrix in a frame, or None if it is not there."""
    inside = self.track.start <= frame < self.track.stop
    return self.matrices[frame - self.track.start] if inside else None


@dataclasses.dataclass(frozen=True, eq=False)
class Restored:
  """A frame with its faces restored.

  Attributes:
    frame: as it was.
    image: uint8 RGB [int(S h) int(S w) 3], enlarged, the restored faces in it.
    crops: the aligned faces by number, uint8 RGB [size size 3].
    faces: the restored ones.
  """

  frame: Frame
  image: np.ndarray
  crops: dict[int, np.ndarray]
  faces: dict[int, np.ndarray]


def find_faces(
  frames: Iterable[np.ndarray],
  detect: Detector,
  choice: Literal["largest", "all"] = "largest",
  *,
  size: int = align.SIZE,
  robust: bool = True,
) -> tuple[list[Face], int]:
  """Finds the faces of a clip and follows them; the first pass.

  Args:
    frames: RGB [h w 3], uint8 or float in [0, 1]; see `as_frames`.
    detect: the detector.
    choice: "largest" for at most one face a frame, or "all"; see `tracks.choose`.
    size: of the aligned crops, in pixels.
    robust: see `align.fit`.

  Returns:
    The faces in order of their first frame, and the number of frames.
  """
  found = []
  height = width = 0

  def thumbnails():
    nonlocal height, width
    for frame in as_frames(frames):
      height, width = frame.shape[:2]
      found.append(detect(frame))
      yield tracks.thumbnail(frame)

  cuts = tracks.cuts(thumbnails())
  followed = tracks.follow(found, cuts)
  faces = []
  for track in tracks.choose(followed, choice, height, width):
    with contextlib.suppress(ValueError):  # no frame in which the landmarks lie apart: no face
      faces.append(Face(track, align.fit(track.landmarks, size, robust=robust)[0]))
  return faces, len(found)


def restore_faces(
  frames: Iterable[Frame],
  faces: Sequence[Face],
  restore: StreamTracks,
  *,
  size: int = align.SIZE,
  upscale: float = 1,
  background: Iterator[np.ndarray] | None = None,
  masks: Masks | None = None,
  seconds: collections.Counter | None = None,
) -> Iterator[Restored]:
  """Restores the faces of a clip in their frames; the second pass.

  Args:
    frames: the frames that `find_faces` saw.
    faces: what it found.
    restore: the network, a stream of several tracks.
    size: of the aligned crops, in pixels, as in `find_faces`.
    upscale: S >= 1, by which frames are enlarged.
    background: of each frame what is to be seen around the faces, uint8 RGB, resized to S h x S w
      where it is not of that size; None: the frame itself, enlarged by Lanczos.
    masks: what of a restored face is pasted, apart from the feathered square.
    seconds: what the work on the host takes is added to its "align" and "paste".

  Yields:
    The frames in order. Pixels outside the faces are those of the enlarged frame; grey faces stay
    grey.

  Raises:
    UserError: the background ends before the clip, or see `paste.enlarged_size`.
  """
  seconds = collections.Counter() if seconds is None else seconds
  waiting: collections.deque[tuple[Frame, dict[int, np.ndarray], dict[int, np.ndarray]]] = (
    collections.deque()
  )

  def aligned():
    for t, frame in enumerate(frames):
      with _timed(seconds, "align"):
        matrices = {i: m for i, face in enumerate(faces) if (m := face.at(t)) is not None}
        crops = {i: align.align(frame.image, m, size) for i, m in matrices.items()}
      waiting.append((frame, matrices, crops))
      yield crops

  for restored in restore(aligned()):
    frame, matrices, crops = waiting.popleft()
    with _timed(seconds, "paste"):
      restored = {i: _as_grey_as(crops[i], face) for i, face in restored.items()}
      images = list(restored.values())
      image = paste.paste(
        frame.image,
        images,
        [matrices[i] for i in restored],
        upscale,
        upscaler=None if background is None else _always(_next(background, frame)),
        masks=masks(np.stack(images)) if masks and images else None,
      )
    yield Restored(frame, image, crops, restored)


def _as_grey_as(crop: np.ndarray, face: np.ndarray) -> np.ndarray:
  return paste.to_grey(face) if paste.is_grey(crop) else face


def _next(background: Iterator[np.ndarray], frame: Frame) -> np.ndarray:
  image = next(background, None)
  if image is None:
    raise UserError(f"the background ends before frame {frame.index}; make it of all frames")
  return image


def unchanged(
  frames: Iterable[Mapping[Hashable, np.ndarray]],
) -> Iterator[Mapping[Hashable, np.ndarray]]:
  """The network that changes nothing: what is left are the losses of aligning and pasting."""
  yield from frames


def _always(image: np.ndarray) -> paste.Upscaler:
  return lambda _: image


@contextlib.contextmanager
def _timed(seconds: collections.Counter, name: str) -> Iterator[None]:
  began = time.perf_counter()
  try:
    yield
  finally:
    seconds[name] += time.perf_counter() - began
