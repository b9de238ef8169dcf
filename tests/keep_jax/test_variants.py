"""The ablations: each one restores, has only the parameters it uses, and is what its name says."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax import kalman, streaming
from keep_jax.architecture import RELEASED, Architecture
from keep_jax.model import (
  KEEP,
  calculate_gains,
  clip_flows,
  filter_latent,
  init_params,
  initial_state,
  observe,
  param_shapes,
  restore_clip,
  step,
)
from keep_jax.streaming import Restorer
from tests.keep_jax import golden, tiny
from tests.support.programs import scopes
from vsr_jax.checkpoint import export_params
from vsr_jax.configs.keep import ablations
from vsr_jax.errors import UserError
from vsr_jax.flow import spynet

# Of the released size; RAFT's with its norms' stored statistics.
COUNTS = {
  "keep": 158_485_860,
  "no_kfn": 116_114_115,
  "no_cfa": 151_397_220,
  "pwcnet": 163_179_846,
  "spynet": 155_245_872,
  "raft_small": 154_795_734,
  "raft_large": 159_065_988,
  "no_flow": 153_805_572,
  "no_first_frame": 158_485_860,
  "constant_gain": 150_210_404,
  "fixed_gain": 150_210_403,
  "causal": 158_485_860,
  "end_to_end": 158_485_860,
}
UNUSED = {
  "no_kfn": {"gain", "hq_encoder", "flow"},
  "no_cfa": {"cfa"},
  "no_flow": {"flow"},
  "fixed_gain": {"gain"},
}
FAST = {"no_kfn"}  # the others take their time to compile

every_variant = pytest.mark.parametrize(
  "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in ablations.OVERRIDES]
)


def variant(name: str, base: Architecture = RELEASED) -> Architecture:
  return dataclasses.replace(base, **ablations.overrides(name))


@functools.cache
def program(model):
  return golden.jit(functools.partial(restore_clip, model))


def run(model, params, frames, flows=None):
  """Restored frames, observation and gains; with random flows unless others are given."""
  flows = tiny.random_flows(frames.shape[1]) if flows is None else flows
  return program(model)(params, frames, flows)


def assert_equal(x, y):
  """Equal but for rounding: two programs of the same formulas."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4), x, y)


@pytest.mark.parametrize("name", ablations.OVERRIDES)
def test_parameters(name):
  shapes = param_shapes(KEEP(variant(name)))
  empty = {part for part, tree in shapes.items() if not jax.tree.leaves(tree)}
  assert empty == UNUSED.get(name, set())
  assert sum(x.size for x in jax.tree.leaves(shapes)) == COUNTS[name]


