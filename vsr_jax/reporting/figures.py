"""Curves of a sweep's runs: every loss term and what was measured of the validation clips."""

from __future__ import annotations

import io
from collections.abc import Iterator

from vsr_jax import plotting
from vsr_jax.errors import UserError
from vsr_jax.reporting.comparison import Rows
from vsr_jax.reporting.pages import Block, Heading, Picture, Text
from vsr_jax.reporting.sweeps import Sweep
from vsr_jax.train.plot import read_log

_COLUMNS = 3
_COLOURS = 20  # of matplotlib's map "tab20"

Series = dict[str, tuple[list[int], list[float]]]


def curves(sweep: Sweep, rows: Rows) -> Iterator[Block]:
  """One picture a stage: a panel for each series, a colour for each row, a line for each seed.

  Without matplotlib a sentence in its place. A run without a log is named.
  """
  if not plotting.is_installed():
    yield Text("No curves are drawn, matplotlib is missing: pip install -e '.[plot]'.")
    return
  logs: dict[str, dict[str, list[Series]]] = {}
  missing = []
  for row, trials in rows.items():
    for trial in trials:
      for stage, run in trial.runs.items():
        try:
          series = read_log(run)  # one that rows share is drawn for each of them
        except UserError:
          missing.append(f"{row}/{trial.seed}/{stage}")
          continue
        logs.setdefault(stage, {}).setdefault(row, []).append(series)
  for stage, by_row in logs.items():
    yield Heading(3, f"Stage {stage}")
    text = f"{stage}: loss terms as they are weighted, and scores of the validation clips"
    yield Picture(f"{sweep.system}_{stage}", text, _draw(by_row, list(rows)))
  if missing:
    yield Text(f"No readable log: {', '.join(missing)}.")


def _draw(by_row: dict[str, list[Series]], rows: list[str]) -> bytes:
  """PNG of a stage's panels."""
  names: dict[str, None] = {}
  for runs in by_row.values():
    for series in runs:
      names |= dict.fromkeys(sorted(series))
  shown = [name for name in names if "/" not in name]
  shown += [name for name in names if name.startswith("evaluation/")]
  lines = -(-max(len(shown), 1) // _COLUMNS)
  page = plotting.new_figure(4.6 * _COLUMNS, 3 * lines + 0.6)
  panels = page.subplots(lines, _COLUMNS, squeeze=False).ravel()
  for axis in panels[len(shown) :]:
    axis.set_axis_off()
  for axis, name in zip(panels, shown, strict=False):
    for row, runs in by_row.items():
      colour = f"C{rows.index(row)}" if len(rows) <= 10 else _colour(rows.index(row))
      for i, series in enumerate(runs):
        if name in series:
          label = row if i == 0 else None
          marker = "." if "/" in name else None  # there are few, or only one
          axis.plot(*series[name], marker=marker, color=colour, alpha=0.8, lw=1, label=label)
    if "/" not in name:
      axis.set_yscale("symlog", linthresh=1e-3)  # an adversarial term may be negative
    axis.set_title(name, fontsize="medium", loc="left")
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
  if shown:
    handles = {}
    for axis in panels:
      handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    page.legend(
      handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize="small"
    )
  data = io.BytesIO()
  page.savefig(data, dpi=80, format="png")
  return data.getvalue()


def _colour(number: int) -> tuple[float, ...]:
  import matplotlib

  return matplotlib.colormaps["tab20"](number % _COLOURS)
