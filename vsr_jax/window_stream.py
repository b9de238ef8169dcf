"""Streams of windows of frames: a frame is encoded once, for all the windows that contain it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vsr_jax.frames import as_frames_of_one_size

Encode = Callable[[np.ndarray], tuple[Any, Any]]  # uint8 [b h w 3] -> its features, in two parts
Restore = Callable[[tuple[Any, ...], tuple[Any, ...]], jax.Array]  # -> uint8 [b sh sw 3]


def groups_held(radius: int, group_size: int = 1) -> tuple[int, int]:
  """How many groups of frames the windows of one group reach into.

  Args:
    radius: frames of a window before, and after, its centre frame.
    group_size: frames of a group, which are encoded together.

  Returns:
    The number of groups, and how many of them, the latest, can hold a centre frame.
  """
  # A window reaches 2 * radius frames back from its last frame: into `before` earlier groups, of
  # which the first `past` hold no centre frame.
  before = -(-2 * radius // group_size)
  past = (before * group_size - radius) // group_size
  return before + 1, before + 1 - past


def stream_windows(
  frames: Any, encode: Encode, restore: Restore, *, radius: int, group_size: int = 1
) -> Iterator[np.ndarray]:
  """Restores every frame from its window; the stream's ends are continued by replication.

  Args:
    frames: images of one size, see `frames.as_frames`.
    encode: computes the features of a group of frames; a second tree holds those that are needed of
      windows' centre frames only.
    restore: takes the features of the groups held, oldest first, and the second trees of the latest
      of them (see `groups_held`), and restores the windows whose last frames are the last group's.
    radius: frames of a window before, and after, its centre frame.
    group_size: frames of a group.

  Yields:
    uint8 RGB [sh sw 3], one a frame. The next group is computed while one is yielded.

  Raises:
    ValueError: the frames are of another form or of several sizes.
  """
  frames = as_frames_of_one_size(frames)
  groups, centres = groups_held(radius, group_size)
  held = collections.deque(maxlen=groups)
  held_centres = collections.deque(maxlen=centres)
  last: list[np.ndarray] = []
  pending: tuple[jax.Array, int] | None = None
  padded = _replicate_ends(frames, (groups - 1) * group_size - radius, radius)
  for group, count in _groups(padded, group_size):
    # Padding repeats the same array: its features are those of the group before.
    if not last or any(a is not b for a, b in zip(group, last, strict=True)):
      features = of_centre = None
      if len(held) == groups:  # freed before the next features are computed
        held.popleft()
        held_centres.popleft()
      features, of_centre = encode(np.stack(group))
    held.append(features)
    held_centres.append(of_centre)
    last = group
    if len(held) == groups:
      images = restore(tuple(held), tuple(held_centres))
      if pending is not None:
        yield from _to_host(*pending)
      pending = images, count
  if pending is not None:
    yield from _to_host(*pending)


def _replicate_ends(frames: Iterable[np.ndarray], before: int, after: int) -> Iterator[np.ndarray]:
  """The frames, with copies of the first before and of the last after them, if there is any."""
  frame = None
  for i, frame in enumerate(map(np.array, frames)):  # copies: a caller may fill one buffer anew
    if i == 0:
      yield from [frame] * before
    yield frame
  if frame is not None:
    yield from [frame] * after


def _groups(frames: Iterator[np.ndarray], size: int) -> Iterator[tuple[list[np.ndarray], int]]:
  """Groups of `size` frames, the last one padded with its last frame; and their true lengths."""
  group: list[np.ndarray] = []
  for frame in frames:
    group.append(frame)
    if len(group) == size:
      yield group, size
      group = []
  if group:
    yield group + [group[-1]] * (size - len(group)), len(group)


def _to_host(images: jax.Array, count: int) -> Iterator[np.ndarray]:
  yield from np.asarray(images)[:count]
