"""Bidirectional restoration, from past and future frames; experimental, not in the paper.

KEEP's recursion uses past frames only: the first frames of a clip depend almost only on their own
observations, and what becomes clear late cannot help earlier frames. Here the recursion runs twice,
over the clip and over the reversed clip, and each frame gets two filtered latents,

  z_f = (1 - K_f) z_observed + K_f z_predicted from the frame before it,
  z_b = (1 - K_b) z_observed + K_b z_predicted from the frame after it.

A gain is the share of a latent that comes from its prediction, that is from other frames; the rest
is the observation, which both contain. So each latent is weighted by its gain:

  z = (K_f z_f + K_b z_b) / (K_f + K_b).

As a convex combination it lies between the two, in the range that the code predictor was trained
on, and equals both where they agree. A direction has K = 0 at its first frame: the clip's first
frame is restored from the frames after it, the last one from those before. Where both gains are 0,
both latents are the observation, and so is z. A two-filter smoother (Fraser and Potter, 1969)
weighs by inverse error covariances, and one of its two estimates must exclude the observation, lest
it count twice; a learnt gain is no covariance, and a convex combination counts nothing twice.

The blended latents are decoded once, forwards, with cross-frame attention. No training is needed:
half of the clips of the released training are reversed, too. The cost is two passes of the
recursion and one more of the decoder: a little over twice that of one direction.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from keep_jax.model import (
  KEEP,
  Observation,
  Params,
  Restored,
  State,
  calculate_gains,
  clip_flows,
  decode,
  filter_latent,
  initial_state,
  observe,
  to_uint8,
)

Tree = TypeVar("Tree")


@flax.struct.dataclass
class Carried:
  """State carried from chunk to chunk: of the forward recursion and of the decoder."""

  recursion: State
  decoder: State


def initial_carried(model: KEEP, batch: int) -> Carried:
  """What is carried before a first frame."""
  return Carried(initial_state(model, batch), initial_state(model, batch))


def restore_clip_bidirectional(
  model: KEEP,
  params: Params,
  frames: jax.Array,
  flows: jax.Array | None = None,
  flows_to_next: jax.Array | None = None,
  *,
  fidelity: float = 1.0,
) -> tuple[Restored, jax.Array]:
  """Restores clips from both directions; see the module's docstring.

  Args:
    model: the model.
    params: its sub-networks'.
    frames: low-quality frames in [-1, 1] at the output's size, [b t h w 3].
    flows: [b t-1 h w 2] in pixels, from frame i + 1 to frame i; None: by the model's flow network.
    flows_to_next: likewise, from frame i to frame i + 1.
    fidelity: weight of CFT: 0 for the codebook's face, 1 for the input's.

  Returns:
    The restored frames, [b t ...], and their blended latents [b t h' w' emb_dim].
  """
  if flows is None:
    flows = clip_flows(model, params, frames)
  if flows_to_next is None:
    flows_to_next = clip_flows(model, params, frames[:, ::-1])[:, ::-1]
  observation = observe(model, params, frames)
  backwards = _reversed(observation.latent)
  gains = calculate_gains(model, params, observation.latent)
  gains_backwards = _reversed(calculate_gains(model, params, backwards))
  none = jnp.zeros((*frames.shape[:1], 1, *frames.shape[2:4], 2), flows.dtype)
  flows = jnp.concatenate([none, flows], axis=1)
  flows_to_next = jnp.concatenate([flows_to_next, none], axis=1)
  _, restored, latents = restore_chunk(
    model,
    params,
    initial_carried(model, len(frames)),
    observation,
    (gains, gains_backwards),
    (flows, flows_to_next),
    fidelity,
  )
  return restored, latents


def restore_chunk(
  model: KEEP,
  params: Params,
  carried: Carried,
  observation: Observation,
  gains: tuple[jax.Array, jax.Array],
  flows: tuple[jax.Array, jax.Array],
  fidelity: float = 1.0,
) -> tuple[Carried, Restored, jax.Array]:
  """Restores a chunk of clips; the forward pass continues `carried`, the backward pass starts anew.

  Args:
    model: the model.
    params: its sub-networks'.
    carried: after the frames before.
    observation: these frames', [b t ...].
    gains: [b t h' w' 1] of the direction forwards and of the one backwards.
    flows: [b t h w 2] in pixels, to the frame before and to the frame after; any finite values
      where there is no such frame.
    fidelity: weight of CFT.

  Returns:
    What is carried on, the restored frames [b t ...], and their latents [b t h' w' emb_dim].
  """
  run = functools.partial(filter_frames, model, params, fidelity=fidelity)
  recursion, forwards, gain = run(carried.recursion, observation, gains[0], flows[0])
  state = initial_state(model, len(observation.latent))
  from_end = _reversed((observation, gains[1], flows[1]))
  _, backwards, gain_backwards = run(state, *from_end)
  latents = blend(forwards, _reversed(backwards), gain, _reversed(gain_backwards))

  def decoder_step(state, inputs):
    return decode(model, params, state, *inputs, fidelity)

  decoder, restored = lax.scan(
    decoder_step, carried.decoder, _time_first((latents, observation.skips))
  )
  return Carried(recursion, decoder), _time_first(restored), latents


def filter_frames(
  model: KEEP,
  params: Params,
  state: State,
  observation: Observation,
  gains: jax.Array,
  flows: jax.Array,
  fidelity: float = 1.0,
) -> tuple[State, jax.Array, jax.Array]:
  """The recursion in one direction, as `model.step` takes it.

  Args:
    model: the model.
    params: its sub-networks'.
    state: after the frame before.
    observation: the frames', [b t ...], in the direction's order.
    gains: [b t h' w' 1].
    flows: [b t h w 2] in pixels, to the frame that comes before in this direction.
    fidelity: weight of CFT.

  Returns:
    The next state, the filtered latents [b t h' w' emb_dim] and the gains in effect, 0 at a first
    frame.
  """

  def kalman_step(state, inputs):
    observation, gain, flow = inputs
    started = state.started.reshape(-1, 1, 1, 1)
    latent = filter_latent(model, params, state, observation.latent, gain, flow)
    state, _ = decode(model, params, state, latent, observation.skips, fidelity)
    return state, (latent, jnp.where(started, gain, jnp.zeros_like(gain)))

  state, found = lax.scan(kalman_step, state, _time_first((observation, gains, flows)))
  return state, *_time_first(found)


def blend(
  forwards: jax.Array, backwards: jax.Array, gain: jax.Array, gain_backwards: jax.Array
) -> jax.Array:
  """The mean of both directions' latents [... c], weighted by their gains [... 1].

  Where both gains are 0 it is the latent backwards: there both are the observation.
  """
  total = gain + gain_backwards
  weight = gain / jnp.where(total > 0, total, jnp.ones_like(total))
  return backwards + weight.astype(backwards.dtype) * (forwards - backwards)


def restore_observed(
  model: KEEP,
  fidelity: float,
  params: Params,
  carried: Carried,
  first_latent: jax.Array | None,
  observations: Sequence[Observation],
  flows: tuple[Sequence[jax.Array], Sequence[jax.Array]],
) -> tuple[Carried, tuple[jax.Array, ...]]:
  """Computes a chunk's gains and restores it: `restore_chunk` for a stream of single clips.

  The forward gains see the chunk and the clip's first frame; the backward gains see the reversed
  chunk alone, so that its last frame takes the part of the first one.

  Args:
    model: the model.
    fidelity: weight of CFT.
    params: its sub-networks'.
    carried: after the frames before.
    first_latent: the latent [1 h' w' emb_dim] of the clip's first frame; None if this chunk holds
      it or the model does not attend to it.
    observations: the t frames', leading axis [1].
    flows: from each frame [1 h w 2] to the one before and to the one after; see `restore_chunk`.

  Returns:
    What is carried on, and the frames, uint8 [size size 3] each.
  """
  observation = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *observations)
  to_before, to_after = (jnp.stack(x, axis=1) for x in flows)
  latents = observation.latent
  attended = latents
  if first_latent is not None:
    attended = jnp.concatenate([first_latent[:, None], latents], axis=1)
  gains = calculate_gains(model, params, attended)[:, -latents.shape[1] :]
  backwards = _reversed(calculate_gains(model, params, _reversed(latents)))
  carried, restored, _ = restore_chunk(
    model, params, carried, observation, (gains, backwards), (to_before, to_after), fidelity
  )
  return carried, tuple(to_uint8(restored.image[0]))


def _reversed(tree: Tree) -> Tree:
  """Frames [b t ...] in reverse order."""
  return jax.tree.map(lambda x: x[:, ::-1], tree)


def _time_first(tree: Tree) -> Tree:
  """[b t ...] -> [t b ...], and back."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)
