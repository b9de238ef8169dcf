"""Restoring streams of aligned faces with KEEP, at constant memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from keep_jax.bidirectional import Carried, initial_carried, restore_observed
from keep_jax.model import (
  KEEP,
  Observation,
  Params,
  State,
  calculate_gains,
  flow_between,
  flow_features,
  initial_state,
  observe,
  step,
  to_uint8,
)
from keep_jax.weights import load as load
from vsr_jax.flow.estimators import Features
from vsr_jax.frames import Frame, as_frames, as_frames_of_one_size, stream_frames
from vsr_jax.programs import CompiledByShape
from vsr_jax.runtime import compiler_options
from vsr_jax.trees import join, split

WINDOW = 20  # frames that the gain network sees at a time, as released
LONGEST_WINDOW = 1000  # a window's frames and observations are held in memory
LOOK_AHEAD = 4  # most frames after a frame that its gain sees, beyond the first window

MODES = ("stream", "as_released", "bidirectional")
Mode = Literal["stream", "as_released", "bidirectional"]

T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(eq=False)
class _PendingFace:
  """A face in a frame that waits for its step of the recursion, with what is computed so far."""

  observation: Observation
  features: Features  # for the flow
  flow: jax.Array  # to the frame before; of a track's first frame to itself
  gain: jax.Array | None = None
  begins: bool = False  # whether the recursion restarts here, from `initial_state`
  image: jax.Array | None = None  # in mode "bidirectional", whose chunks are restored whole

  @property
  def is_ready(self) -> bool:
    return self.gain is not None or self.image is not None


@dataclasses.dataclass(eq=False)
class _TrackState:
  """The state of one face track while it is restored.

  Attributes:
    state: the recursion's state after the last restored frame.
    features: the flow network's features of the last frame taken; None before the first.
    first_latent: the first frame's latent; None until its gain is computed.
    latest: latents of the latest frames that have gains; without the first frame's if the model
      attends to it anyway.
    waiting: frames taken that have no gains yet.
    carried: state of mode "bidirectional", carried from chunk to chunk instead of `state`.
  """

  state: State
  latest: collections.deque[jax.Array]
  features: Features | None = None
  first_latent: jax.Array | None = None
  waiting: list[_PendingFace] = dataclasses.field(default_factory=list)
  carried: Carried | None = None


class Restorer:
  """Restores clips of aligned faces as streams.

  Four programs are compiled: the observations and flow features of frames, the flow, the gains of a
  window, and the recursion's step (mode "bidirectional": the first two, and a chunk's restoration).
  Faces in one frame are batched in powers of two: few batch sizes are compiled, none is padded.

  Attributes:
    model: the model.
    mode: "stream" carries the state over the whole clip; "as_released" begins anew with every
      chunk of `window` frames, as the released code does; "bidirectional" also uses the frames
      after a frame, in chunks of `window` (experimental, see `bidirectional`).
    window: frames that a gain sees.
    look_ahead: in mode "stream", most frames after a frame that its gain sees. Gains are computed
      for `look_ahead` + 1 frames at a time, so that each sees 0 to `look_ahead` later ones. In the
      first window every gain sees the whole window. A causal model restores every frame at once.
    watch: told of every face that is restored its track, gain [1 h' w' 1] and flow [1 h w 2] to the
      frame before, in the order of the results; not in mode "bidirectional". None: nobody is.
  """

  def __init__(
    self,
    model: KEEP,
    params: Params,
    mode: Mode = "stream",
    window: int = WINDOW,
    look_ahead: int = LOOK_AHEAD,
    fidelity: float = 1.0,  # weight of CFT, see `model.step`
  ):
    if mode not in MODES:
      raise ValueError(f"mode {mode!r}: must be one of {', '.join(MODES)}")
    if not 2 <= window <= LONGEST_WINDOW:
      raise ValueError(f"window {window}: must be 2 to {LONGEST_WINDOW}")
    if mode == "stream" and not 0 <= look_ahead < window - 1:
      raise ValueError(f"look_ahead {look_ahead}: must be below window - 1 = {window - 1}")
    self.model = model
    self.mode = mode
    self.window = window
    self.look_ahead = look_ahead
    self.watch: Callable[[Any, jax.Array, jax.Array], object] | None = None
    self._params = params

    def program(
      name: Callable[..., str], function: Callable, *fixed: Any, **options: Any
    ) -> CompiledByShape:
      function = functools.partial(function, model, *fixed)
      return CompiledByShape(
        jax.jit(function, compiler_options=compiler_options(), **options), name
      )

    self._observe = program(
      lambda x: f"for {_count_faces(x)} of {x.shape[2]}x{x.shape[1]}", _observe_faces
    )
    self._flow = program(lambda x, _: f"the flow of {_count_faces(x)}", _flows)
    self._gains = program(lambda x: f"the gains of {len(x)} frames", _gains_of_window)
    self._step = program(
      lambda x, _: f"the restoration of {_count_faces(x)}",
      _restore_faces,
      fidelity,
      donate_argnums=1,
    )
    self._chunk = program(
      lambda *x: f"the restoration of {len(x[2])} frames", restore_observed, fidelity
    )

  @overload
  def stream(self, frames: Iterable[Frame]) -> Iterator[Frame]: ...
  @overload
  def stream(self, frames: Any) -> Iterator[np.ndarray]: ...
  def stream(self, frames: Any) -> Iterator[np.ndarray] | Iterator[Frame]:
    """Restores every frame of a clip with one face.

    Args:
      frames: uint8 or float in [0, 1], RGB [h w 3], resized bilinearly if they are not of the
        model's size (see `as_frames`); or `Frame`s, whose times are kept.

    Returns:
      uint8 RGB [size size 3], one a frame, or `Frame`s of such images.

    Raises:
      ValueError: from iteration: a frame is of another form.
    """
    return stream_frames(self._stream_images, frames)

  def _stream_images(self, frames: Any) -> Iterator[np.ndarray]:
    for faces in self.stream_tracks({0: frame} for frame in as_frames(frames)):
      yield faces[0]

  def stream_tracks(
    self, frames: Iterable[Mapping[Name, np.ndarray]]
  ) -> Iterator[dict[Name, np.ndarray]]:
    """Restores the faces of every frame of a clip; each track has a state of its own.

    Args:
      frames: for each frame its faces by track, as `stream` takes frames, of one size. A track ends
        with the first frame without it; the same name later is a new one.

    Yields:
      For each frame its restored faces by track, uint8 RGB [size size 3]; while these are handed
      out, those of the next frame are computed (on CPU only where `keep_freed_memory` of
      `vsr_jax.runtime` is not in force).
    """
    tracks: dict[Name, _TrackState] = {}
    pending: collections.deque[dict[Name, tuple[_TrackState, _PendingFace]]] = collections.deque()
    computed: dict[Name, jax.Array] | None = None

    def ready():
      nonlocal computed
      while pending and all(face.is_ready for _, face in pending[0].values()):
        last, computed = computed, self._advance(pending.popleft())
        if last is not None:
          yield jax.device_get(last)

    for faces in frames:
      for name in tracks.keys() - faces.keys():
        self._finish_group(tracks.pop(name))
      for name in faces.keys() - tracks.keys():
        latest = collections.deque(maxlen=self.window - self.model.arch.attend_first_frame)
        tracks[name] = _TrackState(initial_state(self.model, 1), latest)
      checked = zip(faces, as_frames_of_one_size(faces.values()), strict=True)
      pending.append(self._take({name: (tracks[name], face) for name, face in checked}))
      yield from ready()
    for track in tracks.values():
      self._finish_group(track)
    yield from ready()
    if computed is not None:
      yield jax.device_get(computed)

  def _take(
    self, faces: Mapping[Name, tuple[_TrackState, np.ndarray]]
  ) -> dict[Name, tuple[_TrackState, _PendingFace]]:
    """Encodes the faces of the next frame, and computes gains for the groups that are complete."""
    taken = {}
    for part in _batches(list(faces.items())):
      names, pairs = zip(*part, strict=True)
      tracks, images = zip(*pairs, strict=True)
      observations, features = self._observe(self._params, np.stack(images))
      before = tuple(
        own if track.features is None else track.features
        for track, own in zip(tracks, features, strict=True)
      )
      flows = self._flow(self._params, features, before)
      for i, (name, track) in enumerate(zip(names, tracks, strict=True)):
        track.features = features[i]
        face = _PendingFace(observations[i], features[i], flows[i])
        track.waiting.append(face)
        taken[name] = track, face
        if len(track.waiting) == self._group_size(track):
          self._finish_group(track)
    return taken

  def _group_size(self, track: _TrackState) -> int:
    """How many frames of a track get gains at once (mode "bidirectional": are restored)."""
    if self.mode == "stream" and self.model.arch.causal:
      return 1  # no gain would see a later frame
    whole = self.mode != "stream" or track.first_latent is None
    return self.window if whole else self.look_ahead + 1

  def _finish_group(self, track: _TrackState) -> None:
    """Computes the gains of a track's waiting frames, or restores them (mode "bidirectional")."""
    group, track.waiting = track.waiting, []
    if group and self.mode == "bidirectional":
      self._restore_chunk(track, group)
    elif group:
      self._calculate_gains(track, group)

  def _restore_chunk(self, track: _TrackState, group: list[_PendingFace]) -> None:
    features = [(face.features,) for face in group]
    # The last frame's flow is to itself: nothing is predicted there backwards.
    pairs = zip(features, [*features[1:], features[-1]], strict=True)
    to_next = [self._flow(self._params, *pair)[0] for pair in pairs]
    flows = [face.flow for face in group], to_next
    carried = initial_carried(self.model, 1) if track.carried is None else track.carried
    observations = [face.observation for face in group]
    first_latent = track.first_latent if self.model.arch.attend_first_frame else None
    track.carried, images = self._chunk(self._params, carried, first_latent, observations, flows)
    if track.first_latent is None:
      track.first_latent = observations[0].latent
    for face, image in zip(group, images, strict=True):
      face.image = image

  def _calculate_gains(self, track: _TrackState, group: list[_PendingFace]) -> None:
    latents = [face.observation.latent for face in group]
    if self.mode == "as_released":
      group[0].begins = True
      # As in the released code a chunk of one frame is doubled.
      gains = self._gains(self._params, 2 * latents if len(latents) == 1 else latents)
    else:
      attend_first_frame = self.model.arch.attend_first_frame
      if track.first_latent is None:
        track.first_latent = latents[0]
        latents = latents[1:] if attend_first_frame else latents
      track.latest.extend(latents)
      window = [track.first_latent, *track.latest] if attend_first_frame else list(track.latest)
      seen = len(window)
      if self.model.arch.causal:  # what comes after makes no difference: one program for all
        window += [window[-1]] * (self.window - seen)
      gains = self._gains(self._params, window)[seen - len(group) : seen]
    for face, gain in zip(group, gains, strict=False):
      face.gain = gain

  def _advance(
    self, faces: Mapping[Name, tuple[_TrackState, _PendingFace]]
  ) -> dict[Name, jax.Array]:
    """Restores the faces of one frame, uint8 [size size 3] each."""
    if self.mode == "bidirectional":
      # A frame is advanced only when all its faces are ready, which here means restored.
      return {name: face.image for name, (_, face) in faces.items() if face.image is not None}
    restored = {}
    for part in _batches(list(faces.items())):
      names, pairs = zip(*part, strict=True)
      tracks, pending = zip(*pairs, strict=True)
      states = tuple(
        initial_state(self.model, 1) if face.begins else track.state
        for track, face in zip(tracks, pending, strict=True)
      )
      inputs = tuple((face.observation, face.gain, face.flow) for face in pending)
      if self.watch is not None:
        for name, (_, gain, flow) in zip(names, inputs, strict=True):
          self.watch(name, gain, flow)
      states, images = self._step(self._params, states, inputs)
      for track, state in zip(tracks, states, strict=True):
        track.state = state
      restored |= zip(names, images, strict=True)
    return restored


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
  """Cuts a sequence into parts of powers of two, the largest first."""
  start = 0
  while start < len(items):
    size = 1 << ((len(items) - start).bit_length() - 1)
    yield items[start : start + size]
    start += size


