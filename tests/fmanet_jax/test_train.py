"""Both stages end to end: a real recipe made small, on clips on disk, over all eight devices."""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fmanet_jax import train
from fmanet_jax.model import param_shapes
from tests.data_prep.helpers import write_clip_set, write_flow
from tests.support.programs import (
  assert_gradients_alone_are_exchanged,
  random_params,
  recording_steps,
)
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.configs.fmanet import demo
from vsr_jax.data_prep import opening
from vsr_jax.data_prep.clip import Clip
from vsr_jax.errors import UserError
from vsr_jax.sharding import make_mesh, place_batch, replicated
from vsr_jax.train.state import abstract_state, init_state
from vsr_jax.train.step import jit_train_step, make_train_step

ROOT = pathlib.Path(__file__).parents[2]

SMALL = {
  "model.dim": 6,
  "model.kernel_down": 4,
  "model.kernel_up": 1,
  "model.flows": 1,
  "model.frma_blocks": 1,
  "model.rdb_blocks": 1,
  "model.attention_blocks": 1,
  "model.growth": 2,
  "model.dense_layers": 1,
  "model.heads": 1,
  "data.crop": 8,
  "data.batch": 8,
  "data.workers": 0,
  "train.log_every": 1,
  "train.image_every": 2,
  "train.evaluate_every": 2,
  "train.checkpoint_every": 2,
  "train.evaluate_windows": 8,
}


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  lengths = {"alley": 6, "beach": 8}
  write_clip_set(root, lengths)
  for name, length in lengths.items():
    write_flow(root, name, length, 3, 1)
  return root


def recipe(stage, data, steps, **changes):
  config = demo.get_config(stage)
  changes = {"steps": steps, "data.root": str(data), "data.validation": str(data)} | changes
  config.update_from_flattened_dict(SMALL | changes)
  return config


def rows(workdir):
  log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != "seconds"} for row in log]


def params_of(workdir):
  meta = read_meta(workdir)
  model = train.FMANet(train.Architecture(**meta["model"]))
  return restore_params(workdir, param_shapes(model))


def quick_init(model, key):
  """Instead of `init_params`, which takes longer to compile than a training step."""
  return random_params(param_shapes(model))


@pytest.fixture(scope="module")
def recorded():
  """The text of each stage's step, from `runs`."""
  return {}


@pytest.fixture(scope="module")
def runs(clip_set, recorded, tmp_path_factory):
  """Of each stage, a run of four steps; of the second, one taken up again after two of them."""
  root = tmp_path_factory.mktemp("runs")
  found = {}
  for stage in ("degradation", "joint"):
    whole = root / f"{stage}_whole"
    start = {} if stage == "degradation" else {"init_from": str(root / "degradation_whole")}
    with pytest.MonkeyPatch.context() as patch, recording_steps() as steps:
      if stage == "joint":
        patch.setattr(train, "init_params", quick_init)
      train.train(recipe(stage, clip_set, 4, **start), str(whole))
    found[stage] = whole
    recorded[stage] = steps[0]
  halves = found["joint_halves"] = root / "joint_halves"
  shutil.copytree(whole, halves)
  shutil.rmtree(halves / "checkpoints" / "4")  # as if killed while step 4 was saved
  train.train(recipe("joint", clip_set, 4, **start), str(halves))
  return found


def test_devices_exchange_gradients_only(runs, recorded, clip_set):
  plan = train.make_plan(recipe("joint", clip_set, 4), 8)
  assert_gradients_alone_are_exchanged(recorded["joint"], plan)


def test_what_is_only_compiled_is_what_trains(clip_set):
  config = recipe("joint", clip_set, 4)
  plan = train.make_plan(config, 8)
  clips = opening.open_clips(clip_set, num_frames=3, need_flow=True).clips
  batch = train._training_set(config, clips, True, range(config.data.batch))[0]
  assert {name: (x.shape, x.dtype) for name, x in plan.batch.items()} == {
    name: (x.shape, x.dtype) for name, x in batch.items()
  }
  config.loss.flow = 0.0
  assert "flow" not in train.make_plan(config, 8).batch


@pytest.mark.parametrize("parts", [{"data.batch": 12}, {"train.accumulate": 2}])
def test_a_batch_that_devices_do_not_divide_is_not_compiled(parts, clip_set):
  with pytest.raises(
    UserError, match=r"data.batch = \d+: must be a multiple of \d+, the 8 devices"
  ):
    train.make_plan(recipe("joint", clip_set, 4, **parts), 8)


