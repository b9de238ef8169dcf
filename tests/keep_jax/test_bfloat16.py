"""bfloat16 against float32, with the fixtures' weights: how far logits move, which codes stay."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax.conversion import convert_released
from keep_jax.model import KEEP, calculate_gains, clip_flows, initial_state, observe, step
from tests.keep_jax import golden

SURE = 0.2  # a margin of float32, best to second best logit, beyond which a code must stay


def compare(arch, params, frames, flows):
  """Checks every frame of a clip, from the state that float32 has there.

  From a state of its own bfloat16 would go another way once a code of small margin has flipped.

  Returns:
    The share of codes that were sure.
  """
  full, low = KEEP(arch), KEEP(arch, jnp.bfloat16)
  seen = {}
  for model in (full, low):

    def look(params, frames, model=model):
      observation = observe(model, params, frames)
      return observation, calculate_gains(model, params, observation.latent)

    seen[model] = jax.jit(look)(params, frames)
    assert seen[model][1].dtype == jnp.float32
  steps = {model: jax.jit(functools.partial(step, model)) for model in seen}
  state, sure = initial_state(full, 1), []
  flows = jnp.concatenate([jnp.zeros_like(flows[:, :1]), flows], axis=1)
  for i in range(frames.shape[1]):

    def turn(model, state, i=i):
      frame_inputs = jax.tree.map(lambda x: x[:, i], seen[model])
      return steps[model](params, state, *frame_inputs, flows[:, i])

    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    rounded = rounded.replace(started=state.started)
    found = turn(low, rounded)[1]
    state, wanted = turn(full, state)
    assert found.image.dtype == jnp.bfloat16
    assert found.logits.dtype == wanted.logits.dtype == jnp.float32
    want, got = np.asarray(wanted.logits), np.asarray(found.logits)
    assert golden.relative_error(got, want) < 3e-2
    best = np.sort(want, axis=-1)
    sure.append(best[..., -1] - best[..., -2] > SURE)
    np.testing.assert_array_equal(want.argmax(-1)[sure[-1]], got.argmax(-1)[sure[-1]])
  return np.mean(sure)


@pytest.mark.slow
def test_the_small_model():
  arch, params = convert_released(golden.state_dict("keep_mini"))
  frames = golden.channels_last(golden.inputs((1, 4, 3, 128, 128), 25))
  flows = golden.channels_last(golden.data("keep_mini")["flow"])
  assert compare(arch, params, frames, flows) > 0.3


@pytest.mark.slow
def test_the_released_size():
  state = golden.weights.state_dict(golden.manifest("keep_full"), golden.SEED)
  arch, params = convert_released(state, "keep_full")
  model = KEEP(arch)
  frames = golden.channels_last(golden.inputs((1, 3, 3, 512, 512), 30))
  flows = jax.jit(functools.partial(clip_flows, model))(params, frames)
  assert compare(arch, params, frames, flows) > 0.3
