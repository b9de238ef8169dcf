"""FMA-Net's runs in a bucket of an emulator of Google Cloud Storage on this machine."""

from __future__ import annotations

import json
import sys

import pytest

from tests.data_prep.helpers import write_clip_set, write_flow
from tests.fmanet_jax.test_train import SMALL
from tests.support import gcs
from vsr_jax import paths
from vsr_jax.checkpoint import read_meta

pytestmark = pytest.mark.slow

# A run of four steps, each with a checkpoint.
RUN = {"steps": 4, "train.checkpoint_every": 1, "train.evaluate_every": 100}


def train(workdir, **changes):
  values = SMALL | RUN | {"data.root": "gs://runs/set"} | changes
  flags = [f"--config.{name}={value}" for name, value in values.items()]
  command = [sys.executable, "-m", "fmanet_jax.train", "--config", "configs/fmanet/demo.py:joint"]
  return [*command, "--workdir", workdir, *flags]


def test_a_run_is_trained_killed_resumed_and_evaluated_in_a_bucket(emulator, tmp_path):
  lengths = {"alley": 6, "beach": 8}
  write_clip_set(tmp_path / "set", lengths)
  for name, length in lengths.items():
    write_flow(tmp_path / "set", name, length, 3, 1)
  paths.copy_to(tmp_path / "set", paths.place("gs://runs/set"), last="")
  once, twice = "gs://runs/once", "gs://runs/twice"
  gcs.run(train(once))
  gcs.kill_at_a_checkpoint(train(twice), twice)
  gcs.run(train(twice))
  assert read_meta(twice)["step"] == 4
  assert gcs.rows(twice) == gcs.rows(once)
  assert json.loads((paths.place(twice) / "goodput.json").read_text())["sessions"] == 2

  options = "--checkpoint", twice, "--out", "gs://runs/scores", "--frames", "3"
  gcs.run([sys.executable, "-m", "fmanet_jax.evaluate", "gs://runs/set", *options])
  scores = json.loads(paths.place("gs://runs/scores/metrics.json").read_text())
  assert scores["complete"]
  # The next stage starts from there.
  gcs.run(train("gs://runs/next", init_from=twice, steps=1))
