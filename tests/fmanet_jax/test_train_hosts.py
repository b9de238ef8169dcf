"""FMA-Net's trainer as two processes of four devices each, and as one of eight."""

from __future__ import annotations

import json
import signal

import pytest

from fmanet_jax import train
from tests.fmanet_jax.test_train import SMALL, clip_set, recipe, rows  # noqa: F401 (a fixture)
from tests.support import hosts
from vsr_jax.checkpoint import read_meta


def start(workdir, data, **changes):
  values = SMALL | {"data.root": data, "data.validation": data} | changes
  flags = [f"--config.{name}={value}" for name, value in values.items()]
  config = "configs/fmanet/demo.py:degradation"
  return hosts.start_trainers("fmanet_jax.train", "--config", config, "--workdir", workdir, *flags)


@pytest.mark.slow
def test_two_processes_train_as_one_and_sigterm_to_one_saves_on_both(clip_set, tmp_path):  # noqa: F811
  long = {"steps": 10_000, "train.checkpoint_every": 10_000, "train.evaluate_every": 10_000}
  processes = start(tmp_path / "two", clip_set, **long)
  hosts.wait_for_a_step(tmp_path / "two", processes[0])
  processes[1].send_signal(signal.SIGTERM)
  for said in hosts.finish(processes, code=2):
    assert said.splitlines()[-1] == "terminated by SIGTERM"
  stopped = read_meta(tmp_path / "two")["step"]
  steps = stopped + stopped % 2 + 2  # an even one, where all is due
  hosts.finish(start(tmp_path / "two", clip_set, steps=steps), code=0)
  train.train(recipe("degradation", clip_set, steps), str(tmp_path / "one"))
  two, one = ({x["step"]: x for x in rows(tmp_path / x) if "loss" in x} for x in ("two", "one"))
  assert list(two) == list(one) == list(range(1, steps + 1))
  for step, row in one.items():
    assert two[step]["loss"] == pytest.approx(row["loss"], rel=1e-3), step
  # One position, of all; and the last evaluation is of the same validation windows.
  positions = [
    json.loads((tmp_path / x / "checkpoints" / str(steps) / "data" / "position.json").read_text())
    for x in ("two", "one")
  ]
  assert positions[0] == positions[1]
  scores = [rows(tmp_path / x)[-1]["evaluation/psnr"] for x in ("two", "one")]
  assert scores[0] == pytest.approx(scores[1], abs=0.02)
