"""A stage with an opponent: what a step computes, and that every option of the trainer holds."""

from __future__ import annotations

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.vsr_jax.train.toy import WIDTH, Listed, batches, dense, init_params, predict
from vsr_jax.checkpoint import read_meta
from vsr_jax.errors import Terminated, UserError
from vsr_jax.sharding import make_mesh, place_batch
from vsr_jax.train.loop import fit
from vsr_jax.train.opponent import Contest, Opponent, adaptive_weight, with_gradient
from vsr_jax.train.stage import Stage
from vsr_jax.train.state import abstract_state, init_state
from vsr_jax.train.step import jit_train_step, make_train_step

WEIGHT = 0.3  # of the adversarial term
RATES = {"decoder": 0.1, "encoder": 0.2, "discriminator": 0.05}


def init_discriminator(key):
  hidden, scores = jax.random.uniform(key, (2, WIDTH, WIDTH), minval=-0.6, maxval=0.6)
  params = {
    "hidden": {"kernel": hidden, "bias": jnp.zeros(WIDTH)},
    "scores": {"kernel": scores, "bias": jnp.zeros(WIDTH)},
  }
  return params, {"mean": jnp.zeros(WIDTH)}


def discriminate(params, variables, x):
  """Scores by a batch norm of the mean, whose running mean is kept."""
  y = dense(params["hidden"], x)
  mean = y.mean(0)
  after = {"mean": 0.9 * variables["mean"] + 0.1 * mean}
  return dense(params["scores"], jnp.tanh(y - mean[None])), after


def loss(params, batch, keys, judge):
  del keys
  y, _ = predict(params, batch)
  l2 = jnp.square(y - batch["y"]).mean() * params.get("scale", jnp.float32(1))
  value, gradient, variables = judge.loss_and_gradient(y)
  adversarial = with_gradient(y, WEIGHT * value, WEIGHT * gradient)
  return l2 + adversarial, {"l2": l2, "adversarial": adversarial}, Contest(batch["y"], y, variables)


def make_stage(start=0, **changes):
  rate = optax.sgd(RATES["discriminator"])
  values = {
    "name": "toy",
    "loss": loss,
    "optimizers": {name: optax.sgd(RATES[name]) for name in ("decoder", "encoder")},
    "opponent": Opponent("discriminator", init_discriminator, discriminate, rate, start),
  }
  return Stage(**values | changes)


def run(stage, steps=1, devices=8, fsdp_min_size=None, auxiliary=None, **options):
  """The state before (on the host) and after some steps, and the logs of each step."""
  mesh = make_mesh(devices=jax.devices()[:devices])
  ema = options.get("ema_decay") is not None
  shapes = abstract_state(stage, init_params, mesh, ema=ema, fsdp_min_size=fsdp_min_size)
  before = jax.device_get(initial_state(ema))
  variables = before.variables | (stage.variables() if stage.variables else {})
  state = jax.device_put(
    before.replace(variables=variables), jax.tree.map(lambda x: x.sharding, shapes)
  )
  step = jit_train_step(make_train_step(stage, **options), mesh, shapes)
  data, logs = batches(16), []
  for _ in range(steps):
    batch = place_batch(mesh, next(data))
    state, log = step(state, batch, jax.random.key(3), auxiliary or {})
    logs.append({name: float(x) for name, x in log.items()})
  return before, state, logs


@functools.cache
def initial_state(ema):
  shapes = abstract_state(make_stage(), init_params, make_mesh(), ema=ema)
  return init_state(make_stage(), init_params, jax.random.key(0), shapes)


run_once = functools.cache(lambda: run(make_stage()))


def assert_close(got, want, **tolerance):
  tolerance = {"rtol": 1e-4, "atol": 1e-6} | tolerance  # sums in another order
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


