"""KEEP's trainer as two processes of four devices each, and as one of eight."""

from __future__ import annotations

import json
import signal

import jax
import pytest

from keep_jax import train
from keep_jax.architecture import Architecture
from keep_jax.model import KEEP
from tests.keep_jax import training
from tests.support import hosts
from vsr_jax.checkpoint import export_params, read_meta


def rows(workdir):
  return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def start(stage, workdir, values):
  flags = [f"--config.{name}={value}" for name, value in values.items()]
  recipe = f"configs/keep/smoke.py:{stage}"
  return hosts.start_trainers("keep_jax.train", "--config", recipe, "--workdir", workdir, *flags)


@pytest.mark.slow
def test_two_processes_train_as_one_and_sigterm_to_one_saves_on_both(tmp_path):
  data = training.write_sets(tmp_path)
  changes = {"loss.perceptual": 0.0, "train.log_every": 1, "discriminator.start": 0}
  values = training.SMALL | {"data.root": data / "train", "data.validation": data / "test"}

  values |= changes
  long = {"steps": 10_000, "train.checkpoint_every": 10_000, "train.evaluate_every": 10_000}
  processes = start("vqgan", tmp_path / "two", values | long)
  hosts.wait_for_a_step(tmp_path / "two", processes[0])
  processes[1].send_signal(signal.SIGTERM)
  for said in hosts.finish(processes, code=2):
    assert said.splitlines()[-1] == "terminated by SIGTERM"
  steps = read_meta(tmp_path / "two")["step"] + 2
  hosts.finish(start("vqgan", tmp_path / "two", values | {"steps": steps}), code=0)
  train.train(
    training.make_recipe("vqgan", data, **changes | {"steps": steps}), str(tmp_path / "one")
  )
  two, one = ({x["step"]: x for x in rows(tmp_path / x) if "loss" in x} for x in ("two", "one"))
  assert list(two) == list(one) == list(range(1, steps + 1))
  for name in ("loss", "pixel", "grad_norm/discriminator"):
    assert two[1].get(name) == pytest.approx(one[1].get(name), rel=1e-4), name
  for step, row in one.items():
    assert two[step]["loss"] == pytest.approx(row["loss"], rel=1e-2), step
  scores = [rows(tmp_path / x)[-1]["evaluation/psnr"] for x in ("two", "one")]
  assert scores[0] == pytest.approx(scores[1], abs=0.05)


@pytest.mark.slow
def test_two_processes_train_clips_and_an_opponent_as_one(tmp_path):
  data = training.write_sets(tmp_path)
  changes = {"discriminator.start": 0, "data.validation": "", "init_from": str(tmp_path / "start")}
  recipe = training.make_recipe("fusion", data, **changes)
  params = training.quick_init(KEEP(Architecture(**recipe.model)))
  params = {name: net for name, net in params.items() if jax.tree.leaves(net)}  # no flow network
  export_params(changes["init_from"], params, {})
  sizes = dict.fromkeys(("model.cft", "model.cfa"), (training.SIZE,))
  values = training.SMALL | sizes | {"data.root": data / "train"} | changes
  processes = start("fusion", tmp_path / "two", values)
  train.train(recipe, str(tmp_path / "one"))
  hosts.finish(processes, code=0)
  two, one = (rows(tmp_path / x) for x in ("two", "one"))
  assert [row["step"] for row in two] == [1, 2]
  for name in ("loss", "pixel", "temporal", "adversarial", "opponent_fake"):
    assert two[0][name] == pytest.approx(one[0][name], rel=1e-4), name
    assert two[1][name] == pytest.approx(one[1][name], rel=1e-2, abs=1e-4), name
