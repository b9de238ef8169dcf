from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.vsr_jax.train.toy import STAGE, batches, init_params, loss, make_stage
from vsr_jax.errors import UserError
from vsr_jax.sharding import make_mesh, place_batch
from vsr_jax.train.stage import split_nets
from vsr_jax.train.state import abstract_state, init_state
from vsr_jax.train.step import jit_train_step, keys_for, make_train_step

ROOT = functools.partial(jax.random.key, 3)


def compile_stage(stage, devices=8, fsdp_min_size=None, **options):
  """The mesh, the state's shapes, the initial state on the host, and the jitted step."""
  mesh = make_mesh(devices=jax.devices()[:devices])
  ema = options.get("ema_decay") is not None
  shapes = abstract_state(stage, init_params, mesh, ema=ema, fsdp_min_size=fsdp_min_size)
  state = start_toy(ema) if stage is STAGE else start(stage, ema)
  step = jit_train_step(make_train_step(stage, **options), mesh, shapes)
  return mesh, shapes, state, step


def start(stage, ema):
  """The initial state on the host."""
  shapes = abstract_state(stage, init_params, make_mesh(), ema=ema)
  return jax.tree.map(np.array, init_state(stage, init_params, jax.random.key(0), shapes))


start_toy = functools.cache(functools.partial(start, STAGE))


compile_toy = functools.cache(functools.partial(compile_stage, STAGE))


def run(stage=STAGE, steps=1, **options):
  """The state before (on the host) and after some steps, and the logs of each step."""
  compiled = compile_toy if stage is STAGE else functools.partial(compile_stage, stage)
  mesh, shapes, before, step = compiled(**options)
  state = jax.device_put(before, jax.tree.map(lambda x: x.sharding, shapes))
  data, logs = batches(16), []
  for _ in range(steps):
    state, log = step(state, place_batch(mesh, next(data)), ROOT(), {})
    logs.append({name: float(x) for name, x in log.items()})
  return before, state, logs


def assert_close(got, want, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def test_the_loss_falls_and_every_term_is_logged():
  _, state, logs = run(steps=30)
  assert np.mean([log["loss"] for log in logs[-5:]]) < 0.8 * logs[0]["loss"]
  norms = {"grad_norm/decoder", "grad_norm/encoder"}
  assert set(logs[0]) == {"loss", "l2", "teacher"} | norms
  assert logs[0]["loss"] == pytest.approx(logs[0]["l2"] + logs[0]["teacher"], rel=1e-6)
  assert int(state.step) == 30


def test_frozen_networks_do_not_move_and_have_no_optimizer_state():
  before, state, _ = run(steps=3, ema_decay=0.9)
  jax.tree.map(np.testing.assert_array_equal, state.params["teacher"], before.params["teacher"])
  assert set(state.opt_state) == set(state.ema) == {"encoder", "decoder"}
  for name in ("encoder", "decoder"):
    assert np.abs(state.params[name]["kernel"] - before.params[name]["kernel"]).max() > 1e-4


def test_each_network_follows_its_own_optimizer():
  stage = make_stage(
    optimizers={
      "decoder": optax.sgd(optax.piecewise_constant_schedule(0.1, {1: 0.0})),
      "encoder": optax.sgd(0.2),
    },
  )
  first, _, _ = run(stage, steps=0)
  _, after_one, _ = run(stage, steps=1)
  _, after_two, _ = run(stage, steps=2)
  batch = next(batches(16))
  grads = jax.grad(lambda p: loss(p, batch, {})[0])(first.params)
  for name, rate in {"decoder": 0.1, "encoder": 0.2}.items():
    want = first.params[name]["kernel"] - rate * grads[name]["kernel"]
    assert_close(
      after_one.params[name]["kernel"], want, rtol=1e-5, atol=1e-7
    )  # float32 sums, split 8 ways
  # From its second step on the decoder's rate is 0.
  jax.tree.map(
    np.testing.assert_array_equal, after_two.params["decoder"], after_one.params["decoder"]
  )
  assert (after_two.params["encoder"]["kernel"] != after_one.params["encoder"]["kernel"]).any()


def test_an_unknown_network_is_named():
  with pytest.raises(KeyError, match="no sub-network called encodr"):
    split_nets({"encoder": {}}, {"encodr": optax.sgd(1.0)})


def test_eight_devices_give_what_one_gives():
  _, want, want_logs = run(steps=5, devices=1)
  _, got, logs = run(steps=5)
  # The mean over the batch is summed in another order; Adam's early steps magnify its rounding.
  assert_close(jax.device_get(got), jax.device_get(want), rtol=1e-4, atol=1e-6)
  assert logs[-1] == pytest.approx(want_logs[-1], rel=1e-4)


def test_sharded_params_give_what_replicated_ones_give():
  _, want, _ = run(steps=3, ema_decay=0.9)
  _, got, _ = run(steps=3, ema_decay=0.9, fsdp_min_size=64)
  for tree in (got.params["decoder"], got.opt_state["decoder"][0].mu, got.ema["decoder"]):
    assert {shard.data.shape for shard in tree["kernel"].addressable_shards} == {(1, 8)}
    assert tree["bias"].sharding.is_fully_replicated
  assert_close(jax.device_get(got), jax.device_get(want), rtol=1e-4, atol=1e-6)  # as above


def test_micro_batches_equal_one_big_batch():
  _, want, want_logs = run(steps=3)
  _, got, logs = run(steps=3, accumulate=2)
  assert_close(jax.device_get(got), jax.device_get(want), rtol=1e-4, atol=1e-6)  # as above
  assert logs[-1] == pytest.approx(want_logs[-1], rel=1e-4)


def test_a_batch_that_does_not_split_into_micro_batches_is_refused():
  with pytest.raises(UserError, match="a batch of 16 does not divide into 3 micro-batches"):
    run(accumulate=3)


def test_the_average_follows_the_params():
  decay = 0.9
  before, one, _ = run(steps=1, ema_decay=decay)
  _, two, _ = run(steps=2, ema_decay=decay)
  want = before.params["encoder"]["kernel"]
  for state in (one, two):
    want = decay * want + (1 - decay) * np.asarray(state.params["encoder"]["kernel"])
  np.testing.assert_allclose(two.ema["encoder"]["kernel"], want, rtol=1e-6)  # float32 rounding


def test_gradients_are_clipped_by_their_norm_over_all_networks():
  stage = make_stage(optimizers={n: optax.sgd(1.0) for n in ("decoder", "encoder")})
  before, state, logs = run(stage, clip_norm=1e-2)
  moved = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, before.params)
  assert logs[0]["grad_norm/decoder"] > 1e-2  # The logs show the norm before clipping.
  assert float(optax.tree.norm(moved)) == pytest.approx(1e-2, rel=1e-4)