def test_a_resumed_run_equals_an_uninterrupted_one(runs):
  whole, halves = runs["joint"], runs["joint_halves"]
  jax.tree.map(np.testing.assert_array_equal, params_of(whole), params_of(halves))
  steps, resumed = ([row for row in rows(run) if "loss" in row] for run in (whole, halves))
  assert steps == resumed


@pytest.mark.parametrize("stage", ["degradation", "joint"])
def test_steps_and_evaluations_are_logged(runs, stage):
  steps = [row for row in rows(runs[stage]) if "loss" in row]
  assert [row["step"] for row in steps] == [1, 2, 3, 4]
  assert all(math.isfinite(row["loss"]) for row in steps)
  scores = [row["evaluation/psnr"] for row in rows(runs[stage]) if "evaluation/psnr" in row]
  assert len(scores) == 2
  assert all(math.isfinite(score) for score in scores)


def test_the_joint_stage_starts_from_the_degradation_stage(runs):
  first, second = (params_of(runs[stage]) for stage in ("degradation", "joint"))
  distance = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first["net_d"], second["net_d"])
  # Four steps of at most about 1e-3; the initialisation is up to 0.4 away.
  assert 0 < max(jax.tree.leaves(distance)) < 0.01


def test_net_r_starts_anew_in_the_joint_stage(runs, clip_set, capsys):
  """Stage 1 stores an untrained Net^R, which may be of another ablation and has its seed."""
  start = {"init_from": str(runs["degradation"]), "model.modulation": "sft"}
  config = recipe("joint", clip_set, 1, **start)
  model = train.FMANet(train.Architecture(**config.model))
  assert train._starting_params(config, model, "new").keys() == {"net_d"}
  said = capsys.readouterr().out
  assert said == f"net_d: from {runs['degradation']}\nnet_r: from scratch\n"
  config.init_from = ""
  assert train._starting_params(config, model, "new") is None
  assert capsys.readouterr().out == "net_d: from scratch\nnet_r: from scratch\n"
  config.init_from = str(runs["joint"])
  with pytest.raises(UserError, match="not the weights of this model"):
    train._starting_params(config, model, "new")
  config.model.modulation = "degradation_attention"
  model = train.FMANet(train.Architecture(**config.model))
  assert train._starting_params(config, model, "new").keys() == {"net_d", "net_r"}


def test_a_run_killed_in_its_first_save_starts_from_the_same_weights(runs, clip_set, tmp_path):
  config = recipe("joint", clip_set, 1, init_from=str(runs["degradation"]))
  model = train.FMANet(train.Architecture(**config.model))
  (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
  assert train._starting_params(config, model, str(tmp_path)).keys() == {"net_d"}
  (tmp_path / "checkpoints" / "1").mkdir()
  assert train._starting_params(config, model, str(tmp_path)) is None


def test_devices_without_samples_are_refused(clip_set, tmp_path):
  config = recipe("degradation", clip_set, 2, **{"train.accumulate": 2})
  with pytest.raises(UserError, match="data.batch = 8: must be a multiple of 16, the 8 devices"):
    train.train(config, str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "change", [{"model.frames": 1}, {"model.filtering": "conventional"}, {"loss.flow": 0.0}]
)
def test_models_without_flow_between_frames_need_no_labels(change, tmp_path):
  write_clip_set(tmp_path / "data", {"alley": 6, "beach": 8})
  config = recipe("joint", tmp_path / "data", 1, **change, **{"data.validation": ""})
  train.train(config, str(tmp_path / "run"))
  (row,) = (row for row in rows(tmp_path / "run") if "loss" in row)
  assert math.isfinite(row["loss"])
  assert ("flow" in row) == ("model.frames" in change)


def test_other_training_data_are_refused_on_resuming(runs, clip_set, tmp_path_factory):
  other = tmp_path_factory.mktemp("other")
  write_clip_set(other, {"alley": 6, "beach": 7})
  for name, length in {"alley": 6, "beach": 7}.items():
    write_flow(other, name, length, 3, 1)
  config = recipe("degradation", clip_set, 6, **{"data.root": str(other)})
  with pytest.raises(UserError, match="of other training data"):
    train.train(config, str(runs["degradation"]))


def test_a_validation_set_smaller_than_a_batch_is_refused(clip_set, tmp_path):
  write_clip_set(tmp_path / "few", {"alley": 4})
  config = recipe("degradation", clip_set, 2, **{"data.validation": str(tmp_path / "few")})
  with pytest.raises(UserError, match="few: fewer windows than a batch of 8"):
    train.train(config, str(tmp_path / "run"))


def test_clips_shorter_than_a_window_are_refused(tmp_path, caplog):
  write_clip_set(tmp_path / "short", {"alley": 2, "beach": 1})
  with pytest.raises(UserError, match="short: no usable clip of at least 3 frames"):
    train.train(recipe("degradation", tmp_path / "short", 2), str(tmp_path / "run"))
  assert "2 clips skipped: alley (has 2 frames, a window 3); beach" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "code", "line"),
  [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 2, "terminated by SIGTERM")],
)
def test_a_signal_saves_while_workers_read(clip_set, tmp_path, number, code, line):
  workdir, change = tmp_path / "run", {k: v for k, v in SMALL.items() if k != "data.workers"}
  change |= {"data.root": clip_set, "data.workers": 2, "train.image_every": 1000}
  change |= {"steps": 10_000, "train.checkpoint_every": 10_000, "train.evaluate_every": 10_000}
  flags = [f"--config.{name}={value}" for name, value in change.items()]
  command = [sys.executable, "-m", "fmanet_jax.train", "--config", "configs/fmanet/demo.py"]
  command += ["--workdir", str(workdir), *flags]
  streams = {"stderr": subprocess.PIPE, "text": True}
  process = subprocess.Popen(command, **streams, cwd=ROOT, start_new_session=True)
  log, deadline = workdir / "log.jsonl", time.monotonic() + 300
  while not log.exists() or len(log.read_text().splitlines()) < 3:
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.1)
  os.killpg(process.pid, number)  # the workers get it, too
  said = process.communicate(timeout=120)[1]
  assert process.returncode == code, said
  assert "Traceback" not in said
  assert line in said.splitlines()[-1], said
  step = read_meta(workdir)["step"]
  assert step >= 3
  # Every step that was done is in the log.
  assert [row["step"] for row in rows(workdir) if "loss" in row] == list(range(1, step + 1))


