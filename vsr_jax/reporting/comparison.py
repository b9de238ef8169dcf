"""Compares rows of a sweep: mean and spread over seeds, the paper, the base row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from vsr_jax import trees
from vsr_jax.metrics import faces, magnitude, sums, warping
from vsr_jax.metrics.sums import Metric
from vsr_jax.reporting import papers
from vsr_jax.reporting.papers import RECONSTRUCTION, RESTORED, Quantity
from vsr_jax.reporting.sweeps import Sweep, Trial

Rows = Mapping[str, Sequence[Trial]]

METRICS = {
  metric.name: metric
  for metric in (
    sums.PSNR,
    sums.SSIM,
    sums.TOF,
    sums.LPIPS,
    faces.IDS,
    faces.AKD,
    faces.SIGMA_IDS,
    faces.SIGMA_AKD,
    faces.TLME,
    warping.WARPING,
  )
}


class Difference(NamedTuple):
  """How a row differs from another one.

  Attributes:
    difference: of the means over seeds; None where one has no value, or there is no other row.
    p: of a paired t-test over clips, whose values are means over seeds; None of fewer than two
      clips or where they all differ by the same.
    clips: how many clips the test is over.
    agrees: whether the difference has the sign that it has in the paper; None where there is none.
  """

  difference: float | None
  p: float | None
  clips: int
  agrees: bool | None


class Cell(NamedTuple):
  """What is known of a row's quantity.

  Attributes:
    values: one for each seed.
    mean: of the values.
    spread: their standard deviation (of the sample); None of one seed.
    paper: the paper's number; None if it gives none.
    difference: to the base row, with what follows as in `Difference`.
  """

  values: tuple[float, ...]
  mean: float
  spread: float | None
  paper: float | None
  difference: float | None
  p: float | None
  clips: int
  agrees: bool | None


def quantities(rows: Rows) -> list[Quantity]:
  """All that the rows' evaluations have, those in total first."""
  found: dict[Quantity, None] = {}
  for motion in (None, *magnitude.RANGES):
    for frames in (RESTORED, RECONSTRUCTION):
      for trials in rows.values():
        for trial in trials:
          scores = _scores(trial, "total", frames, motion)
          found |= dict.fromkeys(Quantity(x, frames, motion) for x in METRICS if x in scores)
  return list(found)


def compare(sweep: Sweep, rows: Rows) -> dict[str, dict[Quantity, Cell]]:
  """By row and quantity, what is known of it, of all that have a value for every seed."""
  return {
    row: {
      quantity: cell
      for quantity in quantities(rows)
      if (cell := _cell(sweep, rows, row, quantity)) is not None
    }
    for row in rows
  }


def _cell(sweep: Sweep, rows: Rows, row: str, quantity: Quantity) -> Cell | None:
  values = _values(rows[row], quantity)
  if values is None:
    return None
  spread = statistics.stdev(values) if len(values) > 1 else None
  paper = papers.number(sweep.system, row, quantity)
  compared = Difference(None, None, 0, None)
  if row != sweep.base and sweep.base in rows:
    compared = difference(sweep, rows, row, sweep.base, quantity)
  return Cell(values, statistics.fmean(values), spread, paper, *compared)


def _values(trials: Sequence[Trial], quantity: Quantity) -> tuple[float, ...] | None:
  """One for each seed; None if one of them has none."""
  values = [value(trial, quantity) for trial in trials]
  known = tuple(x for x in values if x is not None)
  return known if known and len(known) == len(values) else None


def difference(sweep: Sweep, rows: Rows, row: str, other: str, quantity: Quantity) -> Difference:
  """A row's difference to another one."""
  values, others = (_values(rows[name], quantity) for name in (row, other))
  if values is None or others is None:
    return Difference(None, None, 0, None)
  found = statistics.fmean(values) - statistics.fmean(others)
  p, clips = paired_test(_by_clip(rows[row], quantity), _by_clip(rows[other], quantity))
  paper, paper_other = (papers.number(sweep.system, name, quantity) for name in (row, other))
  agrees = None
  if paper is not None and paper_other is not None and paper != paper_other:
    agrees = found * (paper - paper_other) > 0
  return Difference(found, p, clips, agrees)


def value(trial: Trial, quantity: Quantity, clip: Mapping | str = "total") -> float | None:
  """A number of an evaluation: in total, or of an entry of its "clips"."""
  metric, frames, motion = quantity
  return _scores(trial, clip, frames, motion).get(metric)


def _scores(
  trial: Trial, clip: Mapping | str, frames: str, motion: str | None
) -> Mapping[str, float | None]:
  assert trial.metrics is not None  # rows that are compared are complete
  entry = trial.metrics["total"] if isinstance(clip, str) else clip
  if motion is not None:
    entry = entry.get("motion", {}).get(motion, {"scores": {}})
  return entry["scores"].get(trial.method if frames == RESTORED else RECONSTRUCTION, {})


def _by_clip(trials: Sequence[Trial], quantity: Quantity) -> dict[str, float]:
  """The mean over seeds of each clip's value, of clips that have one for all seeds."""
  found: dict[str, list[float]] = {}
  for trial in trials:
    assert trial.metrics is not None
    for clip in trial.metrics["clips"]:
      if (x := value(trial, quantity, clip)) is not None:
        found.setdefault(clip["name"], []).append(x)
  return {name: statistics.fmean(x) for name, x in found.items() if len(x) == len(trials)}


def paired_test(row: Mapping[str, float], base: Mapping[str, float]) -> tuple[float | None, int]:
  """The two-sided paired t-test of the clips that both have.

  Returns:
    The p-value and the number of clips. None for fewer than two clips, and where all differ by the
    same, so that there is no variance.
  """
  names = [name for name in row if name in base]
  if len(names) < 2:
    return None, len(names)
  differences = [row[name] - base[name] for name in names]
  if max(differences) - min(differences) <= 1e-12 * max(map(abs, [*row.values(), 1e-300])):
    return None, len(names)
  p = float(stats.ttest_1samp(differences, 0).pvalue)
  return (p if math.isfinite(p) else None), len(names)


def parameters(trial: Trial) -> int | None:
  """The number of parameters in the checkpoint that was evaluated; None if it is not there."""
  if not trial.runs or (last := list(trial.runs)[-1]) not in trial.metas:
    return None
  table = trial.metas[last]["arrays"]["params"]
  return sum(math.prod(trees.shape_and_dtype(spec)[0]) for spec in table.values())


def shown(metric: Metric, x: float | None, *, signed: bool = False) -> str:
  """A value of a metric as tables show it."""
  if x is None:
    return "–"
  return f"{metric.shown_times * x:{'+' if signed else ''}.{metric.places}f}"