def _count_faces(items: Sequence[Any]) -> str:
  return f"{len(items)} face{'s' * (len(items) != 1)}"


def _observe_faces(
  model: KEEP, params: Params, frames: jax.Array
) -> tuple[tuple[Observation, ...], tuple[Features, ...]]:
  """uint8 [b h w 3] -> b observations and b features of the flow network, leading axes [1]."""
  x = frames.astype(jnp.float32) / 127.5 - 1
  size = model.arch.image_size
  if x.shape[1:3] != (size, size):
    x = jax.image.resize(x, (len(x), size, size, 3), "linear", antialias=False)
  observation, features = observe(model, params, x), flow_features(model, params, x)
  return split(observation, len(x)), split(features, len(x))


def _flows(
  model: KEEP, params: Params, features: Sequence[Features], before: Sequence[Features]
) -> tuple[jax.Array, ...]:
  return split(flow_between(model, params, join(features), join(before)), len(features))


def _gains_of_window(
  model: KEEP, params: Params, latents: list[jax.Array]
) -> tuple[jax.Array, ...]:
  gains = calculate_gains(model, params, jnp.stack(latents, axis=1))
  return tuple(gains[:, i] for i in range(len(latents)))


def _restore_faces(
  model: KEEP,
  fidelity: float,
  params: Params,
  states: Sequence[State],
  inputs: Sequence[tuple[Observation, jax.Array, jax.Array]],
) -> tuple[tuple[State, ...], tuple[jax.Array, ...]]:
  """One step of b faces: their states, and their images as uint8 [h w 3]."""
  state, restored = step(model, params, join(states), *join(inputs), fidelity)
  return split(state, len(states)), tuple(to_uint8(restored.image))
