"""Every stage end to end: the smoke recipe made smaller, on faces on disk, over eight devices."""

from __future__ import annotations

import json
import math
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from keep_jax import initialise, panels, stages, streaming, train
from keep_jax.architecture import Architecture
from keep_jax.model import KEEP, param_shapes
from tests.keep_jax import training
from tests.keep_jax.training import SIZE, make_recipe, quick_init
from tests.support import programs
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.sharding import make_mesh, place_batch, replicated
from vsr_jax.train.checkpoints import Checkpoints
from vsr_jax.train.state import abstract_state, init_state
from vsr_jax.train.step import jit_train_step, make_train_step

# What each stage of the chain shows beside what all show.
CHAIN = {
  "vqgan": {"loss.adaptive": True, "train.restart_below": 0.1},
  "prediction": {"train.clip_norm": 1.0, "data.validation": ""},  # as the next one has
  "fusion": {"train.fsdp_min_size": 1024, "train.best": "psnr"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return training.write_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
  """Every start is quick, and nobody's LPIPS weights are found."""
  with pytest.MonkeyPatch.context() as patch:
    training.start_quickly(patch)
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="module")
def recorded():
  """The text of each stage's step, from `runs`."""
  return {}


@pytest.fixture(scope="module")
def runs(data, quick, recorded, tmp_path_factory):
  """A run of two steps of each stage, the next one from the one before."""
  root, start = tmp_path_factory.mktemp("runs"), ""
  for stage, changes in CHAIN.items():
    with programs.recording_steps() as steps:
      train.train(make_recipe(stage, data, init_from=start, **changes), str(root / stage))
    (recorded[stage],) = steps
    start = str(root / stage)
  return {stage: root / stage for stage in CHAIN}


def rows(workdir):
  log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != "seconds"} for row in log]


def networks(table):
  return {name.partition("/")[0] for name in table}


@pytest.mark.parametrize(
  "stage", ["vqgan", "fusion", pytest.param("prediction", marks=pytest.mark.slow)]
)
def test_a_resumed_run_equals_an_uninterrupted_one(stage, runs, data, tmp_path, monkeypatch):
  monkeypatch.setattr(panels, "make_images", lambda *_: None)  # which takes time
  halves = shutil.copytree(runs[stage], tmp_path / "halves")
  shutil.rmtree(halves / "checkpoints" / "2")  # as if killed while step 2 was saved
  changes = CHAIN[stage] | {"data.validation": "", "init_from": "not read again"}
  train.train(make_recipe(stage, data, **changes), str(halves))
  # Checksums of every array: params, their average, moments, variables.
  assert read_meta(halves)["sums"] == read_meta(runs[stage])["sums"]
  steps, again = ([x for x in rows(run) if "loss" in x] for run in (runs[stage], halves))
  assert steps == again
  assert [row["step"] for row in steps] == [1, 2]
  assert all(math.isfinite(x) for row in rows(runs[stage]) for x in row.values())


@pytest.mark.parametrize("stage", ["vqgan", "prediction"])
def test_devices_exchange_gradients_only(stage, runs, recorded, data):
  plan = train.make_plan(make_recipe(stage, data, **CHAIN[stage]), 8)
  programs.assert_gradients_alone_are_exchanged(recorded[stage], plan)


@pytest.mark.parametrize("stage", CHAIN)
def test_what_is_only_compiled_is_what_trains(stage, data):
  config = make_recipe(stage, data)
  plan = train.make_plan(config, 8)
  streams = open_clips(config.data.root, streams=(SHARP,), num_frames=2).clips
  batch = train.training_set(config, streams, range(config.data.batch))[0]
  assert {name: (x.shape, x.dtype) for name, x in plan.batch.items()} == {
    name: (x.shape, x.dtype) for name, x in batch.items()
  }


