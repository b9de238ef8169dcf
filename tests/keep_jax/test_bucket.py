"""KEEP's runs in a bucket of an emulator of Google Cloud Storage on this machine."""

from __future__ import annotations

import json
import sys

import pytest

from keep_jax import evaluate, train
from tests.keep_jax import training
from tests.support import gcs
from vsr_jax import paths
from vsr_jax.checkpoint import read_meta

pytestmark = pytest.mark.slow

SETS = {"data.root": "gs://runs/faces/train", "data.validation": "gs://runs/faces/test"}


def test_a_run_is_trained_killed_resumed_and_evaluated_in_a_bucket(
  emulator, tmp_path, monkeypatch, run_main
):
  training.write_sets(tmp_path)
  training.write_aligned(tmp_path / "scored", {"carl": 3}, size=32)  # metrics need as much
  paths.copy_to(tmp_path, paths.place("gs://runs/faces"), last="")
  once, twice = "gs://runs/keep/once", "gs://runs/keep/twice"
  changes = SETS | {"steps": 4, "train.evaluate_every": 4}
  recipe = training.make_recipe("vqgan", tmp_path, **changes)
  train.train(recipe, once)
  flags = [f"--config.{name}={value}" for name, value in (training.SMALL | changes).items()]
  command = "keep_jax.train", "--config", "configs/keep/smoke.py:vqgan", "--workdir", twice
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # as here
  gcs.kill_at_a_checkpoint([sys.executable, "-m", *command, *flags], twice)
  train.train(recipe, twice)
  assert read_meta(twice)["step"] == 4
  assert gcs.rows(twice) == gcs.rows(once)
  assert "evaluation/psnr" in gcs.rows(twice)[-1]
  assert json.loads((paths.place(twice) / "goodput.json").read_text())["sessions"] == 2

  training.start_quickly(monkeypatch)  # the next stage, the first one that restores
  restoring, start = "gs://runs/keep/two", {"init_from": twice, "steps": 1, "data.validation": ""}
  train.train(training.make_recipe("prediction", tmp_path, **SETS | start), restoring)
  one, two = read_meta(twice)["sums"]["ema"], read_meta(restoring)["sums"]["params"]
  frozen = [name for name in two if name.startswith(("codebook/", "generator/"))]
  assert frozen
  assert all(two[name] == one[name] for name in frozen)
  options = "--checkpoint", restoring, "--out", "gs://runs/keep/scores", "--metrics", "psnr"
  run_main(lambda: evaluate.main(["gs://runs/faces/scored", *options]))
  assert json.loads(paths.place("gs://runs/keep/scores/metrics.json").read_text())["complete"]