@every_variant
def test_restores_clips_and_streams(name, tmp_path):
  size = 64 if name == "pwcnet" else 32  # the smallest that it takes
  base = tiny.change(image_size=size, cft=(size // 2,), cfa=(size // 2,))
  if name == "keep":
    base = dataclasses.replace(base, flow="gmflow")
  model, params = tiny.load(variant(name, base))
  clip = tiny.as_uint8(tiny.clip(size=size))
  frames = jnp.asarray(clip[None], jnp.float32) / 127.5 - 1
  flows = golden.jit(functools.partial(clip_flows, model))(params, frames)
  restored, _, gains = run(model, params, frames, flows)
  assert restored.image.shape == frames.shape
  assert jnp.isfinite(restored.image).all()
  assert gains.shape == (1, 3, size // 2, size // 2, 1)
  assert 0 <= gains.min() <= gains.max() <= 1

  # Through a checkpoint, which cannot hold empty trees.
  full = {part: tree for part, tree in params.items() if jax.tree.leaves(tree)}
  export_params(tmp_path / "keep", full, {"model": dataclasses.asdict(model.arch)})
  found, params = streaming.load(tmp_path / "keep")
  assert found == model
  streamed = np.stack(list(Restorer(model, params, window=3, look_ahead=1).stream(clip)))
  want = tiny.as_uint8(jnp.clip(restored.image, -1, 1))
  # But for rounding, which may move a code of small margin.
  assert np.median(np.abs(streamed.astype(int) - want)) <= 1


def test_without_a_filter_each_frame_is_its_observation():
  model, params = tiny.load(tiny.change(gain="none"))
  frames = tiny.clip()
  restored, observation, gains = run(model, params, frames)
  np.testing.assert_array_equal(gains, jnp.zeros_like(gains))

  @golden.jit
  def by_frame(params, frame):
    latent = observe(model, params, frame).latent
    return model.code_predictor.apply({"params": params["code_predictor"]}, latent)

  logits = [by_frame(params, frames[:, i]) for i in range(3)]
  assert_equal(restored.logits, np.stack(logits, axis=1))
  # Nor does a filter whose gain is 0 do anything.
  zero = {"gain": {"logit": jnp.array(-jnp.inf)}, "hq_encoder": params["encoder"]}
  assert_equal(run(KEEP(tiny.change(gain="constant")), params | zero, frames)[0], restored)


def test_a_fixed_gain_blends_observation_and_prediction():
  model, params = tiny.load(tiny.change(gain="fixed", fixed_gain=0.25))
  frames, flow = tiny.clip(2), tiny.random_flows(2)[:, 0]
  state = initial_state(model, 1).replace(image=frames[:, 0], started=jnp.ones(1, bool))

  @golden.jit
  def both(params):
    observed = observe(model, params, frames).latent
    gain = calculate_gains(model, params, observed)[:, 1]
    found = filter_latent(model, params, state, observed[:, 1], gain, flow)
    predicted = kalman.predict(
      frames[:, 0], flow, lambda x: model.encoder.apply({"params": params["hq_encoder"]}, x)[0]
    )
    return found, 0.75 * observed[:, 1] + 0.25 * predicted

  found, want = both(params)
  assert_equal(found, want)


def test_a_constant_gain_is_a_fixed_one_that_is_learnt():
  model, params = tiny.load(tiny.change(gain="constant"))
  params = params | {"gain": {"logit": jnp.log(jnp.array(1 / 3))}}
  fixed = KEEP(tiny.change(gain="fixed", fixed_gain=0.25))
  frames = tiny.clip()
  assert_equal(run(model, params, frames), run(fixed, params, frames))

  @golden.jit
  def gradient(gain, latents):
    return jax.grad(lambda gain: calculate_gains(model, {"gain": gain}, latents).mean())(gain)

  slope = gradient(params["gain"], jnp.zeros((1, 1, 2, 2, 32)))["logit"]
  np.testing.assert_allclose(slope, 0.25 * 0.75, rtol=1e-5)  # of a sigmoid


def test_without_the_first_frame_only_frames_after_the_second_differ():
  """For two frames the first one is the frame before as well: seen twice, it weighs the same."""
  model, params = tiny.load()
  without = KEEP(tiny.change(attend_first_frame=False))
  latents = jax.random.normal(jax.random.key(3), (1, 3, 4, 4, 32))
  gains = [
    golden.jit(functools.partial(calculate_gains, m))(params, latents) for m in (model, without)
  ]
  assert np.abs(gains[0] - gains[1]).max() > 1e-4
  two = latents[:, :2]
  gains = [golden.jit(functools.partial(calculate_gains, m))(params, two) for m in (model, without)]
  np.testing.assert_allclose(*gains, rtol=0, atol=1e-5)


def test_causal_gains_see_no_later_frame():
  model, params = tiny.load(tiny.change(causal=True))
  calculate = golden.jit(functools.partial(calculate_gains, model))
  latents = jax.random.normal(jax.random.key(3), (1, 3, 4, 4, 32))
  other = latents.at[:, 2].set(latents[:, 0, ::-1])
  before, after = calculate(params, latents), calculate(params, other)
  np.testing.assert_allclose(before[:, :2], after[:, :2], rtol=0, atol=1e-6)
  assert np.abs(before[:, 2] - after[:, 2]).max() > 1e-4
  as_released = golden.jit(functools.partial(calculate_gains, tiny.load()[0]))
  before, after = as_released(params, latents), as_released(params, other)
  assert np.abs(before[:, :2] - after[:, :2]).max() > 1e-4


def test_a_causal_model_restores_each_frame_as_it_comes():
  model, params = tiny.load(tiny.change(causal=True))
  clip = tiny.as_uint8(tiny.clip())
  taken = []
  stream = Restorer(model, params, window=3, look_ahead=1).stream(
    taken.append(i) or x for i, x in enumerate(clip)
  )
  next(stream)
  assert len(taken) < len(clip)  # one frame is computed while the one before is handed out


def test_without_cfa_is_cfa_at_its_start():
  """CFA's norms start at zero, so that it starts as the identity."""
  model, params = tiny.load()
  feature = jnp.zeros((1, 16, 16, model.arch.channels(16)))
  started = {"16": jax.jit(model.cfa.init)(jax.random.key(0), feature, feature)["params"]}
  without = KEEP(tiny.change(cfa=()))
  frames = tiny.clip()
  found = run(without, params | {"cfa": {}}, frames)
  # The features that losses read are of CFT's and CFA's sides: the same ones here.
  assert_equal(found, run(model, params | {"cfa": started}, frames))
  assert np.abs(found[0].image - run(model, params, frames)[0].image).max() > 1e-2


def test_without_flow_the_frame_before_stays_where_it_is():
  model, params = tiny.load()
  frames = tiny.clip()
  flows = clip_flows(model, params, frames)
  np.testing.assert_array_equal(flows, jnp.zeros((1, 2, 32, 32, 2)))
  # Other flows do change the frames.
  image = run(model, params, frames, flows)[0].image
  assert np.abs(image - run(model, params, frames)[0].image).max() > 1e-2


def test_another_flow_is_that_of_the_pairs():
  model, params = tiny.load(tiny.change(flow="spynet"))
  frames = tiny.clip()
  flows = golden.jit(functools.partial(clip_flows, model))(params, frames)
  pairs = (127.5 * (x[0] + 1) for x in (frames[:, 1:], frames[:, :-1]))
  want = golden.jit(spynet.spynet)(params["flow"], *pairs)
  np.testing.assert_allclose(flows[0], want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"gain": "kalman"}, "model.gain = 'kalman': must be one of"),
    ({"flow": "pwc"}, "model.flow = 'pwc': must be one of"),
    ({"attend_first_frame": "no"}, "model.attend_first_frame = 'no': must be one of"),
    ({"gain": "fixed", "fixed_gain": 1.5}, "model.fixed_gain = 1.5: must be between 0 and 1"),
    (
      {"image_size": 48, "multiples": (1, 1), "cft": (), "cfa": (), "flow": "spynet"},
      "multiple of 32",
    ),
  ],
)
def test_wrong_values_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    Architecture(**fields)


