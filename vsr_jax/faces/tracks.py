"""Face tracks: detecting cuts, linking detections over time, smoothing landmarks.

A first pass over the clip keeps detections and thumbnails; they give the cuts and the tracks, one
per person and shot, whose landmarks `align.fit` takes.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
from scipy import ndimage, optimize

from vsr_jax.faces.detections import Detections

_THUMBNAIL = (32, 18)  # width, height
_NEIGHBOURS = 4  # frames on each side that a cut stands out from
# Least change of a cut, in grey levels. A face that fills the frame and jerks was seen to reach
# 4.3; of 500 pairs of unlike clips joined, one in twenty was below 26, the least 5.3.
_CUT = 4.5
_CUT_RATIO = 2.5  # to the median change nearby, or where there is none to _CUT
_FLASH = 3  # frames; a picture that is back after fewer than these was only interrupted

# A face continues a track if its size differs by less than _SIZE_RATIO and its distance from the
# expected position is below _REACH times its size, times the square root of the frames since seen.
_SIZE_RATIO = 2.0
_REACH = 0.6
_VELOCITY_FRAMES = 6  # over which a track's motion is measured

_FORBIDDEN = 1e6

SMOOTHED = 20  # frames on each side that a landmark's smoothing sees: 4 sigma


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
  """One person's face through one shot; n frames without a gap.

  Attributes:
    start: number of the first frame in the clip.
    landmarks: [n 5 2] float32, (x, y) in pixels, as in `Detections`; where the face was not found,
      interpolated linearly.
    boxes: [n 4] float32, left, top, right, bottom in pixels, interpolated likewise.
    found: [n] bool, whether the detector saw it.
    picks: [n] index among its frame's detections, or -1 where it was not found; None: unknown.
  """

  start: int
  landmarks: np.ndarray
  boxes: np.ndarray
  found: np.ndarray
  picks: np.ndarray | None = None

  @property
  def stop(self) -> int:
    """Number of the frame after the last."""
    return self.start + len(self.found)

  def part(self, start: int, stop: int) -> Track:
    """The track in the clip's frames [start, stop), which must be among its own."""
    own = slice(start - self.start, stop - self.start)
    picks = None if self.picks is None else self.picks[own]
    return Track(start, self.landmarks[own], self.boxes[own], self.found[own], picks)

  def pick(self, values: Sequence[np.ndarray]) -> np.ndarray:
    """Selects the values of its own detections.

    Args:
      values: for each frame of the clip, one value per detection.

    Returns:
      [k], one value per frame in which the face was found.

    Raises:
      ValueError: its detections are unknown.
    """
    if self.picks is None:
      raise ValueError("a track that was not made by `follow`")
    where = np.flatnonzero(self.found)
    return np.array([values[self.start + t][self.picks[t]] for t in where.tolist()])


def thumbnail(frame: np.ndarray) -> np.ndarray:
  """A frame's thumbnail for `cuts`: uint8 RGB [h w 3] of any size -> uint8 [18 32 3]."""
  return cv2.resize(frame, _THUMBNAIL, interpolation=cv2.INTER_AREA)


def cuts(thumbnails: Iterable[np.ndarray]) -> list[int]:
  """Finds hard cuts.

  At a cut the picture changes more than motion by a thumbnail's pixel explains, much more than just
  before and after, and it stays changed: fast motion goes on for longer, and after a flash the old
  picture is back. A dissolve is no cut.

  Args:
    thumbnails: all frames' in order, from `thumbnail`; few are held at a time.

  Returns:
    The numbers of the frames that begin a new shot; not the first.
  """
  change, candidates = [0.0], []
  for t, (before, after) in enumerate(_surroundings(thumbnails), start=1):
    change.append(_difference(after[0], before[-1]))
    if change[t] >= _CUT and (
      min(_difference(x, y) for x in before for y in after) >= change[t] / 2  # it stays changed
    ):
      candidates.append(t)
  found = []
  for t in candidates:
    near = [*change[max(1, t - _NEIGHBOURS) : t], *change[t + 1 : t + 1 + _NEIGHBOURS]]
    stands_out = change[t] >= _CUT_RATIO * (np.median(near) if near else _CUT)
    largest = change[t] >= max(change[max(1, t - 1) : t + 2])
    if stands_out and largest:
      found.append(t)
  return found


