"""Which of the faces found are restored, and why the others are not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from vsr_jax.faces import align, occlusion, sharpness, tracks
from vsr_jax.faces.tracks import Track


@dataclasses.dataclass(frozen=True, eq=False)
class FaceTrack:
  """One person's face through one shot.

  Attributes:
    track: where it is.
    matrices: [n 2 3] from the frame to the aligned crop, one a frame of the track.
    score: mean of the detector's scores.
    sharpness: median of `sharpness.measure`; None: not measured.
    chosen: [n] bool, in which frames it is restored; None: in all.
    skip_reason: reason why it is not restored in the others, for the user; "" if there are none.
    is_face: False for a false detection, by `Choice.min_score`; it hides no other face.
  """

  track: Track
  matrices: np.ndarray
  score: float = 1.0
  sharpness: float | None = None
  chosen: np.ndarray | None = None
  skip_reason: str = ""
  is_face: bool = True

  def restored_matrix(self, frame: int) -> np.ndarray | None:
    """Its matrix in a frame, or None if it is not restored there."""
    here = self.chosen is None or (self.covers(frame) and self.chosen[frame - self.track.start])
    return self.matrix(frame) if here else None

  def matrix(self, frame: int) -> np.ndarray | None:
    """Its matrix in a frame, restored or not; None if it is not there."""
    return self.matrices[frame - self.track.start] if self.covers(frame) else None

  def covers(self, frame: int) -> bool:
    return self.track.start <= frame < self.track.stop

  @functools.cached_property
  def frames(self) -> np.ndarray:
    """Numbers of the frames in which it is restored."""
    own = np.arange(self.track.start, self.track.stop)
    return own if self.chosen is None else own[self.chosen]

  @functools.cached_property
  def sizes(self) -> np.ndarray:
    """[n], the larger the nearer; see `occlusion.running_sizes`."""
    return occlusion.running_sizes(self.matrices)

  @functools.cached_property
  def scale(self) -> float:
    """Crop pixels per frame pixel: the median over time."""
    return float(np.median(align.scale(self.matrices)))

  @functools.cached_property
  def side(self) -> float:
    """The longer side of its box, in pixels of the frame: the median over time."""
    boxes = self.track.boxes
    return float(np.median((boxes[:, 2:] - boxes[:, :2]).max(1)))


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which faces to restore, by whole tracks but for "largest"; `choose` also skips hidden ones.

  Attributes:
    which: "largest" for at most one face a frame, or "all"; see `tracks.choose_frames`.
    min_face: smaller ones are left alone, by `FaceTrack.side`.
    min_score: tracks with a lower mean score are treated as false detections.
    numbers: restore exactly the tracks with these numbers, whatever `which` is; None: all may be.
    skip_sharp: leave faces alone whose sharpness is `sharpness.THRESHOLD` or more.
  """

  which: Literal["largest", "all"] = "largest"
  min_face: float = 0
  min_score: float = 0
  numbers: Collection[int] | None = None
  skip_sharp: bool = False


def choose(
  faces: Sequence[FaceTrack], choice: Choice, height: int, width: int, size: int
) -> list[FaceTrack]:
  """Decides in which frames faces are restored.

  While too much of a face is behind a nearer one to align it, it is left alone; see
  `occlusion.hidden_behind`.

  Args:
    faces: all of a clip; a face's number is its place here.
    choice: whom to restore.
    height: the frames', in pixels.
    width: likewise.
    size: the aligned crops' side, in pixels.

  Returns:
    The same faces in the same order, `chosen`, `skip_reason` and `is_face` set.

  Raises:
    ValueError: there is no face of a number.
  """
  unknown = sorted(set(choice.numbers or ()) - set(range(len(faces))))
  if unknown:
    known = f"its tracks are 0 to {len(faces) - 1}" if faces else "it has none"
    raise ValueError(f"no face track {unknown[0]}, {known}")
  faces = [dataclasses.replace(face, is_face=face.score >= choice.min_score) for face in faces]
  hidden = _hidden(faces, size)
  reasons = [_unwanted_reason(i, face, choice) for i, face in enumerate(faces)]
  usable = [~behind & (not reason) for behind, reason in zip(hidden, reasons, strict=True)]
  which = "all" if choice.numbers is not None else choice.which
  chosen = tracks.choose_frames([face.track for face in faces], which, height, width, usable)
  result = []
  for face, behind, mask, reason in zip(faces, hidden, chosen, reasons, strict=True):
    if not reason and not mask.all():
      reason = "hidden behind another" if (behind & ~mask).any() else "another is larger"
    if choice.skip_sharp and (face.sharpness or 0) >= sharpness.THRESHOLD and mask.any():
      mask, reason = np.zeros_like(mask), "sharp"
    result.append(dataclasses.replace(face, chosen=mask, skip_reason=reason))
  return result


def _unwanted_reason(number: int, face: FaceTrack, choice: Choice) -> str:
  """The reason why a face is restored in no frame, or ""."""
  if not face.is_face:
    return f"scores below {choice.min_score:g}"
  if choice.numbers is not None:
    return "" if number in choice.numbers else "not named"
  return f"smaller than {choice.min_face:g}" if face.side < choice.min_face else ""


def _hidden(faces: Sequence[FaceTrack], size: int) -> list[np.ndarray]:
  """In which of its frames [n] each face is hidden behind a nearer one."""
  hidden = []
  for i, face in enumerate(faces):
    behind = np.zeros(len(face.matrices), bool)
    for j, other in enumerate(faces):
      start = max(face.track.start, other.track.start)
      stop = min(face.track.stop, other.track.stop)
      if i == j or start >= stop or not other.is_face:
        continue
      own, its = (slice(start - f.track.start, stop - f.track.start) for f in (face, other))
      nearer = face.sizes[own] < other.sizes[its]
      points = face.track.landmarks[own]
      behind[own] |= nearer & occlusion.hidden_behind(points, other.matrices[its], size)
    hidden.append(occlusion.running_majority(behind))
  return hidden