@pytest.fixture
def halfway(runs, data, tmp_path, monkeypatch):
  """A run of stage I that was stopped after its first step, and its recipe."""
  monkeypatch.setattr(panels, "make_images", lambda *_: None)
  halves = shutil.copytree(runs["vqgan"], tmp_path / "halves")
  shutil.rmtree(halves / "checkpoints" / "2")
  return halves, make_recipe("vqgan", data, **CHAIN["vqgan"], **{"data.validation": ""})


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(halfway, run_main, monkeypatch):
  halves, config = halfway

  def full(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: writing failed: No space left on device [source: x]")

  monkeypatch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", full)
  said = run_main(lambda: train.train(config, str(halves)), code=2).err.splitlines()
  want = f"error: no space left on the disk while writing {halves}/checkpoints/2; free some and"
  assert said[-1].startswith(want)
  assert sum(line.startswith("error") for line in said) == 1
  assert [path.name for path in (halves / "checkpoints").iterdir()] == ["1"]


@pytest.mark.slow  # tests/vsr_jax/train/test_opponent.py shows it of a smaller one
def test_an_opponent_that_is_not_finite_is_named(halfway, run_main):
  halves, config = halfway
  model = KEEP(Architecture(**config.model))
  stage, init = train.stage_from_config(model, config), train.initialiser(model, config)
  shapes = abstract_state(stage, init, make_mesh(), ema=True)
  with Checkpoints(halves) as checkpoints:
    state, position, meta = checkpoints.restore(shapes)
    shutil.rmtree(halves / "checkpoints" / "1")
  with Checkpoints(halves) as checkpoints:
    spoilt = jax.tree.map(lambda x: 1e30 * x, state.params["discriminator"])
    state = state.replace(params=state.params | {"discriminator": spoilt})
    meta = {name: meta[name] for name in ("model", "config", "stage", "log")}
    checkpoints.save(state, 1, data=position, meta=meta)
  said = run_main(lambda: train.train(config, str(halves)), code=2).err.splitlines()
  assert said[-1].startswith("error: step 2 is not finite (")
  assert "opponent_real" in said[-1]
  assert f"the last checkpoint is {halves}/checkpoints/1: lower the learning rate" in said[-1]


@pytest.mark.parametrize("stage", CHAIN)
def test_only_what_is_trained_changes_and_has_moments(runs, stage):
  first, last = (read_meta(runs[stage] / "checkpoints" / step) for step in "12")
  trained = set(stages.TRAINED[stage])
  own = {"discriminator"} if stage in stages.OPPOSED else set()
  assert networks(last["arrays"]["opt_state"]) == trained | own
  assert networks(last["arrays"]["ema"]) == trained
  before, after = first["sums"]["params"], last["sums"]["params"]
  assert networks(name for name in before if before[name] != after[name]) == trained | own
  assert networks(last["arrays"].get("variables", {})) == own | (
    {"codes"} if stage == "vqgan" else set()
  )


def test_the_next_stage_starts_from_the_average(runs):
  one, two, three = (read_meta(runs[stage])["sums"] for stage in CHAIN)
  frozen = [name for name in one["ema"] if name.partition("/")[0] in stages.TRAINED["vqgan"]]
  assert len(frozen) > 20
  for name in frozen:
    assert two["params"][name] == one["ema"][name] == three["params"][name]
  assert any(one["ema"][name] != one["params"][name] for name in frozen)
  for name in two["ema"]:
    assert three["params"][name] == two["ema"][name]
  # Both encoders begin as stage I's: of two steps at 2e-4.
  encoders = restore_params(runs["prediction"])
  for a, b in zip(*(jax.tree.leaves(encoders[n]) for n in ("encoder", "hq_encoder")), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-4)


def test_rows_have_the_terms_and_the_validation(runs):
  (_, row, score), second, (_, third, restored) = (rows(runs[stage]) for stage in CHAIN)
  terms = {"pixel", "codebook", "adversarial", "adversarial_weight"}
  opponent = {"opponent_real", "opponent_fake", "grad_norm/discriminator"}
  assert row.keys() >= terms | opponent | {"codes_used", "perplexity"}
  assert second[1].keys() >= {"code", "cross_entropy", "codes_right", "gain"}
  assert third.keys() >= {"pixel", "temporal", "adversarial", "gain"} | opponent
  # There are no weights for LPIPS.
  assert score.keys() == restored.keys() == {"step", "evaluation/psnr"}


def test_the_runs_restore(runs):
  frames = np.stack(training.moving(3, SIZE, SIZE))
  for stage in ("prediction", "fusion"):
    model, params = streaming.load(runs[stage])
    assert bool(model.arch.cft) == (stage == "fusion")
    restorer = streaming.Restorer(model, params, window=3, look_ahead=1)
    out = np.stack(list(restorer.stream(frames)))
    assert (out.shape, out.dtype) == (frames.shape, np.uint8)


def test_without_a_filter_the_first_stages_encoder_gives_the_codes(runs, data):
  """It is an input of the step, and no part of the run."""
  start = str(runs["vqgan"])
  config = make_recipe("prediction", data, init_from=start, **{"model.gain": "none"})
  model = KEEP(Architecture(**config.model))
  params, auxiliary = train._start(config, model, "new")
  want = restore_params(start)["hq_encoder"]
  for got in (auxiliary["hq_encoder"], params["encoder"]):
    jax.tree.map(np.testing.assert_array_equal, got, want)
  assert auxiliary.keys() == {"hq_encoder"}
  assert params.keys() == {"encoder", "codebook", "generator"}


def one_step(config, devices=8):
  """Logs, the state after a step from random params on random images, and the step's program."""
  model = KEEP(Architecture(**config.model), jax.numpy.dtype(config.dtype), config.train.remat)
  stage, mesh = train.stage_from_config(model, config), make_mesh(devices=jax.devices()[:devices])
  names = stages.TRAINED["vqgan"] if config.stage == "vqgan" else param_shapes(model)

  def init(key):
    return {name: quick_init(model, key)[name] for name in names}

  rng, batch, frames = np.random.default_rng(0), config.data.batch, config.data.frames
  sides = {"gt": SIZE} if config.stage == "vqgan" else {"gt": SIZE, "lq": SIZE // 4}
  lead = (batch,) if config.stage == "vqgan" else (batch, frames)
  images = {name: rng.integers(0, 256, (*lead, x, x, 3), np.uint8) for name, x in sides.items()}
  ema, split = config.train.ema_decay, config.train.fsdp_min_size
  shapes = abstract_state(stage, init, mesh, ema=True, fsdp_min_size=split)
  state = init_state(stage, init, jax.random.key(0), shapes)
  step = make_train_step(stage, accumulate=config.train.accumulate, ema_decay=ema)
  inputs = state, place_batch(mesh, images), jax.device_put(jax.random.key(1), replicated(mesh)), {}
  # JAX lowers a product of float32 and bfloat16, as in attention's gradient, by promoting both.
  with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
    program = jit_train_step(step, mesh, shapes).lower(*inputs).compile()
  state, logs = program(*inputs)
  return jax.device_get(logs), state, program.as_text()


def assert_close(got, want, rtol=1e-3):
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=rtol, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vqgan", "fusion"])
def test_devices_share_a_step_and_the_opponent(stage, data):
  changes = {"discriminator.start": 0, "loss.adaptive": True, "train.restart_below": 0.1}
  config = make_recipe(stage, data, **changes | {"train.fsdp_min_size": 512})
  logs, state, program = one_step(config)
  assert "all-reduce(" in program
  kernel = jax.tree.leaves(state.params["discriminator"])
  assert any(not x.sharding.is_fully_replicated for x in kernel)
  config.train.fsdp_min_size = None
  alone, alone_state, _ = one_step(config, devices=1)
  assert logs["grad_norm/discriminator"] > 0
  assert_close(logs, alone)
  # Adam's first moment is a tenth of the gradient; sums over devices are rounded otherwise.
  pairs = (state.opt_state, alone_state.opt_state), (state.variables, alone_state.variables)
  for got, want in pairs:
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
      a, b = np.asarray(a), np.asarray(b)
      np.testing.assert_allclose(a, b, rtol=5e-3, atol=2e-5 * max(np.abs(b).max(), 1e-3))


@pytest.fixture(scope="module")
def whole_step(data):
  """A step of all losses, of 16 clips."""
  config = make_recipe("end_to_end", data, **{"discriminator.start": 0, "data.batch": 16})
  logs, _, program = one_step(config)
  programs.assert_gradients_alone_are_exchanged(program, train.make_plan(config, 8))
  return config, logs


@pytest.mark.slow
@pytest.mark.parametrize(
  ("change", "rtol"),
  [({"train.remat": True}, 1e-3), ({"train.accumulate": 2}, 1e-3), ({"dtype": "bfloat16"}, 0.1)],
  ids=["remat", "accumulate", "bfloat16"],
)
def test_what_saves_memory_changes_no_loss(change, rtol, whole_step):
  config, want = whole_step
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(change)
  logs, state, _ = one_step(config)
  terms = {"loss", "pixel", "temporal", "code", "cross_entropy", "gain", "opponent_fake"}
  assert want.keys() >= terms | {"codes_right"}
  assert_close({x: logs[x] for x in terms}, {x: want[x] for x in terms}, rtol)
  assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"float32"}


@pytest.mark.slow
def test_both_stages_in_one(runs, data, tmp_path):
  config = make_recipe("end_to_end", data, init_from=str(runs["vqgan"]), steps=1)
  train.train(config, str(tmp_path / "run"))
  trained = {"encoder", "gain", "code_predictor", "cft", "cfa"}
  assert networks(read_meta(tmp_path / "run")["arrays"]["ema"]) == trained
  row, _ = rows(tmp_path / "run")
  assert row.keys() >= {"code", "cross_entropy", "pixel", "temporal", "adversarial"}
  streaming.load(tmp_path / "run")


@pytest.mark.slow
def test_without_a_filter(runs, data, tmp_path):
  """The codes are by an encoder that is no part of the run, the motion by the flow that ships."""
  changes, start = {"model.gain": "none", "train.checkpoint_every": 1}, str(runs["vqgan"])
  config = make_recipe("prediction", data, init_from=start, **changes)
  for steps in (1, 2):  # the encoder is read again
    config.steps = steps
    train.train(config, str(tmp_path / "two"))
  assert networks(read_meta(tmp_path / "two")["arrays"]["params"]) == {
    "encoder", "codebook", "generator", "code_predictor"
  }  # fmt: skip
  config = make_recipe("fusion", data, init_from=str(tmp_path / "two"), steps=1, **changes)
  config.loss.temporal_flow = "raft_small"
  train.train(config, str(tmp_path / "three"))
  assert "flow" not in networks(read_meta(tmp_path / "three")["arrays"]["params"])
  assert streaming.load(tmp_path / "three")[0].arch.gain == "none"


@pytest.mark.slow
def test_the_start_of_fusion_as_released(runs, data, tmp_path, monkeypatch):
  """Only the last biases and the norms learn."""
  monkeypatch.setattr(train, "start_params", initialise.start_params)
  changes = {"train.fusion_start": "as_released", "data.validation": "", "steps": 1}
  config = make_recipe("fusion", data, init_from=str(runs["prediction"]), **changes)
  train.train(config, str(tmp_path / "run"))
  params = restore_params(tmp_path / "run", ema=False)
  flat = traverse_util.flatten_dict({name: params[name] for name in ("cft", "cfa")}, sep="/")
  moved = {name for name, x in flat.items() if name.endswith("kernel") and np.abs(x).max() > 0}
  assert moved == set()
  assert any(np.abs(x).max() > 0 for name, x in flat.items() if name.endswith("bias"))
