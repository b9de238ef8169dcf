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
from keep_jax.bidirectional import blend, restore_clip_bidirectional, stream_bidirectional
from keep_jax.model import (
  KEEP,
  calculate_gains,
  clip_flows,
  initial_state,
  observe,
  restore_clip,
)
from tests.keep_jax import golden, tiny


@functools.cache
def program(model):
  return golden.jit(functools.partial(restore_clip_bidirectional, model))


def assert_equal(x, y):
  """Equal but for rounding: two programs of the same formulas."""
  np.testing.assert_allclose(x, y, rtol=0, atol=1e-4)


@functools.cache
def filtered(model):
  """The recursion forwards: latents and gains in effect."""

  @golden.jit
  def run(params, frames):
    observation = observe(model, params, frames)
    flows = clip_flows(model, params, frames)
    flows = jnp.concatenate([flows[:, :1], flows], axis=1)
    gains = calculate_gains(model, params, observation.latent)
    state = initial_state(model, len(frames))
    return bidirectional.filter_frames(model, params, state, observation, gains, flows)[1:]

  return run


@pytest.mark.parametrize("gain", ["fixed", "none"])
def test_without_gain_it_is_the_ordinary_recursion(gain):
  model, params = tiny.load(tiny.change(gain=gain, fixed_gain=0.0))
  frames = tiny.clip()
  restored, latents = program(model)(params, frames)
  want, observation, _ = golden.jit(functools.partial(restore_clip, model))(
    params, frames, jnp.zeros((1, 3, 32, 32, 2))
  )
  assert_equal(latents, observation.latent)
  assert_equal(restored.logits, want.logits)
  assert_equal(restored.image, want.image)


def test_a_palindrome_is_symmetric():
  model, params = tiny.load()
  half = tiny.clip(3)
  frames = jnp.concatenate([half, half[:, 1::-1]], axis=1)
  _, latents = program(model)(params, frames)
  assert_equal(latents, latents[:, ::-1])
  # Unlike one direction alone.
  forwards, _ = filtered(model)(params, frames)
  assert np.abs(forwards - forwards[:, ::-1]).max() > 1e-2


def test_both_directions_agree_in_the_middle_of_a_still_clip():
  """There both have come as far: what each says is what the ordinary recursion says."""
  model, params = tiny.load()
  frames = jnp.repeat(tiny.clip(1), 5, axis=1)
  _, latents = program(model)(params, frames)
  forwards, gains = filtered(model)(params, frames)
  assert 0.1 < gains[:, 2].mean() < 0.9
  assert_equal(latents[:, 2], forwards[:, 2])
  # At the ends one direction is missing: there the other one's latent stands.
  assert_equal(latents[:, 4], forwards[:, 4])
  assert_equal(latents[:, 0], forwards[:, 4])


def test_the_ends_take_the_direction_that_reaches_them():
  model, params = tiny.load()
  frames = tiny.clip()
  _, latents = program(model)(params, frames)
  forwards, _ = filtered(model)(params, frames)
  backwards, _ = filtered(model)(params, frames[:, ::-1])
  assert_equal(latents[:, -1], forwards[:, -1])
  assert_equal(latents[:, 0], backwards[:, -1])
  between = np.abs(latents[:, 1:-1] - forwards[:, 1:-1])
  assert between.max() > 1e-2


def test_one_frame_is_its_observation():
  model, params = tiny.load()
  frames = tiny.clip(1)
  _, latents = program(model)(params, frames)
  assert_equal(latents, golden.jit(functools.partial(observe, model))(params, frames).latent)


gains = st.floats(0, 1, width=32)


@hypothesis.given(gains, gains)
def test_a_blend_lies_between_both_and_is_both_where_they_agree(gain, backwards):
  x, y = jnp.array([[-1.0, 2.0]]), jnp.array([[3.0, 2.0]])
  z = blend(x, y, *(jnp.full((1, 1), g, jnp.float32) for g in (gain, backwards)))
  assert -1 <= z[0, 0] <= 3
  assert z[0, 1] == 2
  if gain + backwards > 0:
    want = (gain * -1 + backwards * 3) / (gain + backwards)
    np.testing.assert_allclose(z[0, 0], want, atol=1e-5)


def streamed(window, frames, fidelity=1.0):
  found = stream_bidirectional(*tiny.load(), frames, window, fidelity)
  return np.stack(list(found))


@pytest.fixture(scope="module")
def frames():
  return tiny.as_uint8(tiny.clip(7))


def test_a_clip_within_the_window_equals_the_whole_clip(frames):
  model, params = tiny.load()
  clip = jnp.asarray(frames[None], jnp.float32) / 127.5 - 1
  restored, _ = program(model)(params, clip)
  want = tiny.as_uint8(jnp.clip(restored.image, -1, 1))
  for window in (7, 20):
    # Rounding may move a pixel by one step.
    assert np.abs(streamed(window, frames).astype(int) - want).max() <= 1


def test_chunks_carry_the_direction_forwards(frames):
  whole = streamed(3, frames)
  assert whole.shape == frames.shape
  # A chunk knows nothing of those that follow, but of those before.
  np.testing.assert_array_equal(streamed(3, frames[:6]), whole[:6])
  assert (streamed(3, frames[3:6]) != whole[3:6]).mean() > 0.01


def test_a_stream_takes_one_chunk_at_a_time(frames):
  taken = []
  found = stream_bidirectional(*tiny.load(), (taken.append(1) or x for x in frames), 3)
  next(found)
  assert len(taken) == 3
  assert list(stream_bidirectional(*tiny.load(), [], 3)) == []


def test_batches_are_independent():
  model, params = tiny.load()
  both = tiny.clip(3, batch=2)
  restored, _ = program(model)(params, both)
  alone, _ = program(model)(params, both[1:])
  assert_equal(restored.logits[1:], alone.logits)


def test_dtype_is_kept():
  model, params = tiny.load()
  _, latents = jax.eval_shape(
    functools.partial(restore_clip_bidirectional, KEEP(model.arch, jnp.bfloat16)),
    params,
    tiny.clip(2),
  )
  assert latents.dtype == jnp.bfloat16
