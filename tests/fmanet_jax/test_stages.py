"""The stages' losses and schedules; test_parity.py has their values against the released code."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmanet_jax import stages
from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, param_shapes
from tests.fmanet_jax import golden
from tests.support.fmanet import SMALLEST, TINY, load
from tests.support.programs import scopes
from vsr_jax import losses
from vsr_jax.train.schedules import step_schedule

WEIGHTS_D = {"recon": 1.0, "hr_warp": 0.1, "flow": 1e-4, "anchor_d": 0.1}
JOINT_WEIGHTS = WEIGHTS_D | {"restoration": 1.0, "lr_warp": 0.1, "anchor_r": 0.1}
FLOW_TERMS = {"hr_warp", "flow", "lr_warp"}  # terms that need an image flow


@functools.cache
def shapes(arch: Architecture, b=2, h=6, w=8):
  """Abstract params and batch."""
  t, s = arch.frames, arch.scale
  params = param_shapes(FMANet(arch))
  batch = {
    "blurry": jax.ShapeDtypeStruct((b, t, h, w, 3), jnp.uint8),
    "sharp": jax.ShapeDtypeStruct((b, t, s * h, s * w, 3), jnp.uint8),
    "sharp_lr": jax.ShapeDtypeStruct((b, t, h, w, 3), jnp.uint8),
    "flow": jax.ShapeDtypeStruct((b, t, h, w, 2), jnp.float32),
  }
  return params, batch


@pytest.mark.parametrize(
  ("name", "dtype", "filtering"),
  [
    ("degradation", jnp.float32, "flow_guided"),
    ("degradation", jnp.bfloat16, "conventional"),
    ("joint", jnp.bfloat16, "flow_guided"),
    ("end_to_end", jnp.float32, "conventional"),
  ],
)
def test_terms_of_a_stage(name, dtype, filtering):
  weights = WEIGHTS_D if name == "degradation" else JOINT_WEIGHTS
  arch = dataclasses.replace(SMALLEST, filtering=filtering)
  stage = stages.make_stage(name, FMANet(arch, dtype), weights, {})
  params, batch = shapes(arch)
  loss = jax.value_and_grad(lambda params, batch: stage.loss(params, batch, {}), has_aux=True)
  program, ((total, terms), gradient) = jax.make_jaxpr(loss, return_shape=True)(params, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), gradient) == jax.tree.map(
    lambda x: (x.shape, x.dtype), params
  )
  assert (total.shape, total.dtype) == ((), jnp.float32)
  assert terms.keys() == weights.keys() - (FLOW_TERMS if filtering == "conventional" else set())
  assert {(x.shape, x.dtype) for x in terms.values()} == {((), jnp.dtype(jnp.float32))}
  if filtering == "flow_guided":  # what a trace of the run shows by name
    names = {"NetD.align", "frma_0", "warp", "filter_down", "l1"}
    names |= {"NetR.align", "filter_up"} if name == "joint" else set()
    assert scopes(program) >= names


@pytest.mark.slow
def test_rematerialised_blocks_change_no_gradient():
  (_, params), rng = load(TINY), np.random.default_rng(0)
  scales = {jnp.dtype(jnp.uint8): 255, jnp.dtype(jnp.float32): 1}
  batch = {
    name: (scales[x.dtype] * rng.random(x.shape)).astype(x.dtype)
    for name, x in shapes(TINY)[1].items()
  }

  def gradient(remat):
    stage = stages.make_stage("joint", FMANet(TINY, remat=remat), JOINT_WEIGHTS, {})
    gradient = jax.grad(lambda params: stage.loss(params, batch, {})[0])
    return str(jax.make_jaxpr(gradient)(params)), golden.jit(gradient)(params)

  (plain, want), (program, got) = gradient(False), gradient(True)
  by_net = [TINY.rdb_blocks + TINY.frma_blocks * (n + TINY.attention_blocks) for n in (1, 2)]
  assert (plain.count("remat2["), program.count("remat2[")) == (0, sum(by_net))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, want)


@pytest.mark.parametrize("name", ["degradation", "joint"])
def test_panels(name):
  stage = stages.make_stage(name, FMANet(SMALLEST), JOINT_WEIGHTS, {})
  columns = jax.eval_shape(stage.images, *shapes(SMALLEST))
  small, large = (2, 6, 8, 3), (2, 12, 16, 3)
  expected = {"input": small, "reconstruction": small, "output": large, "truth": large}
  if name == "degradation":
    del expected["output"]
  assert {title: x.shape for title, x in columns.items()} == expected


def test_total_is_the_sum_of_the_weighted_terms():
  terms = {"recon": jnp.float32(3), "flow": jnp.float32(50)}
  total, weighted = stages._total(terms, {"recon": 2.0, "flow": 0.0})
  assert weighted == {"recon": 6, "flow": 0}
  assert total == 6


def test_images_are_brought_to_the_unit_range():
  x = stages.to_unit(np.array([0, 51, 255], np.uint8))
  assert x.dtype == jnp.float32
  np.testing.assert_allclose(x, [0, 0.2, 1], rtol=1e-6)


def test_l1_is_a_mean_in_float32():
  x = jnp.full((64, 64), 0.5, jnp.bfloat16)
  y = jnp.full((64, 64), 0.25)
  assert losses.l1(x, y) == 0.25  # a sum of 4096 halves would not fit bfloat16
  assert losses.l1(y, x) == 0.25


def test_schedule():
  schedule = step_schedule(0.8, (10, 20, 20), factor=0.5)
  assert [float(schedule(step)) for step in (0, 9, 10, 19, 20, 1000)] == pytest.approx(
    [0.8, 0.8, 0.4, 0.4, 0.1, 0.1]
  )
  faster = step_schedule(0.8, (10, 20), start=4, speed=2)
  assert [float(faster(step)) for step in (0, 2, 3, 7, 8)] == pytest.approx(
    [0.8, 0.8, 0.4, 0.4, 0.2]
  )
  assert float(step_schedule(0.8, ())(10**6)) == pytest.approx(0.8)
  traced = jax.jit(schedule)(jnp.int32(10))
  assert (traced.dtype, float(traced)) == (jnp.float32, pytest.approx(0.4))


def test_networks_are_trained_by_their_own_rates():
  rates = {net: step_schedule(lr, ()) for net, lr in (("net_d", 1e-3), ("net_r", 1e-2))}
  stage = stages.make_stage("joint", FMANet(TINY), JOINT_WEIGHTS, rates)
  assert stage.optimizers.keys() == stage.schedules.keys() == rates.keys()
  for net, rate in (("net_d", 1e-3), ("net_r", 1e-2)):
    adam, weight = stage.optimizers[net], jnp.ones(3)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer
      change, _ = adam.update(jnp.array([5.0, -2.0, 1e-3]), adam.init(weight))
    # Adam's first step has the size of the rate, whatever the gradient's.
    np.testing.assert_allclose(change, [-rate, rate, -rate], rtol=1e-4)
