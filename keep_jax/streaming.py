"""Restoring streams of aligned faces with KEEP, at constant memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from keep_jax.bidirectional import initial_carried, restore_observed
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
from vsr_jax.frames import Frame, stream_frames
from vsr_jax.programs import CompiledByShape
from vsr_jax.recursion import LONGEST_WINDOW as LONGEST_WINDOW
from vsr_jax.recursion import PendingFrame, Recursion, TrackState
from vsr_jax.runtime import compiler_options
from vsr_jax.trees import join, split

WINDOW = 20  # frames that the gain network sees at a time, as released
LOOK_AHEAD = 4  # most frames after a frame that its gain sees, beyond the first window

MODES = ("stream", "as_released", "bidirectional")
Mode = Literal["stream", "as_released", "bidirectional"]


class Restorer(Recursion):
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
    super().__init__(
      window,
      look_ahead if mode == "stream" else None,
      attend_first_frame=model.arch.attend_first_frame,
      causal=model.arch.causal,
    )
    self.model = model
    self.mode = mode
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
    return stream_frames(self.stream_one, frames)

  def initial_state(self) -> State:
    return initial_state(self.model, 1)

  def observe(self, images: np.ndarray) -> tuple[Sequence[Observation], Sequence[Features]]:
    return self._observe(self._params, images)

  def find_flows(
    self, features: Sequence[Features], before: Sequence[Features]
  ) -> Sequence[jax.Array]:
    return self._flow(self._params, features, before)

  def find_gains(self, latents: list[jax.Array]) -> Sequence[jax.Array]:
    return self._gains(self._params, latents)

  def take_step(
    self, states: Sequence[State], inputs: Sequence[tuple[Any, jax.Array, jax.Array]]
  ) -> tuple[Sequence[State], Sequence[jax.Array]]:
    return self._step(self._params, states, inputs)

  def finish(self, track: TrackState, group: list[PendingFrame]) -> None:
    """Computes the gains of a group of a track's frames, or restores it (mode "bidirectional")."""
    if self.mode != "bidirectional":
      super().finish(track, group)
      return
    features = [(face.features,) for face in group]
    # The last frame's flow is to itself: nothing is predicted there backwards.
    pairs = zip(features, [*features[1:], features[-1]], strict=True)
    to_next = [self._flow(self._params, *pair)[0] for pair in pairs]
    flows = [face.flow for face in group], to_next
    carried = initial_carried(self.model, 1) if track.carried is None else track.carried
    observations = [face.observation for face in group]
    first_latent = track.first_latent if self.attend_first_frame else None
    track.carried, images = self._chunk(self._params, carried, first_latent, observations, flows)
    if track.first_latent is None:
      track.first_latent = observations[0].latent
    for face, image in zip(group, images, strict=True):
      face.image = image


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
