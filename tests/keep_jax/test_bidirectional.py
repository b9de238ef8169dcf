"""Both directions blended: where they agree, where one is missing, and chunk by chunk."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax import bidirectional
from keep_jax.bidirectional import blend, restore_clip_bidirectional
from keep_jax.model import (
  KEEP,
  calculate_gains,
  clip_flows,
  initial_state,
  observe,
  restore_clip,
)
from keep_jax.streaming import Restorer
from tests.keep_jax import golden, tiny


@functools.cache
def program(function):
  """A function of the model and its parameters, compiled."""
  return golden.jit(functools.partial(function, tiny.load()[0]))


def assert_equal(x, y):
  """Equal but for rounding: two programs of the same formulas."""
  np.testing.assert_allclose(x, y, rtol=0, atol=1e-4)


def recursion(model, params, frames, flows):
  """The recursion forwards: latents and gains in effect."""
  observation = observe(model, params, frames)
  flows = jnp.concatenate([flows[:, :1], flows], axis=1)
  gains = calculate_gains(model, params, observation.latent)
  state = initial_state(model, len(frames))
  return bidirectional.filter_frames(model, params, state, observation, gains, flows)[1:]


PALINDROME, STILL, MOVING = range(3)


@functools.cache
def clips():
  """Three clips of five frames, and their flows from each frame to the one before and after."""
  moving = tiny.clip(5)
  palindrome = jnp.concatenate([moving[:, :3], moving[:, 1::-1]], axis=1)
  still = jnp.repeat(moving[:, :1], 5, axis=1)
  zero = jnp.zeros((2, 4, 32, 32, 2))
  flows = tiny.random_flows(5, batch=2)
  frames = jnp.concatenate([palindrome, still, moving])
  return frames, jnp.concatenate([zero, flows[:1]]), jnp.concatenate([zero, flows[1:]])


@functools.cache
def results():
  """Blended latents, those forwards and those backwards in the clip's order, gains forwards."""
  _, params = tiny.load()
  frames, flows, flows_to_next = clips()
  _, blended = program(restore_clip_bidirectional)(params, frames, flows, flows_to_next)
  forwards, gains = program(recursion)(params, frames, flows)
  backwards, _ = program(recursion)(params, frames[:, ::-1], flows_to_next[:, ::-1])
  return tuple(np.asarray(x) for x in (blended, forwards, backwards[:, ::-1], gains))


@pytest.mark.slow
def test_without_gain_it_is_the_ordinary_recursion():
  _, params = tiny.load()
  frames, flows, flows_to_next = clips()
  gain = jax.tree.map(lambda x: x, params["gain"])
  gain["gain"]["bias"] = jnp.array([-1e4])  # of a sigmoid: exactly 0
  params = params | {"gain": gain}
  restored, latents = program(restore_clip_bidirectional)(params, frames, flows, flows_to_next)
  want, observation, _ = program(restore_clip)(params, frames, flows)
  assert_equal(latents, observation.latent)
  assert_equal(restored.logits, want.logits)
  assert_equal(restored.image, want.image)


@pytest.mark.slow
def test_a_palindrome_is_symmetric():
  blended, forwards, _, _ = (x[PALINDROME] for x in results())
  assert_equal(blended, blended[::-1])
  # Unlike one direction alone.
  assert np.abs(forwards - forwards[::-1]).max() > 1e-2


def test_both_directions_agree_in_the_middle_of_a_still_clip():
  """There both have come as far: what each says is what the ordinary recursion says."""
  blended, forwards, backwards, gains = (x[STILL] for x in results())
  assert 0.05 < gains[2].mean() < 0.95
  assert_equal(forwards[2], backwards[2])
  assert_equal(blended[2], forwards[2])
  # At the ends one direction is missing: there the other one's latent stands.
  assert_equal(blended[4], forwards[4])
  assert_equal(blended[0], forwards[4])


def test_the_ends_take_the_direction_that_reaches_them():
  blended, forwards, backwards, gains = (x[MOVING] for x in results())
  np.testing.assert_array_equal(gains[0], np.zeros_like(gains[0]))
  assert_equal(blended[-1], forwards[-1])
  assert_equal(blended[0], backwards[0])
  # Between the ends it lies between both.
  low, high = np.minimum(forwards, backwards), np.maximum(forwards, backwards)
  assert ((low - 1e-4 <= blended) & (blended <= high + 1e-4)).all()
  assert np.abs(blended - forwards)[1:-1].max() > 1e-2