def test_small_gradients_are_not_clipped():
  _, want, _ = run(steps=2)
  _, got, _ = run(steps=2, clip_norm=1e3)
  assert_close(jax.device_get(got), jax.device_get(want), rtol=1e-6, atol=1e-9)  # fused otherwise


def test_the_old_state_is_donated():
  mesh, shapes, _, step = compile_toy(ema_decay=0.9)
  state = init_state(STAGE, init_params, jax.random.key(0), shapes)
  step(state, place_batch(mesh, next(batches())), ROOT(), {})
  assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_bfloat16_compute_leaves_the_state_in_float32():
  def bf16_loss(params, batch, keys):
    half = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    return loss(half(params), half(batch), {})

  _, state, logs = run(make_stage(loss=bf16_loss), steps=2, ema_decay=0.9)
  floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert {x.dtype for x in floats} == {jnp.dtype("float32")}
  _, _, exact = run(STAGE, steps=2)
  assert logs[0]["loss"] == pytest.approx(exact[0]["loss"], rel=2e-2)  # bfloat16 has 8 bits
  assert logs[0]["loss"] != exact[0]["loss"]


def test_params_in_another_type_are_refused():
  def init(key):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), init_params(key))

  with pytest.raises(ValueError, match="kept in float32, not in bfloat16"):
    abstract_state(STAGE, init, make_mesh())


def test_keys_differ_by_stream_and_draw_and_depend_on_nothing_else():
  def bits(draw):
    keys = keys_for(ROOT(), ("a", "b"), jnp.int32(draw))
    return [tuple(jax.random.key_data(k).tolist()) for k in keys.values()]

  assert bits(5) == bits(5)
  assert len({*bits(5), *bits(6)}) == 4


def test_a_step_draws_anew_for_every_micro_batch():
  def noise(params, batch, keys):
    drawn = jax.random.uniform(keys["noise"])
    return 0.0 * jnp.sum(params["encoder"]["bias"]), {"drawn": drawn, "square": drawn**2}

  stage = make_stage(loss=noise, streams=("noise",))
  _, _, logs = run(stage, steps=2, accumulate=2)
  for log in logs:  # The mean of squares exceeds the square of the mean when two draws differ.
    assert log["square"] > log["drawn"] ** 2 + 1e-6
  assert logs[0]["drawn"] != logs[1]["drawn"]


def test_given_params_replace_the_initialised_ones_and_are_left_alone():
  mesh, shapes, fresh, step = compile_toy()
  given = {"encoder": jax.tree.map(lambda x: x + 1, init_params(jax.random.key(9))["encoder"])}
  state = init_state(STAGE, init_params, jax.random.key(0), shapes, given)
  jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], given["encoder"])
  jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], fresh.params["decoder"])
  step(state, place_batch(mesh, next(batches())), ROOT(), {})
  assert not any(x.is_deleted() for x in jax.tree.leaves(given))


def test_given_params_that_do_not_fit_are_named():
  shapes = abstract_state(STAGE, init_params, make_mesh())
  given = {"encoder": {"kernel": np.zeros((8, 4), np.float32), "bias": np.zeros(8, np.float32)}}
  with pytest.raises(UserError, match=r"encoder/kernel is float32\[8,4\], not float32\[8,8\]"):
    init_state(STAGE, init_params, jax.random.key(0), shapes, given)
  with pytest.raises(UserError, match="encodr/bias is not expected"):
    init_state(STAGE, init_params, jax.random.key(0), shapes, {"encodr": given["encoder"]})
