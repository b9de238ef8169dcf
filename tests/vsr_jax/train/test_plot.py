"""Curves of runs, as a figure and as a picture."""

from __future__ import annotations

import json

import pytest

from vsr_jax.train import plot


@pytest.fixture
def run(tmp_path):
  folder = tmp_path / "joint"
  folder.mkdir()
  rows = [{"step": i, "seconds": i, "loss": 1 / i, "recon": 0.5 / i} for i in (1, 2, 3)]
  rows.append({"step": 3, "evaluation/psnr": 21.0, "evaluation/ssim": 0.5})
  (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return folder


def test_a_log_is_read_by_series(run):
  series = plot.read_log(run)
  assert series["loss"] == ([1, 2, 3], [1, 1 / 2, 1 / 3])
  assert series["evaluation/psnr"] == ([3], [21.0])
  assert "seconds" not in series


def test_a_figure_has_a_row_a_run_and_a_column_a_metric(run, run_main, tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra [plot]")
  series = plot.read_log(run)
  page = plot.figure([("a", series), ("b", series)])
  titles = [axis.get_title() for axis in page.axes]
  assert len(titles) == 6
  assert titles[:2] == ["a: weighted loss terms", "a: psnr of the validation clips"]
  assert {line.get_label() for line in page.axes[3].lines} == {"loss", "recon"}
  run_main(plot.main, run, "--out", tmp_path / "curves.png")
  assert (tmp_path / "curves.png").stat().st_size > 5000
