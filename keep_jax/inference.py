"""Restoring a stream of aligned faces with KEEP, at constant memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from keep_jax.model import (
  KEEP,
  Architecture,
  Observation,
  Params,
  calculate_gains,
  flow_between,
  flow_features,
  init_params,
  initial_state,
  observe,
  step,
)
from vsr_jax.errors import UserError
from vsr_jax.inference import compiler_options, enable_compilation_cache
from vsr_jax.memory import keep_freed_memory, release_freed_memory
from vsr_jax.train.checkpoint import read_meta, restore_params

WINDOW = 20  # frames that gains are blended over, as released
LOOK_AHEAD = 4  # frames after a frame that its gain sees at most, once a clip exceeds the window

Mode = Literal["stream", "as_released"]


def load(checkpoint: str | pathlib.Path, dtype: str = "float32") -> tuple[KEEP, Params]:
  """Loads a model and its parameters for restoring.

  Turns JAX's persistent compilation cache on and, on CPU, `keep_freed_memory`: a frame's
  temporaries, 0.5 GB and allocated anew, are otherwise a twelfth of its time.

  Args:
    checkpoint: what `keep_jax.convert` wrote.
    dtype: compute type, "float32" or "bfloat16".

  Returns:
    The model and its params.

  Raises:
    UserError: there is no such checkpoint, or it is damaged or not of a KEEP.
  """
  enable_compilation_cache()
  keep_freed_memory()
  meta = read_meta(checkpoint)
  try:
    arch = Architecture(**(meta["model"] or {}))
  except (KeyError, TypeError):
    raise UserError(
      f"{checkpoint}: not a checkpoint of KEEP; give the output of keep_jax.convert"
    ) from None
  model = KEEP(arch, jnp.dtype(dtype))
  shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
  full = {name: tree for name, tree in shapes.items() if jax.tree.leaves(tree)}
  if missing := full.keys() - {leaf.partition("/")[0] for leaf in meta["arrays"]["params"]}:
    raise UserError(
      f"{checkpoint}: a part of a KEEP, without {', '.join(sorted(missing))}; convert one of "
      "KEEP's own files"
    )
  params = {name: {} for name in shapes} | restore_params(checkpoint, full)
  release_freed_memory()  # what reading took
  return model, params


@dataclasses.dataclass(frozen=True)
class Seen:
  """A frame on its way: what is known of it before its turn in the recursion comes."""

  observation: Observation
  flow: jax.Array  # to the frame before; of a clip's first frame to itself


class Restorer:
  """Restores clips of aligned faces as streams.

  Four programs are compiled: what is seen of a frame, the gains of a window, the flow, and the
  recursion's step.

  Attributes:
    model: the model.
    mode: "stream" carries the state over the whole clip; "as_released" begins anew with every
      chunk of `window` frames, as the released code does.
    window: frames that a gain sees.
    look_ahead: "stream" only: frames after a frame that its gain sees at most, where the clip is
      longer than the window. Gains of `look_ahead` + 1 frames are computed at a time, so that it is
      0 to `look_ahead`.
    fidelity: weight of CFT: 0 for the codebook's face, 1 for the input's.
  """

  def __init__(
    self,
    model: KEEP,
    params: Params,
    mode: Mode = "stream",
    window: int = WINDOW,
    look_ahead: int = LOOK_AHEAD,
    fidelity: float = 1.0,
  ):
    if mode not in ("stream", "as_released"):
      raise ValueError(f"mode {mode!r}: must be stream or as_released")
    if not 0 <= look_ahead < window - 1:
      raise ValueError(f"look_ahead {look_ahead}: must be below window - 1 = {window - 1}")
    self.model = model
    self.mode = mode
    self.window = window
    self.look_ahead = look_ahead
    self._params = params
    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    self._see = jit(functools.partial(_see, model))
    self._flow = jit(flow_between)
    self._gains = jit(functools.partial(_gains_of_window, model))
    self._step = jit(functools.partial(_restore_frame, model, fidelity), donate_argnums=1)

  def stream(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Restores every frame of a clip.

    Args:
      frames: uint8 RGB [h w 3], resized bilinearly to the model's size where they are not of it.

    Yields:
      uint8 RGB [size size 3], one a frame.
    """
    state = initial_state(self.model, 1)
    for group, gains, fresh in self._groups(self._watched(frames)):
      if fresh:
        state = initial_state(self.model, 1)
      for i, seen in enumerate(group):
        state, image = self._step(self._params, state, seen.observation, gains[:, i], seen.flow)
        yield np.asarray(image[0])

  def _watched(self, frames: Iterable[np.ndarray]) -> Iterator[Seen]:
    """What is seen of each frame; features for the flow are computed once a frame."""
    before = None
    for frame in frames:
      observation, features = self._see(self._params, frame[None])
      flow = self._flow(self._params, features, features if before is None else before)
      before = features
      yield Seen(observation, flow)

  def _groups(self, seen: Iterator[Seen]) -> Iterator[tuple[list[Seen], jax.Array, bool]]:
    """Frames whose gains [1 n h w 1] are computed together, and whether the state begins anew."""
    if self.mode == "as_released":
      while chunk := _take(seen, self.window):
        latents = [s.observation.latent for s in chunk]
        if len(latents) == 1:
          latents = 2 * latents  # the released code doubles a lone last frame
        yield chunk, self._gains(self._params, latents), True
      return
    group = _take(seen, self.window)
    if not group:
      return
    first = group[0].observation.latent
    latest = collections.deque((s.observation.latent for s in group[1:]), self.window - 1)
    while group:
      # The clip's first frame stays the anchor of the attention over space.
      gains = self._gains(self._params, [first, *latest])
      yield group, gains[:, -len(group) :], False
      group = _take(seen, self.look_ahead + 1)
      latest.extend(s.observation.latent for s in group)


def _take(frames: Iterator[Any], count: int) -> list[Any]:
  return list(itertools.islice(frames, count))


def _see(model: KEEP, params: Params, frame: jax.Array) -> tuple[Observation, jax.Array]:
  """uint8 [1 h w 3] -> what the encoder says of it, and the flow network's features."""
  x = frame.astype(jnp.float32) / 127.5 - 1
  size = model.arch.image_size
  if x.shape[1:3] != (size, size):
    x = jax.image.resize(x, (1, size, size, 3), "linear", antialias=False)
  return observe(model, params, x), flow_features(params, x)


def _gains_of_window(model: KEEP, params: Params, latents: list[jax.Array]) -> jax.Array:
  return calculate_gains(model, params, jnp.stack(latents, axis=1))


def _restore_frame(model, fidelity, params, state, observation, gain, flow):
  """One step, and its image as uint8 [1 h w 3]."""
  state, restored = step(model, params, state, observation, gain, flow, fidelity)
  image = jnp.clip(restored.image.astype(jnp.float32), -1, 1)
  return state, jnp.rint(127.5 * (image + 1)).astype(jnp.uint8)