def test_a_step_is_the_generators_and_then_the_opponents():
  before, state, (logs,) = run_once()
  batch, params, own = next(batches(16)), before.params, before.variables["discriminator"]

  def of_generator(nets):
    y, _ = predict(params | nets, batch)
    scores, _ = discriminate(params["discriminator"], own, y)
    return jnp.square(y - batch["y"]).mean() - WEIGHT * scores.mean()

  def of_discriminator(net):
    fake, _ = predict(params, batch)
    real, fake = discriminate(net, own, batch["y"])[0], discriminate(net, own, fake)[0]
    return jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + fake, 0).mean()

  nets = {name: params[name] for name in ("decoder", "encoder")}
  total, gradients = jax.value_and_grad(of_generator)(nets)
  d_total, gradients["discriminator"] = jax.value_and_grad(of_discriminator)(
    params["discriminator"]
  )
  for name, gradient in gradients.items():
    want = jax.tree.map(lambda p, g, r=RATES[name]: p - r * g, params[name], gradient)
    assert_close(state.params[name], want)
    assert logs[f"grad_norm/{name}"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
  assert logs["loss"] == pytest.approx(float(total), rel=1e-5)
  assert logs["opponent_real"] + logs["opponent_fake"] == pytest.approx(float(d_total), rel=1e-5)
  # Three passes: the output for the generator, the truth, the output.
  fake, _ = predict(params, batch)
  for x in (fake, batch["y"], fake):
    _, own = discriminate(params["discriminator"], own, x)
  assert_close(state.variables["discriminator"], own)


def test_the_opponent_waits_for_its_start():
  before, state, logs = run(make_stage(start=2), steps=3)
  for log in logs[:2]:
    for name in ("adversarial", "opponent_real", "opponent_fake", "grad_norm/discriminator"):
      assert log[name] == 0
    assert log["loss"] == log["l2"]
  assert 0 not in logs[2].values()
  # One step of it has been made, from where it had started.
  _, other, _ = run_once()
  start = before.params["discriminator"]
  moved, first = (
    max(
      float(np.abs(np.subtract(a, b)).max())
      for a, b in zip(*map(jax.tree.leaves, pair), strict=True)
    )
    for pair in ((state.params["discriminator"], start), (other.params["discriminator"], start))
  )
  assert 0 < moved < 3 * first


run_many = functools.cache(lambda: run(make_stage(start=1), steps=4, ema_decay=0.9, clip_norm=0.5))


@pytest.mark.parametrize(
  "options",
  [{"devices": 1}, {"fsdp_min_size": 64}],
  ids=["one_device", "split_params"],
)
def test_devices_do_not_change_it(options):
  """Batch statistics are those of the global batch."""
  _, want, want_logs = run_many()
  _, got, logs = run(make_stage(start=1), steps=4, ema_decay=0.9, clip_norm=0.5, **options)
  assert_close(jax.device_get(got), jax.device_get(want))
  assert logs[-1] == pytest.approx(want_logs[-1], rel=1e-4)
  if "fsdp_min_size" in options:
    kernel = got.params["discriminator"]["hidden"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(1, 8)}


def test_the_average_is_of_the_generator_and_gradients_are_clipped_apart():
  before, state, logs = run(make_stage(), ema_decay=0.9, clip_norm=1e-2)
  assert set(state.ema) == {"decoder", "encoder"}
  assert set(state.opt_state) == {"decoder", "encoder", "discriminator"}
  for names in (("decoder", "encoder"), ("discriminator",)):
    moved = [
      jax.tree.map(
        lambda a, b, r=RATES[name]: (np.asarray(a) - b) / r, state.params[name], before.params[name]
      )
      for name in names
    ]
    assert float(optax.tree.norm(moved)) == pytest.approx(1e-2, rel=1e-3)
  assert logs[0]["grad_norm/discriminator"] > 1e-2


def test_micro_batches_pass_their_statistics_on():
  before, state, (logs,) = run(make_stage(), accumulate=2)
  batch, params = next(batches(16)), before.params
  own, grads = before.variables["discriminator"], []
  for i in range(2):
    part = {name: x[i::2] for name, x in batch.items()}
    fake, _ = predict(params, part)
    _, own = discriminate(params["discriminator"], own, fake)

    def hinge(net, part=part, fake=fake, own=own):
      real, fake = discriminate(net, own, part["y"])[0], discriminate(net, own, fake)[0]
      return jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + fake, 0).mean()

    grads.append(jax.grad(hinge)(params["discriminator"]))
    for x in (part["y"], fake):
      _, own = discriminate(params["discriminator"], own, x)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
  assert logs["grad_norm/discriminator"] == pytest.approx(float(optax.tree.norm(mean)), rel=1e-4)
  assert_close(state.variables["discriminator"], own)


def test_networks_that_only_the_loss_uses_are_inputs_and_no_state():
  _, plain, plain_logs = run_once()
  _, state, logs = run(make_stage(), auxiliary={"scale": jnp.float32(2)})
  assert set(state.params) == set(plain.params)
  assert logs[0]["l2"] == pytest.approx(2 * plain_logs[0]["l2"], rel=1e-5)


def test_adjust_comes_after_the_update():
  def adjust(params, variables):
    bias = jnp.full(WIDTH, variables["count"]["n"])
    params = params | {"decoder": params["decoder"] | {"bias": bias}}
    return params, variables | {"count": {"n": variables["count"]["n"] + 1}}

  stage = make_stage(variables=lambda: {"count": {"n": jnp.float32(5)}}, adjust=adjust)
  _, state, _ = run(stage, steps=2)
  assert float(state.params["decoder"]["bias"][0]) == 6
  assert float(state.variables["count"]["n"]) == 7


def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(tmp_path):
  stage = make_stage(start=1)
  options = {"steps": 4, "log_every": 2, "checkpoint_every": 3, "evaluate_every": 1}
  options |= {"ema_decay": 0.9, "clip_norm": 0.5, "accumulate": 2, "fsdp_min_size": 64}

  def interrupted(params, step):
    if step == 2:
      signal.raise_signal(signal.SIGTERM)
    return {"zero": 0.0}

  whole, parts = tmp_path / "whole", tmp_path / "parts"
  want = fit(stage, init_params, batches(16), workdir=whole, **options)
  with pytest.raises(Terminated):
    fit(stage, init_params, batches(16), workdir=parts, evaluate=interrupted, **options)
  assert read_meta(parts)["step"] == 2
  got = fit(stage, init_params, batches(16), workdir=parts, **options)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert np.abs(got.variables["discriminator"]["mean"]).max() > 0
  assert set(read_meta(parts)["arrays"]["variables"]) == {"discriminator/mean"}


def test_an_opponent_that_is_not_finite_is_named(tmp_path):
  batch = next(batches(8))
  with pytest.raises(UserError, match=r"step 1 is not finite \(.*opponent_real"):
    fit(
      make_stage(), init_params, Listed([batch | {"y": np.full_like(batch["y"], np.nan)}] * 2),
      workdir=tmp_path, steps=2,
    )  # fmt: skip


def test_adaptive_weight():
  one, two = jnp.full(4, 0.5), jnp.full(4, 1.0)
  assert float(adaptive_weight(one, two)) == pytest.approx(1 / (2 + 1e-4))
  assert float(adaptive_weight(two, one)) == 1
  assert float(adaptive_weight(one, jnp.zeros(4), 1e9)) == pytest.approx(1e4)
  assert float(adaptive_weight(jnp.zeros(4), one)) == 0