@pytest.mark.slow
def test_flows_are_the_models_own_unless_given():
  model, params = tiny.load(tiny.change(flow="spynet"))
  frames = tiny.clip()
  run = golden.jit(functools.partial(restore_clip_bidirectional, model))
  flows = golden.jit(functools.partial(clip_flows, model))
  to_next = flows(params, frames[:, ::-1])[:, ::-1]
  assert np.abs(to_next).max() > 0.1
  assert_equal(run(params, frames)[1], run(params, frames, flows(params, frames), to_next)[1])


@pytest.mark.slow
def test_one_frame_is_its_observation():
  _, params = tiny.load()
  frames = tiny.clip(1)
  _, latents = program(restore_clip_bidirectional)(params, frames)
  assert_equal(latents, program(observe)(params, frames).latent)


gains = st.floats(0, 1, width=32, allow_subnormal=False)  # XLA takes those for 0


@hypothesis.given(gains, gains)
def test_a_blend_lies_between_both_and_is_both_where_they_agree(gain, backwards):
  x, y = jnp.array([[-1.0, 2.0]]), jnp.array([[3.0, 2.0]])
  z = blend(x, y, *(jnp.full((1, 1), g, jnp.float32) for g in (gain, backwards)))
  assert -1 <= z[0, 0] <= 3
  assert z[0, 1] == 2
  if gain + backwards > 0:
    want = (gain * -1 + backwards * 3) / (gain + backwards)
    np.testing.assert_allclose(z[0, 0], want, atol=1e-5)


@functools.cache
def restorer(window):
  return Restorer(*tiny.load(), "bidirectional", window, look_ahead=0)


def streamed(window, frames):
  return np.stack(list(restorer(window).stream(frames)))


@pytest.fixture(scope="module")
def frames():
  return tiny.as_uint8(tiny.clip(5))


@pytest.mark.slow
def test_a_clip_within_the_window_equals_the_whole_clip(frames):
  _, params = tiny.load()
  clip = jnp.asarray(frames[None], jnp.float32) / 127.5 - 1
  restored, _ = program(restore_clip_bidirectional)(params, clip)
  want = tiny.as_uint8(jnp.clip(restored.image, -1, 1))
  # Rounding may move a pixel by one step.
  assert np.abs(streamed(20, frames).astype(int) - want).max() <= 1


@pytest.mark.slow
def test_chunks_carry_the_direction_forwards(frames):
  whole = streamed(3, frames)
  assert whole.shape == frames.shape
  # A chunk knows nothing of those that follow, but of those before.
  np.testing.assert_array_equal(streamed(3, frames[:3]), whole[:3])
  assert (streamed(3, frames[3:]) != whole[3:]).mean() > 0.01


@pytest.mark.slow
def test_a_stream_takes_one_chunk_at_a_time(frames):
  taken = []
  found = restorer(3).stream(taken.append(1) or x for x in frames)
  next(found)
  assert len(taken) == 3
  assert list(restorer(3).stream([])) == []


@pytest.mark.slow
def test_tracks_are_as_each_alone(frames):
  spans = {"a": (0, 5), "b": (1, 4)}
  faces = [{n: frames[t] for n, (x, y) in spans.items() if x <= t < y} for t in range(5)]
  together = list(restorer(3).stream_tracks(faces))
  for name, (start, stop) in spans.items():
    got = np.stack([together[t][name] for t in range(start, stop)])
    assert np.abs(got.astype(int) - streamed(3, frames[start:stop])).max() <= 1


def test_images_are_of_the_compute_type_and_latents_float32():
  model, params = tiny.load()
  restored, latents = jax.eval_shape(
    functools.partial(restore_clip_bidirectional, KEEP(model.arch, jnp.bfloat16)),
    params,
    tiny.clip(2),
  )
  assert (restored.image.dtype, latents.dtype) == (jnp.bfloat16, jnp.float32)
