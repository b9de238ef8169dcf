"""A sweep of FMA-Net: what its stages do not see, what is checked first, and one truly trained."""

from __future__ import annotations

import json

import jax
import pytest

from fmanet_jax import train
from tests.data_prep.helpers import write_clip_set, write_flow
from vsr_jax import sweep
from vsr_jax.checkpoint import read_meta
from vsr_jax.configs.fmanet import ablations, smoke
from vsr_jax.sweeps.checks import Job, Scored, check_here

TABLE = "configs/fmanet/ablations.py"
LENGTHS = {"alley": 6, "beach": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  write_clip_set(root, LENGTHS)
  for name, length in LENGTHS.items():
    write_flow(root, name, length, 3, 1)
  return root


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """As the trainers have that a sweep starts here."""
  monkeypatch.setattr(jax, "device_count", lambda: 1)


def recipe(row, stage, data, **changes):
  config = ablations.get_config(f"{row},{stage},smoke")
  places = {"data.root": str(data), "data.validation": str(data)}
  config.update_from_flattened_dict(places | changes)
  return config


def test_stage_1_sees_no_difference_of_what_shares_it():
  """Its loss, of the params of Net^D alone, is the same program."""

  def traced(row):
    plan = train.make_plan(ablations.get_config(f"{row},degradation,smoke"), 1)
    params = jax.eval_shape(plan.init_params, jax.random.key(0))

    def loss(net_d, batch):
      return plan.stage.loss({"net_d": net_d}, batch, {})

    return str(jax.make_jaxpr(loss)(params["net_d"], plan.batch))

  programs = {row: traced(row) for row in ("fma_net", "sft", "self_attention", "n1")}
  assert programs["fma_net"] == programs["sft"]
  assert len(set(programs.values())) == 3


def test_recipes_and_data_are_checked_before_anything_is_trained(data):
  jobs = {
    "good": Job(recipe("fma_net", "degradation", data), True),
    "long": Job(recipe("t5", "degradation", data, **{"model.dim": 10, "model.flows": 1}), True),
    "odd": Job(recipe("n5", "joint", data), False),
    "scale": Job(recipe("fma_net", "joint", data, **{"model.scale": 2}), False),
    "start": Job(recipe("fma_net", "joint", data, init_from=str(data / "run")), True),
    "later": Job(recipe("fma_net", "joint", data, init_from=str(data / "run")), False),
    "nowhere": Job(recipe("fma_net", "joint", data / "missing"), False),
  }
  found = check_here("fmanet", jobs, Scored(str(data)))
  assert found.wrong.keys() == {"long", "odd", "scale", "start", "nowhere"}
  assert "no flow labels for windows of 5 frames" in found.wrong["long"]
  assert "model.flows = 5: must divide the width model.dim = 6" in found.wrong["odd"]
  assert found.wrong["scale"] == (
    "clip alley has scale 4, the model 2; prepare the data with --scale 2"
  )
  assert "no such folder; give a run's folder" in found.wrong["start"]
  assert "missing: no such folder of clips" in found.wrong["nowhere"]
  assert (found.training["clips"], found.training["frames"]) == (2, 10)
  assert found.evaluation["fingerprint"] != found.training["fingerprint"]  # it has two streams
  again = check_here("fmanet", {"good": jobs["good"]}, None)
  assert again.training == found.training
  assert again.evaluation is None


def test_data_of_the_evaluation_that_cannot_be_used_are_told_by_every_row(data):
  jobs = {"good": Job(recipe("fma_net", "joint", data), False)}
  found = check_here("fmanet", jobs, Scored(str(data / "missing")))
  assert "missing: no such folder of clips" in found.wrong["good"]


@pytest.mark.slow
def test_two_rows_are_trained_and_scored(data, tmp_path, run_main):
  out = tmp_path / "sweep"
  given = ["--config", TABLE, "--rows", "fma_net,sft", "--budget", "smoke", "--out", out]
  given += ["--config.data.root", data, "--config.data.validation", data]
  said = run_main(sweep.main, *given, "--parallel", "2")
  assert "2 of 2 rows and seeds are done" in said.out
  for name in ("fma_net", "sft"):
    told = json.loads((out / name / "0/row.json").read_text())
    assert told["state"] == "done"
    assert told["runs"]["degradation"] == "fma_net/0/degradation"
    meta = read_meta(out / told["runs"]["joint"])
    assert (meta["step"], meta["stage"]) == (smoke.get_config("joint").steps, "joint")
    table = json.loads((out / name / "0/evaluation/metrics.json").read_text())
    assert table["complete"]
    assert table["total"]["scores"]["FMA-Net"]["psnr"] > 5
  assert not (out / "sft/0/degradation").exists()
  before = sorted(path.stat().st_mtime for path in out.rglob("meta.json"))
  assert "2 of 2 rows and seeds are done" in run_main(sweep.main, *given).out
  assert sorted(path.stat().st_mtime for path in out.rglob("meta.json")) == before