def test_a_misspelt_variant_is_named():
  with pytest.raises(ValueError, match=r"'no_cft' is no ablation of KEEP: must be one of keep, "):
    variant("no_cft")


def test_the_default_is_the_released_model():
  assert variant("keep") == RELEASED == Architecture()


@pytest.mark.parametrize("gain", ["network", "none"])
def test_shapes_are_those_of_the_parameters(gain):
  model = KEEP(tiny.change(layers=3, gain_layers=2, gain=gain))
  want = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  assert param_shapes(model) == want


def test_a_checkpoint_with_the_earlier_name_of_a_field_loads(tmp_path):
  model, params = tiny.load(tiny.change(attend_first_frame=False))
  entries = dataclasses.asdict(model.arch)
  entries["anchor"] = entries.pop("attend_first_frame")
  full = {part: tree for part, tree in params.items() if jax.tree.leaves(tree)}
  export_params(tmp_path / "keep", full, {"model": entries})
  assert streaming.load(tmp_path / "keep")[0] == model


def test_what_a_trace_shows_by_name():
  model, params = tiny.load()
  frames, flow = tiny.clip(1)[:, 0], tiny.random_flows(2)[:, 0]

  def restore(params, frames, flow):
    seen = observe(model, params, frames)
    gain = calculate_gains(model, params, seen.latent[:, None])[:, 0]
    return step(model, params, initial_state(model, 1), seen, gain, flow)

  names = scopes(jax.make_jaxpr(restore)(params, frames, flow))
  assert names >= {"observe", "gains", "predict", "warp", "update", "decode"}