def _surroundings(thumbnails: Iterable[np.ndarray]) -> Iterator[tuple[list, list]]:
  """For each frame but the first: up to `_FLASH` frames before it, and up to as many from it on."""
  # None: no such frame
  held: collections.deque[np.ndarray | None] = collections.deque(
    [None] * 2 * _FLASH, maxlen=2 * _FLASH
  )
  for picture in itertools.chain(thumbnails, [None] * (_FLASH - 1)):
    held.append(picture)
    pictures = list(held)
    before, after = (
      [x for x in part if x is not None] for part in (pictures[:_FLASH], pictures[_FLASH:])
    )
    if before and after:
      yield before, after


def _difference(a: np.ndarray, b: np.ndarray) -> float:
  """Mean amount by which values leave the other's 3x3 range; the larger of both directions."""
  return max(float(np.mean(_outside(*pair))) for pair in ((a, b), (b, a)))


def _outside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  near = np.ones((3, 3), np.uint8)
  return cv2.subtract(a, cv2.dilate(b, near)) + cv2.subtract(cv2.erode(b, near), a)


def follow(
  detections: Iterable[Detections],
  cuts: Collection[int] = (),
  *,
  max_gap: int = 12,
  min_found: int = 3,
  min_eye_distance: float = 5.0,
  sigma: float = 5.0,
) -> list[Track]:
  """Makes tracks of the faces found in a clip.

  Each frame's faces are matched to the tracks by the Hungarian method: the cost is the share of the
  boxes that does not overlap plus the landmarks' mean distance in face sizes, both from where the
  track is expected at constant velocity. So two people who pass each other keep their tracks.

  Args:
    detections: each frame's, in order.
    cuts: numbers of frames that begin a shot; every track ends there.
    max_gap: for how many frames a face may be missed within a track.
    min_found: tracks with fewer detections are dropped as false, and so are those missed in more
      frames than found. In a shot shorter than that its length counts instead.
    min_eye_distance: in pixels. Faces whose eyes are closer together, because they are small or in
      profile, cannot be aligned well and count as not found. 5 as in the released code.
    sigma: frames, the width of the Gaussian over time that smooths landmarks; 0: no smoothing.
      At a track's ends it sees the track mirrored, as in the released code.

  Returns:
    Tracks, in order of their first frame.
  """
  ended: list[_Linked] = []
  active: list[_Linked] = []
  begin = frame = 0
  for frame, faces in enumerate(detections):
    if frame in cuts:
      ended += _found_often_enough(active, frame - begin, min_found)
      active, begin = [], frame
    over = [track for track in active if frame - track.frames[-1] > max_gap + 1]
    # A track that ends within a shot had time enough to be found again.
    ended += _found_often_enough(over, min_found, min_found)
    active = [track for track in active if track not in over]
    wide = _wide_enough(faces, min_eye_distance)
    taken = _match(active, faces[wide], frame)
    for i, pick in enumerate(wide):
      seen = faces.boxes[pick], faces.landmarks[pick], pick
      if i in taken:
        taken[i].add(frame, *seen)
      else:
        active.append(_Linked([frame], *([x] for x in seen)))
  ended += _found_often_enough(active, frame + 1 - begin, min_found)
  ended.sort(key=lambda track: track.frames[0])
  return [_fill(track, sigma) for track in ended]


@dataclasses.dataclass(eq=False)
class _Linked:
  """A track while it grows: the frames where it was found, and what was found."""

  frames: list[int]
  boxes: list[np.ndarray]
  landmarks: list[np.ndarray]
  picks: list[int]

  def add(self, frame: int, box: np.ndarray, landmarks: np.ndarray, pick: int) -> None:
    self.frames.append(frame)
    self.boxes.append(box)
    self.landmarks.append(landmarks)
    self.picks.append(pick)

  def motion(self, frame: int) -> np.ndarray:
    """Expected displacement [2], in pixels, since the face was last seen, at constant velocity."""
    back = min(len(self.frames), _VELOCITY_FRAMES)
    time = self.frames[-1] - self.frames[-back]
    if time == 0:
      return np.zeros(2)
    moved = (self.landmarks[-1] - self.landmarks[-back]).mean(0)
    return moved * ((frame - self.frames[-1]) / time)


def _found_often_enough(tracks: list[_Linked], length: int, min_found: int) -> list[_Linked]:
  """The tracks detected in at least `min_found` (or `length`) frames, and in half of their span."""
  least = min(min_found, length)
  return [
    track
    for track in tracks
    if len(track.frames) >= max(least, (track.frames[-1] + 1 - track.frames[0]) / 2)
  ]


def _wide_enough(faces: Detections, distance: float) -> np.ndarray:
  """Indices of the faces whose eyes are at least `distance` pixels apart."""
  eyes = faces.landmarks[:, 1] - faces.landmarks[:, 0]
  return np.flatnonzero(np.hypot(eyes[:, 0], eyes[:, 1]) >= distance)


