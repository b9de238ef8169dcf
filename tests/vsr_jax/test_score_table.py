"""Tables of scores: what is shown where a number is missing, and of which clips a total is."""

from __future__ import annotations

import json

import pytest

from vsr_jax import score_table
from vsr_jax.metrics import Metric, Score, Sums, clip_score, magnitude
from vsr_jax.score_table import ScoreTable


def score(frames, **measures):
  return Score(frames, {name: Sums.of(values) for name, values in measures.items()})


@pytest.mark.parametrize(
  ("found", "none", "cells"),
  [
    (score(2, psnr=[float("inf"), 30], ssim=[1, 1], tof=[0]), "psnr", "– | 1.0000 | 0.000"),
    (score(1, psnr=[40], ssim=[0.9]), "tof", "40.00 | 0.9000 | –"),
  ],
  ids=["a perfect frame", "a single frame"],
)
def test_numbers_that_are_none_become_null(found, none, cells):
  table = ScoreTable(["bicubic", "a|b"], clip_score.METRICS, {"data": "x"})
  table.scores["clip"] = {"bicubic": Score(), "a|b": found}
  row = json.loads(json.dumps(score_table.to_json(table), allow_nan=False))["clips"][0]
  assert [key for key, value in row["scores"]["a|b"].items() if value is None] == [none]
  assert list(row["scores"]["bicubic"].values()) == [None] * 3
  shown = score_table.to_markdown(table).splitlines()
  assert rf"| clip | a\|b | 0 | {cells} |" in shown
  assert "| clip | bicubic | 0 | – | – | – |" in shown


def test_the_total_and_the_spread_of_clips():
  metrics = [
    Metric("ids", "IDS", 2, True, "ids"),
    Metric("sigma", "spread ×100", 1, False, "ids", spread=True, shown_times=100),
  ]
  table = ScoreTable(["bicubic", "ours"], metrics, {}, mean_of_clips=True)
  table.scores["a"] = {"bicubic": score(2, ids=[0.1, 0.3]), "ours": score(2, ids=[0.5, 0.5])}
  table.scores["b"] = {"bicubic": score(1, ids=[0.6]), "ours": score(1, ids=[0.8])}
  total = score_table.to_json(table)["total"]
  assert total["frames"] == 3
  assert total["scores"]["bicubic"] == pytest.approx({"ids": 0.4, "sigma": 0.05}, abs=1e-7)
  assert total["scores"]["ours"] == pytest.approx({"ids": 0.65, "sigma": 0}, abs=1e-7)
  shown = score_table.to_markdown(table).splitlines()
  assert shown[0] == "| clip | method | frames | IDS ↑ | spread ×100 ↓ |"
  assert shown[3] == "| total | ours | 3 | 0.65 (+0.25) | 0.0 (-5.0) |"
  table.mean_of_clips = False
  assert score_table.to_json(table)["total"]["scores"]["ours"]["ids"] == pytest.approx(0.6)


def test_motion_has_a_table_of_its_own_and_methods_apart_no_difference():
  def of(value, part):
    sums = {"psnr": Sums.of([value]), "ssim": Sums.of([0.5]), "tof": Sums()}
    return Score(1, sums, {part: Score(1, sums)})

  table = ScoreTable(["bicubic", "ours", "other"], clip_score.METRICS, {}, apart=("other",))
  for name, part, gain in (("a", "≥ 40", 1), ("b", "[0, 20)", 2), ("c", "[0, 20)", 4)):
    scores = {"bicubic": of(30, part), "ours": of(30 + gain, part), "other": of(50, part)}
    table.scores[name] = scores
  found = score_table.to_json(table)
  motion = found["total"]["motion"]
  assert [(name, row["frames"]) for name, row in motion.items()] == [("[0, 20)", 2), ("≥ 40", 1)]
  assert motion["[0, 20)"]["scores"]["ours"]["psnr"] == 33
  assert list(found["clips"][0]["motion"]) == ["≥ 40"]
  shown = score_table.to_markdown(table).splitlines()
  assert "| motion | method | frames | PSNR ↑ | SSIM ↑ | tOF ↓ |" in shown
  assert "| ≥ 40 | ours | 1 | 31.00 (+1.00) | 0.5000 (+0.0000) | – |" in shown
  assert "| ≥ 40 | other | 1 | 50.00 | 0.5000 | – |" in shown
  assert magnitude.NOTE in shown
  table.scores = {"a": {"bicubic": Score(), "ours": Score(), "other": Score()}}
  assert "motion" not in score_table.to_json(table)["total"]
  assert magnitude.NOTE not in score_table.to_markdown(table)
