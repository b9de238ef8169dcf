"""How reading training data is timed, and what is made of the runs."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import data, data_worker, report
from vsr_jax.data_prep import face_degrade, face_pipeline
from vsr_jax.errors import UserError


def fed(seconds, memory=10**9):
  return {"device": "none", "versions": {"grain": "1"}, "seconds": seconds, "memory": memory}


def result():
  feed = {"1": [fed(0.5), fed(0.25), fed(0.25)], "2": [fed(0.125), fed(0.125), fed(9)]}
  stages = {"read and decode": 30.0, "blur": 70.0}
  return {
    "video": "x.mp4",
    "workers": [1, 2],
    "stages": dict.fromkeys(data.PIPELINES, stages),
    "feed": dict.fromkeys(data.PIPELINES, feed),
    "memory": [10**9, 10**9 + 4 * 10**6],
    "runs": [fed(1)],
  }


def test_table_of_the_runs():
  rows = {row[0]: row[1:] for row in data.table(result())}
  clip = data.TITLES["keep_clips"]
  assert rows[f"{clip}: a second"] == ("4", "8", "2.00")
  assert rows[f"{clip}: frames a second"] == ("32", "64", "")
  # Of the batch of 4 clips, one core makes 4 a second.
  assert rows[f"{clip}: cores for a step a second, stage III, 4 clips"] == ("1", "", "")
  assert rows[f"{clip}: cores for a step a second, stage II, 2 clips"] == ("0.5", "", "")
  assert rows[f"{clip}: blur (ms)"] == ("70.0", "", "")
  assert rows[f"{clip}: memory, 8000 times the clips (GB)"] == ("1.004", "", "")
  entries = report.collect(2, 0.1, 3, {"data": result()})
  text = report.to_markdown(entries)
  assert "Reading training batches, 2 workers at most, of x.mp4" in text
  assert json.loads(json.dumps(entries))["versions"]["grain"] == "1"


def test_chart_of_the_stages(tmp_path):
  assert data.draw(result(), tmp_path / "stages.png")
  assert cv2.imread(str(tmp_path / "stages.png")).std() > 5
  assert [path.name for path in tmp_path.iterdir()] == ["stages.png"]


def test_times_of_the_stages_are_those_of_the_functions_that_run():
  blur = face_degrade.blur
  frame = np.zeros((512, 512, 3), np.uint8)
  with data_worker.timers() as spent:
    face_degrade.degrade(frame[None], np.random.default_rng(0), face_degrade.PRESETS["train"])
    face_pipeline.align(frame, np.eye(2, 3), 512, 1)
  assert set(spent) == {"blur", "noise", "reduce", "noise, reduced", "H.264", "align"}
  assert all(seconds > 0 for seconds in spent.values())
  assert face_degrade.blur is blur


def test_a_missing_video_is_named(tmp_path):
  with pytest.raises(UserError, match="none.mp4: no such file"):
    command.main(["--only=data", f"--video={tmp_path}/none.mp4"])


@pytest.mark.slow
def test_data_is_timed(tmp_path, capsys):
  data.main(["--samples=1", "--repeats=1", "--threads=1", f"--out={tmp_path}"])
  assert "cores for a step a second" in capsys.readouterr().out
  entries = json.loads((tmp_path / "benchmark.json").read_text())["data"]
  for name in data.PIPELINES:
    (run,) = entries["feed"][name]["1"]
    assert run["seconds"] > 0
    assert run["processes"] >= 2
    # Every stage is met, whatever it costs.
    assert "read and decode" in entries["stages"][name]
  assert {"blur", "noise", "H.264", "align", "align, reduced"} <= set(
    entries["stages"]["keep_clips"]
  )
  # Within 5 %: the pages of a process differ by a few MB from run to run.
  few, many = entries["memory"]
  assert many < 1.05 * few
