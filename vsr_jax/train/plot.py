"""Draws the curves of one or several runs from their log.jsonl.

python -m vsr_jax.train.plot RUN [RUN ...] --out curves.png      (needs the extra "plot")
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import pathlib
from collections.abc import Sequence
from typing import Any

from vsr_jax import cli
from vsr_jax.errors import UserError
from vsr_jax.json_files import fields, integer, load_lines
from vsr_jax.paths import place
from vsr_jax.plotting import new_figure

_ROW = fields({"step": integer()}, more=True)
_NOT_LOSSES = ("step", "seconds")


def main() -> None:
  """Reads the arguments and writes the picture."""
  parser = cli.Parser("vsr_jax.train.plot", __doc__)
  parser.add_argument("runs", nargs="+", type=place, help="folders of runs")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("curves.png"))
  args = parser.parse_args()
  draw([(run.name, read_log(run)) for run in args.runs], args.out)
  print(args.out)


def read_log(run: pathlib.Path) -> dict[str, tuple[list[int], list[float]]]:
  """The logged series of a run, name -> (steps, values).

  Raises:
    UserError: the run has no readable log.
  """
  series: dict[str, tuple[list[int], list[float]]] = {}
  path = run / "log.jsonl"
  try:
    rows = load_lines(path, _ROW, remedy="remove that line, or give the folder of a run")
  except OSError as e:
    why = e.strerror or "it is missing"
    raise UserError(f"{path}: cannot be read ({why}); give the folder of a run") from e
  for _, row in rows:
    for name, value in row.items():
      if name not in _NOT_LOSSES and isinstance(value, int | float):
        steps, values = series.setdefault(name, ([], []))
        steps.append(row["step"])
        values.append(value)
  return series


def draw(runs: Sequence[tuple[str, dict]], out: pathlib.Path) -> None:
  """Writes the picture that `figure` makes, with the same arguments and errors."""
  figure(runs).savefig(out, dpi=110)


def figure(runs: Sequence[tuple[str, dict]]) -> Any:
  """Draws curves: a row a run, loss terms (logarithmic) on the left, then each metric.

  Args:
    runs: each run's title and what `read_log` gave.

  Returns:
    A matplotlib figure; a notebook shows it.

  Raises:
    UserError: matplotlib is not installed.
  """
  columns = 1 + max(len(_metrics(series)) for _, series in runs)
  page = new_figure(5.5 * columns, 3.5 * len(runs))
  axes = page.subplots(len(runs), columns, squeeze=False)
  for (title, series), (left, *others) in zip(runs, axes, strict=True):
    for name, (steps, values) in sorted(series.items()):
      if "/" not in name:
        left.plot(steps, values, label=name, linewidth=2 if name == "loss" else 1)
    left.set_yscale("symlog", linthresh=1e-3)  # an adversarial term may be negative
    left.set(title=f"{title}: weighted loss terms", xlabel="step")
    left.legend(fontsize="small", ncols=2)
    left.grid(alpha=0.3)
    for axis in others:
      axis.set_axis_off()
    for axis, name in zip(others, _metrics(series), strict=False):
      axis.set_axis_on()
      axis.plot(*series[name], marker="o")
      axis.set(title=f"{title}: {name.removeprefix('evaluation/')} of the validation clips")
      axis.set(xlabel="step")
      axis.grid(alpha=0.3)
  return page


def _metrics(series: dict) -> list[str]:
  return sorted(name for name in series if name.startswith("evaluation/"))


if __name__ == "__main__":
  cli.run(main)
