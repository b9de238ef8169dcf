"""Sums of what was measured of frames, which merge, and the metrics that are computed of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums of one measure over frames, or over pairs of consecutive frames; add them to merge.

  Attributes:
    count: number of values.
    total: their sum.
    squares: the sum of their squares.
  """

  count: int = 0
  total: float = 0.0
  squares: float = 0.0

  @classmethod
  def of(cls, values: Iterable[float]) -> Sums:
    """The sums of some values."""
    listed = [float(x) for x in values]
    return cls(len(listed), math.fsum(listed), math.fsum(x * x for x in listed))

  def __add__(self, other: Sums) -> Sums:
    return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)

  @property
  def mean(self) -> float:
    """The mean; NaN of nothing, infinite if one value is."""
    return self.total / self.count if self.count else math.nan

  @property
  def spread(self) -> float:
    """The standard deviation of the population; NaN of nothing."""
    # Exact to 1e-8 of the mean, which no metric shows.
    return math.sqrt(max(self.squares / self.count - self.mean**2, 0)) if self.count else math.nan


@dataclasses.dataclass(frozen=True)
class Score:
  """What was measured of a clip, or of several; add scores to merge them.

  Attributes:
    frames: number of frames that were scored.
    sums: the sums of each measure by its name.
    parts: the scores of some of the frames, by what these have in common; see `magnitude`.
  """

  frames: int = 0
  sums: Mapping[str, Sums] = dataclasses.field(default_factory=dict)
  parts: Mapping[str, Score] = dataclasses.field(default_factory=dict)

  def __add__(self, other: Score) -> Score:
    names = dict.fromkeys([*self.sums, *other.sums])  # in the order of the first
    merged = {name: self.sums.get(name, Sums()) + other.sums.get(name, Sums()) for name in names}
    names = dict.fromkeys([*self.parts, *other.parts])
    parts = {name: self.parts.get(name, Score()) + other.parts.get(name, Score()) for name in names}
    return Score(self.frames + other.frames, merged, parts)


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number that is computed of a score: a column of a table.

  Attributes:
    name: the key of its values.
    label: its heading.
    places: decimals that are shown.
    higher: whether higher is better.
    measure: the measure that it is computed of.
    spread: whether it is the standard deviation of the measure instead of its mean.
    shown_times: the factor by which a table shows it; its heading tells.
  """

  name: str
  label: str
  places: int
  higher: bool
  measure: str
  spread: bool = False
  shown_times: float = 1.0

  def compute(self, score: Score) -> float:
    """The metric's value; NaN where nothing was measured."""
    sums = score.sums.get(self.measure, Sums())
    return sums.spread if self.spread else sums.mean


PSNR = Metric("psnr", "PSNR", 2, True, "psnr")
SSIM = Metric("ssim", "SSIM", 4, True, "ssim")
LPIPS = Metric("lpips", "LPIPS", 4, False, "lpips")
TOF = Metric("tof", "tOF", 3, False, "tof")


def compute(metrics: Iterable[Metric], score: Score) -> dict[str, float]:
  """The value of each metric by its name.

  One frame that equals its truth has an infinite PSNR and makes the mean infinite too, as in the
  released evaluations.
  """
  return {metric.name: metric.compute(score) for metric in metrics}


def mean_over_clips(metrics: Iterable[Metric], scores: Iterable[Score]) -> dict[str, float]:
  """The mean over clips of each metric's value in a clip, over those clips where it has one."""
  listed = list(scores)
  values = {m.name: [x for s in listed if not math.isnan(x := m.compute(s))] for m in metrics}
  return {name: Sums.of(found).mean for name, found in values.items()}