def _match(tracks: list[_Linked], faces: Detections, frame: int) -> dict[int, _Linked]:
  """Which of a frame's faces continues which track."""
  if not tracks or not len(faces.scores):
    return {}
  motion = np.stack([track.motion(frame) for track in tracks])
  boxes = np.stack([track.boxes[-1] for track in tracks]) + np.tile(motion, 2)
  landmarks = np.stack([track.landmarks[-1] for track in tracks]) + motion[:, None]
  size, new_size = _size(boxes), _size(faces.boxes)
  distance = np.linalg.norm(landmarks[:, None] - faces.landmarks, axis=-1).mean(-1) / size[:, None]
  unseen = np.array([frame - track.frames[-1] for track in tracks])
  ratio = new_size / size[:, None]
  possible = (distance < _REACH * np.sqrt(unseen)[:, None]) & (
    np.maximum(ratio, 1 / ratio) < _SIZE_RATIO
  )
  cost = np.where(possible, 1 - _overlap(boxes, faces.boxes) + distance, _FORBIDDEN)
  pairs = zip(*optimize.linear_sum_assignment(cost), strict=True)
  return {int(face): tracks[i] for i, face in pairs if possible[i, face]}


def _size(boxes: np.ndarray) -> np.ndarray:
  """Side of the square of the same area, at least a pixel: [n 4] -> [n]."""
  return np.sqrt(np.maximum((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1), 1))


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Intersection over union of each of [m 4] and each of [n 4] -> [m n]."""
  low = np.maximum(a[:, None, :2], b[:, :2])
  high = np.minimum(a[:, None, 2:], b[:, 2:])
  shared = (high - low).clip(0).prod(-1)
  return shared / (np.square(_size(a))[:, None] + np.square(_size(b)) - shared)


def _fill(track: _Linked, sigma: float) -> Track:
  """A finished track without gaps, smoothed."""
  start, stop = track.frames[0], track.frames[-1] + 1
  frames = np.arange(start, stop)
  seen = np.concatenate([np.stack(track.boxes), np.reshape(track.landmarks, (-1, 10))], axis=1)
  values = np.stack([np.interp(frames, track.frames, column) for column in seen.T], axis=1)
  landmarks = values[:, 4:]
  if sigma > 0:
    landmarks = ndimage.gaussian_filter1d(landmarks, sigma, axis=0)
  picks = np.full(len(frames), -1)
  picks[np.array(track.frames) - start] = track.picks
  landmarks = landmarks.reshape(-1, 5, 2).astype(np.float32)
  return Track(start, landmarks, values[:, :4].astype(np.float32), picks >= 0, picks)


def choose_parts(
  tracks: Sequence[Track], faces: Literal["largest", "all"], height: int, width: int
) -> list[Track]:
  """The parts of tracks that `choose_frames` picks, in order of their first frame."""
  if faces == "all":
    return list(tracks)
  chosen = []
  for track, mask in zip(tracks, choose_frames(tracks, faces, height, width), strict=True):
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    chosen += [track.part(*span) for span in (edges.reshape(-1, 2) + track.start).tolist()]
  return sorted(chosen, key=lambda track: track.start)


def choose_frames(
  tracks: Sequence[Track],
  faces: Literal["largest", "all"],
  height: int,
  width: int,
  usable: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
  """Picks the tracks to restore, and in which of their frames.

  Args:
    tracks: from `follow`.
    faces: "all"; or "largest", at most one face per frame: tracks are ranked by their area summed
      over frames, and each frame takes the first-ranked one that is there. (The released code takes
      each frame's largest face, so that it may switch between people.)
    height: the frame's, in pixels; what is outside does not count.
    width: likewise.
    usable: [n] bool of each track, the frames that may be picked; None: all.

  Returns:
    [n] bool of each track.
  """
  if usable is None:
    usable = [np.ones(len(track.found), bool) for track in tracks]
  if faces == "all":
    return list(usable)
  if faces != "largest":
    raise ValueError(f"faces {faces!r} is neither 'largest' nor 'all'")
  limit = np.array([width, height, width, height], np.float32)
  sizes = [_size(np.clip(track.boxes, 0, limit)) for track in tracks]
  area = [np.square(size[mask]).sum() for size, mask in zip(sizes, usable, strict=True)]
  free = np.ones(max((track.stop for track in tracks), default=0), bool)
  chosen = list(usable)
  for i in np.argsort(area, kind="stable")[::-1]:
    own = slice(tracks[i].start, tracks[i].stop)
    chosen[i] = usable[i] & free[own]
    free[own] &= ~chosen[i]
  return chosen
