"""Recursions over tracks in streams of frames: observed, filtered by gains, restored in order.

What runs over a clip is apart from what is computed: here is the order, in which a frame of a track
is observed, related to the frame before by flow, given its gain from a window of frames, and
restored by a step that carries a state. The programs are a subclass's.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from vsr_jax.frames import as_frames, as_frames_of_one_size

T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)
Tree = Any  # of arrays with a leading axis [1]

LONGEST_WINDOW = 1000  # a window's frames and observations are held in memory


class Observed(Protocol):
  """What is computed of one frame of a track alone."""

  @property
  def latent(self) -> jax.Array:
    """Of which gains are computed, [1 ...]."""


@dataclasses.dataclass(eq=False)
class PendingFrame:
  """A track's frame that waits for its step of the recursion, with what is computed so far."""

  observation: Observed
  features: Tree  # for the flow
  flow: jax.Array  # to the frame before; of a track's first frame to itself
  gain: jax.Array | None = None
  begins: bool = False  # whether the recursion restarts here, from `initial_state`
  image: jax.Array | None = None  # where a group is restored whole, without steps

  @property
  def is_ready(self) -> bool:
    return self.gain is not None or self.image is not None


@dataclasses.dataclass(eq=False)
class TrackState:
  """The state of one track while it is restored.

  Attributes:
    state: the recursion's state after the last restored frame.
    latest: latents of the latest frames that have gains; without the first frame's if that is seen
      anyway.
    features: the flow network's features of the last frame taken; None before the first.
    first_latent: the first frame's latent; None until its gain is computed.
    waiting: frames taken that have no gains yet.
    carried: what is carried between groups that are restored whole, instead of `state`.
  """

  state: Tree
  latest: collections.deque[jax.Array]
  features: Tree = None
  first_latent: jax.Array | None = None
  waiting: list[PendingFrame] = dataclasses.field(default_factory=list)
  carried: Tree = None


