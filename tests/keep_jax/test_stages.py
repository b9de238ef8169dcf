"""The stages' losses against the released code, and what they promise beyond it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax import codebook, conversion, stages
from keep_jax.architecture import Architecture
from keep_jax.model import KEEP, param_shapes
from tests.keep_jax import golden, tiny
from tests.support.keep_discriminators import patch_discriminator_rules
from tests.support.programs import random_params
from vsr_jax import lpips
from vsr_jax.conversion import convert, to_state_dict
from vsr_jax.train.opponent import Judge, opponent_gradients

STAGE_1 = Architecture(
  image_size=64, width=32, multiples=(1, 2, 4), res_blocks=2, emb_dim=32, codes=128, cft=(), cfa=(),
  gain="none", flow="none",
)  # fmt: skip


@functools.cache
def stage_1_fixture():
  """The fixture's arrays, the model, the VQGAN's params and table, and the discriminator's."""
  with np.load(golden.PARITY / "keep_stage1.npz") as file:
    data = dict(file)
  shapes = golden.manifest("keep_stage1")
  state = golden.weights.state_dict(shapes, int(data["seed"]))

  def part(name):
    start = f"keep_stage1.{name}."
    return {key.removeprefix(start): x for key, x in state.items() if key.startswith(start)}

  model = KEEP(STAGE_1)
  table = [
    rule._replace(pattern=rule.pattern.replace("hq_encoder", "encoder"))
    for rule in conversion.rules(STAGE_1)
    if rule.path and rule.path.partition("/")[0] in ("hq_encoder", "codebook", "generator")
  ]
  template = param_shapes(model)
  template = {name: template[name] for name in ("codebook", "generator")}
  template["hq_encoder"] = param_shapes(model)["encoder"]
  params = convert(part("vqgan"), table, template, "keep_stage1")
  _, variables = golden.patch_discriminator(part("discriminator"), "keep_stage1")
  return data, model, params, table, variables["params"]


