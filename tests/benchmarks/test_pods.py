"""The table of what the papers' recipes ask of pods, from reports that are there."""

from __future__ import annotations

import json
import subprocess

from benchmarks import pods
from tests.vsr_jax.test_compile_report import FITS
from vsr_jax.train.compile_only import DOES_NOT_FIT, REPORT


def test_reports_that_are_there_are_kept_and_others_are_made(run_main, monkeypatch, tmp_path):
  calls = []

  def train(command, **_):
    """Does not fit a single chip, and fails for degradations on many."""
    calls.append(command)
    topology = command[command.index("--topology") + 1]
    folder = pods.pathlib.Path(command[command.index("--workdir") + 1])
    if topology == "v5e:4x4" and "fmanet_jax.train" in command:
      return subprocess.CompletedProcess(command, 2)
    batch = int(command[-1].rpartition("=")[2])
    told = FITS.to_json() | {"fits": topology != "v5e:1x1", "config": {"data": {"batch": batch}}}
    folder.mkdir(parents=True)
    (folder / REPORT).write_text(json.dumps(told))
    return subprocess.CompletedProcess(command, 0 if told["fits"] else DOES_NOT_FIT)

  monkeypatch.setattr(subprocess, "run", train)
  arguments = [tmp_path, "--stage", "fmanet/degradation", "--stage", "keep/fusion"]
  arguments += ["--topology", "v5e:1x1", "--topology", "v5e:4x4"]
  said = run_main(pods.main, *arguments).out
  assert len(calls) == 4
  assert said == (tmp_path / "pods.md").read_text()
  numbers = "7.01 | {} | 197 | 2.46e+03 | 100 | 1 | 3 | 0.5 |"
  assert said.splitlines()[2:] == [
    f"| fmanet/degradation | v5e:1x1 | 8 | {numbers.format('**no**')}",
    f"| keep/fusion | v5e:1x1 | 4 | {numbers.format('**no**')}",
    "| fmanet/degradation | v5e:4x4 | not compiled |  |  |  |  |  |  |  |  |",
    f"| keep/fusion | v5e:4x4 | 16 | {numbers.format('yes')}",
  ]
  assert run_main(pods.main, *arguments).out == said
  assert len(calls) == 5  # the one that failed, again


def test_every_chip_gets_as_many_samples():
  assert pods.count_chips("v5p:2x2x4") == 16
  assert pods.count_chips("../targets/h100.txtpb") == 1
  assert pods.batch_for("fmanet/joint", 1) == 8
  assert pods.batch_for("fmanet/joint", 3) == 9
  assert pods.batch_for("keep/prediction", 256) == 256