class Recursion(abc.ABC):
  """Restores tracks as streams, each with a state of its own; a subclass has the programs.

  The images of one frame's tracks are batched in powers of two: few batch sizes are compiled, none
  is padded.

  Attributes:
    window: frames that a gain sees.
    look_ahead: most frames after a frame that its gain sees. Gains are computed for `look_ahead` +
      1 frames at a time, so that each sees 0 to `look_ahead` later ones. In the first window every
      gain sees the whole window. None: the recursion begins anew with every `window` frames.
    attend_first_frame: whether every gain sees the track's first frame.
    causal: whether no gain sees later frames: every frame is restored at once.
  """

  def __init__(
    self, window: int, look_ahead: int | None, *, attend_first_frame: bool, causal: bool
  ):
    if not 2 <= window <= LONGEST_WINDOW:
      raise ValueError(f"window {window}: must be 2 to {LONGEST_WINDOW}")
    if look_ahead is not None and not 0 <= look_ahead < window - 1:
      raise ValueError(f"look_ahead {look_ahead}: must be below window - 1 = {window - 1}")
    self.window = window
    self.look_ahead = look_ahead
    self.attend_first_frame = attend_first_frame
    self.causal = causal

  @abc.abstractmethod
  def initial_state(self) -> Tree:
    """The state before a track's first frame."""

  @abc.abstractmethod
  def observe(self, images: np.ndarray) -> tuple[Sequence[Observed], Sequence[Tree]]:
    """uint8 [b h w 3] -> b observations, and b features for the flow."""

  @abc.abstractmethod
  def find_flows(self, features: Sequence[Tree], before: Sequence[Tree]) -> Sequence[jax.Array]:
    """Flow from b frames to the frames before them, by their features; [1 h w 2] each."""

  @abc.abstractmethod
  def find_gains(self, latents: list[jax.Array]) -> Sequence[jax.Array]:
    """The gain of each frame of a window, by their latents."""

  @abc.abstractmethod
  def take_step(
    self, states: Sequence[Tree], inputs: Sequence[tuple[Observed, jax.Array, jax.Array]]
  ) -> tuple[Sequence[Tree], Sequence[jax.Array]]:
    """One step of b tracks: states and (observation, gain, flow) -> states and uint8 [h w 3]."""

  def stream_one(self, frames: Any) -> Iterator[np.ndarray]:
    """Restores a clip that is one track; `frames` as `frames.as_frames` takes them."""
    for faces in self.stream_tracks({0: frame} for frame in as_frames(frames)):
      yield faces[0]

  def stream_tracks(
    self, frames: Iterable[Mapping[Name, np.ndarray]]
  ) -> Iterator[dict[Name, np.ndarray]]:
    """Restores the tracks of every frame of a clip.

    Args:
      frames: for each frame its images by track, see `frames.as_frame`, of one size. A track ends
        with the first frame without it; the same name later is a new one.

    Yields:
      For each frame its restored images by track, uint8 RGB [h w 3]; while these are handed out,
      those of the next frame are computed (on CPU only where `keep_freed_memory` of
      `vsr_jax.runtime` is not in force).
    """
    tracks: dict[Name, TrackState] = {}
    pending: collections.deque[dict[Name, tuple[TrackState, PendingFrame]]] = collections.deque()
    computed: dict[Name, jax.Array] | None = None

    def ready():
      nonlocal computed
      while pending and all(frame.is_ready for _, frame in pending[0].values()):
        last, computed = computed, self._advance(pending.popleft())
        if last is not None:
          yield jax.device_get(last)

    for images in frames:
      for name in tracks.keys() - images.keys():
        self._finish_group(tracks.pop(name))
      for name in images.keys() - tracks.keys():
        latest = collections.deque(maxlen=self.window - self.attend_first_frame)
        tracks[name] = TrackState(self.initial_state(), latest)
      checked = zip(images, as_frames_of_one_size(images.values()), strict=True)
      pending.append(self._take({name: (tracks[name], image) for name, image in checked}))
      yield from ready()
    for track in tracks.values():
      self._finish_group(track)
    yield from ready()
    if computed is not None:
      yield jax.device_get(computed)

  def _take(
    self, images: Mapping[Name, tuple[TrackState, np.ndarray]]
  ) -> dict[Name, tuple[TrackState, PendingFrame]]:
    """Observes the next frame's tracks, and computes gains for the groups that are complete."""
    taken = {}
    for part in _batches(list(images.items())):
      names, pairs = zip(*part, strict=True)
      tracks, arrays = zip(*pairs, strict=True)
      observations, features = self.observe(np.stack(arrays))
      before = tuple(
        own if track.features is None else track.features
        for track, own in zip(tracks, features, strict=True)
      )
      flows = self.find_flows(features, before)
      for i, (name, track) in enumerate(zip(names, tracks, strict=True)):
        track.features = features[i]
        frame = PendingFrame(observations[i], features[i], flows[i])
        track.waiting.append(frame)
        taken[name] = track, frame
        if len(track.waiting) == self._group_size(track):
          self._finish_group(track)
    return taken

  def _group_size(self, track: TrackState) -> int:
    """How many frames of a track get gains, or are restored, at once."""
    if self.look_ahead is None:
      return self.window
    if self.causal:
      return 1  # no gain would see a later frame
    return self.window if track.first_latent is None else self.look_ahead + 1

  def _finish_group(self, track: TrackState) -> None:
    """Makes a track's waiting frames ready to be restored."""
    group, track.waiting = track.waiting, []
    if group:
      self.finish(track, group)

  def finish(self, track: TrackState, group: list[PendingFrame]) -> None:
    """Computes the gains of a group of a track's frames."""
    latents = [frame.observation.latent for frame in group]
    if self.look_ahead is None:
      group[0].begins = True
      # As KEEP's released code has it, a chunk of one frame is doubled.
      gains = self.find_gains(2 * latents if len(latents) == 1 else latents)
    else:
      if track.first_latent is None:
        track.first_latent = latents[0]
        latents = latents[1:] if self.attend_first_frame else latents
      track.latest.extend(latents)
      window = [track.first_latent, *track.latest] if self.attend_first_frame else [*track.latest]
      seen = len(window)
      if self.causal:  # what comes after makes no difference: one program for all
        window += [window[-1]] * (self.window - seen)
      gains = self.find_gains(window)[seen - len(group) : seen]
    for frame, gain in zip(group, gains, strict=False):
      frame.gain = gain

  def _advance(
    self, images: Mapping[Name, tuple[TrackState, PendingFrame]]
  ) -> dict[Name, jax.Array]:
    """Restores the tracks of one frame, all of which are ready."""
    restored = {name: x.image for name, (_, x) in images.items() if x.image is not None}
    for part in _batches([item for item in images.items() if item[0] not in restored]):
      names, pairs = zip(*part, strict=True)
      tracks, pending = zip(*pairs, strict=True)
      states = tuple(
        self.initial_state() if frame.begins else track.state
        for track, frame in zip(tracks, pending, strict=True)
      )
      inputs = tuple((frame.observation, frame.gain, frame.flow) for frame in pending)
      states, arrays = self.take_step(states, inputs)
      for track, state in zip(tracks, states, strict=True):
        track.state = state
      restored |= zip(names, arrays, strict=True)
    return restored


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
  """Cuts a sequence into parts of powers of two, the largest first."""
  start = 0
  while start < len(items):
    size = 1 << ((len(items) - start).bit_length() - 1)
    yield items[start : start + size]
    start += size