def test_validation_reads_the_split_that_is_named(clip_set, tmp_path, monkeypatch):
  splits = []

  def open_clips(root, *, split="train", **_):
    splits.append(split)
    if len(splits) == 2:
      raise UserError("enough")
    return opening.open_clips(root, num_frames=3)

  monkeypatch.setattr(train, "open_clips", open_clips)
  with pytest.raises(UserError, match="enough"):
    train.train(recipe("degradation", clip_set, 2), str(tmp_path / "run"))
  assert splits == ["train", "test"]


def test_a_frame_that_cannot_be_read_stops_after_saving(clip_set, tmp_path, monkeypatch):
  taken = 0
  load = Clip.decode

  def decode(clip, stream, index):
    nonlocal taken
    taken += 1
    if taken > 100:  # a batch of 8 windows reads 72 frames, and three are made ahead
      raise UserError(f"{clip.label(stream, index)}: cannot be decoded")
    return load(clip, stream, index)

  config = recipe("degradation", clip_set, 50, **{"data.validation": ""})
  monkeypatch.setattr(train, "init_params", quick_init)
  # Grain runs ahead by an unknown number of batches: step 1 at least is done.
  monkeypatch.setattr(Clip, "decode", decode)
  with pytest.raises(UserError, match="cannot be decoded"):
    train.train(config, str(tmp_path / "run"))
  assert read_meta(tmp_path / "run")["step"] >= 1


def test_devices_exchange_gradients_only_and_sum_them_to_those_of_one(clip_set):
  config = recipe("degradation", clip_set, 1)
  model = train.FMANet(train.Architecture(**config.model))
  stage = train.stage_from_config(model, config)
  rng = np.random.default_rng(0)
  batch = {
    name: rng.integers(0, 256, (8, 3, side, side, 3), np.uint8)
    for name, side in (("blurry", 8), ("sharp_lr", 8), ("sharp", 32))
  }
  batch["flow"] = rng.normal(size=(8, 3, 8, 8, 2)).astype(np.float32)

  def one_step(mesh):
    init = functools.partial(quick_init, model)
    shapes = abstract_state(stage, init, mesh)
    state = init_state(stage, init, jax.random.key(0), shapes)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    inputs = state, place_batch(mesh, batch), key, {}
    with jax.set_mesh(mesh):
      step = jit_train_step(make_train_step(stage), mesh, shapes).lower(*inputs).compile()
      state, logs = step(*inputs)
    return step.as_text(), jax.device_get(state.opt_state), jax.device_get(logs)

  program, moments, logs = one_step(make_mesh())
  _, alone, logs_alone = one_step(make_mesh(devices=jax.devices()[:1]))
  for name, value in logs.items():
    np.testing.assert_allclose(value, logs_alone[name], rtol=1e-4, err_msg=name)
  # Adam's first moment is a tenth of the gradient; means over the batch are rounded otherwise.
  for got, want in zip(jax.tree.leaves(moments), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())
  assert_gradients_alone_are_exchanged(program, train.make_plan(config, 8))