@functools.cache
def stage_1_step():
  """Total, terms, contest, gradients of both networks and the variables after a step."""
  data, model, params, _, discriminator = stage_1_fixture()
  weights = {"pixel": 1.0, "perceptual": 0.0, "codebook": 1.0, "adversarial": 0.8}
  stage = stages.make_stage(
    "vqgan", model, stages.Options(weights, adaptive=True),
    {"networks": lambda _: 0.0, "discriminator": lambda _: 0.0}, discriminator_size=(32, 4),
  )  # fmt: skip
  truth = golden.channels_last(data["input"])
  own = {"discriminator": stage.opponent.init(jax.random.key(0))[1]} | stage.variables()

  @jax.jit  # what runs backwards is slow without LLVM's optimizations
  def run(params, discriminator, own, truth):
    judge = Judge(stage.opponent, discriminator, own, jnp.int32(100))
    batch = {"gt": (truth + 1) * 127.5}

    def loss(params):
      total, terms, contest = stage.loss(params, batch, {}, judge)
      return total, (terms, contest)

    (total, (terms, contest)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return total, terms, contest, gradients, opponent_gradients(judge, contest)

  return run(params, discriminator, own, truth)


def test_stage_1_terms():
  data = stage_1_fixture()[0]
  total, terms, contest, _, _ = stage_1_step()
  assert golden.relative_error(golden.channels_first(contest.fake), data["output"]) < 1e-5
  for name in ("pixel", "codebook"):
    assert float(terms[name]) == pytest.approx(float(data[name]), rel=1e-5)
  assert float(terms["adversarial_weight"]) == pytest.approx(
    float(data["adaptive_weight"]), rel=1e-4
  )
  weighted = float(data["adaptive_weight"] * data["gan"])
  assert float(terms["adversarial"]) == pytest.approx(weighted, rel=1e-4)
  want = float(data["pixel"] + data["codebook"]) + weighted
  assert float(total) == pytest.approx(want, rel=1e-5)


def test_stage_1_gradients():
  data, _, _, table, _ = stage_1_fixture()
  _, _, _, gradients, (d_gradients, d_terms, _) = stage_1_step()
  for name in ("real", "fake"):
    got = float(d_terms[f"opponent_{name}"])
    assert got == pytest.approx(float(data[f"d_{name}"]), rel=1e-5)
  compare_norms(data, "gradnorm_g/", "vqgan", gradients, table)
  compare_norms(
    data,
    "gradnorm_d/",
    "discriminator",
    {"params": d_gradients},
    patch_discriminator_rules(),
  )


def compare_norms(data, start, part, gradients, table):
  want = {key.removeprefix(start): float(x) for key, x in data.items() if key.startswith(start)}
  shapes = {key: golden.manifest("keep_stage1")[f"keep_stage1.{part}.{key}"] for key in want}
  got = to_state_dict(jax.tree.map(np.asarray, gradients), table, shapes)
  assert len(want) > 15
  for key, norm in want.items():
    # A softmax ignores the keys' bias, and a norm the bias before it: their gradient is rounding.
    if norm > 1e-6 * max(want.values()):
      assert np.linalg.norm(got[key]) == pytest.approx(norm, rel=1e-3), key


def test_stage_1_batch_statistics():
  data = stage_1_fixture()[0]
  after = stage_1_step()[-1][2]["discriminator"]
  keys = [key for key in data if key.startswith("stats_after/")]
  shapes = {key.removeprefix("stats_after/"): data[key].shape for key in keys}
  got = to_state_dict(jax.tree.map(np.asarray, after), patch_discriminator_rules(), shapes)
  for key in keys:
    np.testing.assert_allclose(got[key.removeprefix("stats_after/")], data[key], 1e-4, 1e-6)


def test_stage_1_counts_its_codes():
  data = stage_1_fixture()[0]
  _, terms, contest, _, _ = stage_1_step()
  share = 128 * np.bincount(data["indices"].reshape(-1), minlength=128) / data["indices"].size
  use = contest.variables["codes"]["use"]
  np.testing.assert_allclose(use, 0.99 + 0.01 * share, rtol=1e-5)
  assert 127 < float(terms["perplexity"]) <= 128
  assert float(terms["codes_used"]) == 128


def test_dead_codes_restart_at_latents_of_the_batch():
  use = jnp.array([1.0, 0.001, 3.0])
  spare = jnp.arange(6.0).reshape(3, 2)
  params = {"codebook": -jnp.ones((3, 2)), "generator": {}}
  variables = {"codes": {"use": use, "spare": spare}, "discriminator": {}}
  params, variables = codebook.restart_dead_codes(0.1, params, variables)
  np.testing.assert_array_equal(params["codebook"], [[-1, -1], [2, 3], [-1, -1]])
  np.testing.assert_array_equal(variables["codes"]["use"], [1, 1, 3])


@pytest.mark.slow
def test_the_adaptive_weight_costs_less_than_a_fifth_of_the_step():
  """It needs two gradients at the last kernel, and no pass backwards of its own."""
  _, model, params, _, discriminator = stage_1_fixture()
  flops = {}
  for adaptive in (False, True):
    weights = {"pixel": 1.0, "perceptual": 0.0, "codebook": 1.0, "adversarial": 0.8}
    stage = stages.make_stage(
      "vqgan", model, stages.Options(weights, adaptive=adaptive),
      {"networks": lambda _: 0.0, "discriminator": lambda _: 0.0}, discriminator_size=(32, 4),
    )  # fmt: skip
    own = {"discriminator": stage.opponent.init(jax.random.key(0))[1]} | stage.variables()

    def gradients(params, discriminator, own, truth, stage=stage):
      judge = Judge(stage.opponent, discriminator, own, jnp.int32(0))

      def loss(params):
        total, terms, contest = stage.loss(params, {"gt": truth}, {}, judge)
        return total, (terms, contest)

      (_, (terms, contest)), got = jax.value_and_grad(loss, has_aux=True)(params)
      return got, terms, opponent_gradients(judge, contest)

    truth = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    lowered = jax.jit(gradients).lower(params, discriminator, own, truth)
    flops[adaptive] = lowered.cost_analysis()["flops"]
  assert flops[False] < flops[True] < 1.02 * flops[False]


@pytest.mark.parametrize("gain", ["none", "fixed"])
def test_stage_2_makes_frames_for_the_filter_alone(gain):
  """The frames have no gradient; only the filter predicts from them."""
  model = KEEP(tiny.change(gain=gain, cft=(), cfa=()))
  loss = stages.prediction_loss(model, stages.Options({"code": 1.0, "cross_entropy": 0.5}))
  shapes = param_shapes(model) | {"hq_encoder": param_shapes(model)["encoder"]}
  clips = {name: jax.ShapeDtypeStruct((1, 2, 32, 32, 3), jnp.uint8) for name in ("gt", "lq")}

  def gradients(train, params, clips):
    return jax.grad(lambda train: loss(params | train, clips, {})[0])(train)

  train = {name: shapes[name] for name in stages.TRAINED["prediction"]}
  program = jax.jit(gradients).lower(train, shapes, clips).as_text(debug_info=True)
  # A program has no inputs that it does not use.
  assert "params['codebook']" in program
  assert ("params['generator']" in program) == (gain == "fixed")


@pytest.mark.parametrize("double", [False, True])
def test_terms_of_images_are_weighted_l1_and_lpips(double):
  weights = {"pixel": 0.5, "perceptual": 2.0}
  options = stages.Options(weights, double_normalised=double)
  params = {"lpips": random_params(lpips.template("alexnet"))}
  a, b = (jnp.asarray(golden.channels_last(golden.inputs((2, 3, 32, 32), i))) for i in (1, 2))
  found = golden.jit(functools.partial(stages._image_terms, options))(params, a, b)
  assert float(found["pixel"]) == pytest.approx(0.5 * float(jnp.abs(a - b).mean()), rel=1e-5)
  distance = golden.jit(functools.partial(lpips.distance, double_normalised=double))
  want = 2 * float(distance(params["lpips"], a, b).mean())
  assert float(found["perceptual"]) == pytest.approx(want, rel=1e-4)
  without = stages.Options({"pixel": 0.0, "perceptual": 0.0})
  assert stages._image_terms(without, {}, a, b) == {}
