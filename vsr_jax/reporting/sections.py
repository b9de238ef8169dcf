"""What a report shows of a system: the papers' tables, cost, what was run."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from vsr_jax.metrics import Metric
from vsr_jax.metrics.magnitude import NOTE, RANGES
from vsr_jax.reporting import comparison, papers
from vsr_jax.reporting.comparison import METRICS, Rows
from vsr_jax.reporting.pages import Block, Cell, Heading, Listing, Table, Text
from vsr_jax.reporting.papers import RECONSTRUCTION, RESTORED, Quantity
from vsr_jax.reporting.sweeps import Sweep, work_of

Cells = Mapping[str, Mapping[Quantity, comparison.Cell]]

NAMES = {"fmanet": "FMA-Net", "keep": "KEEP"}
_KEEP_METRICS = (
  "lpips",
  "ids",
  "akd",
  "sigma_ids",
  "sigma_akd",
  "warping",
  "tlme",
  "psnr",
  "ssim",
)
_HOW_TO_READ = (
  "A cell: the mean over seeds ± the standard deviation of the sample; the paper's number, of its "
  "own data and training; Δ, the difference to {base}, with the two-sided p of a paired t-test "
  "over clips (each clip's mean over seeds); ✓ where Δ has the sign that it has in the paper, ✗ "
  "where it has not, in brackets unless p < {sure}. p is not corrected for the number of tests, "
  "and tells of other clips, not of other seeds."
)
SURE = 0.05  # a p-value below which a difference counts as one
_LEFT_OUT_OF_CONFIG = ("init_from", "seed")  # they differ by what was asked for


def results(sweep: Sweep, rows: Rows, cells: Cells, left_out: Mapping[str, str]) -> list[Block]:
  """The tables of scores, what they say in a sentence, and which rows are not in them."""
  blocks: list[Block] = [Text(_summary(sweep, rows, cells))]
  if left_out:
    lines = [(row, reason) for row, reason in left_out.items()]
    blocks += [Heading(3, "Left out of the tables"), Table(("row", "why"), lines, labels=2)]
  blocks += list(_fmanet(sweep, rows, cells) if sweep.system == "fmanet" else _keep(rows, cells))
  blocks.append(Text(_HOW_TO_READ.format(base=sweep.base, sure=SURE)))
  if any(quantity.motion for row in cells.values() for quantity in row):
    blocks.append(Text(NOTE))
  return blocks


def _summary(sweep: Sweep, rows: Rows, cells: Cells) -> str:
  trials = next(iter(rows.values()))
  seeds = ", ".join(str(trial.seed) for trial in trials)
  assert trials[0].metrics is not None
  clips, frames = len(trials[0].metrics["clips"]), trials[0].metrics["total"]["frames"]
  text = (
    f"{len(rows)} of {len(sweep.rows)} rows, budget {sweep.record['budget']}, "
    f"seeds {seeds}; {frames} frames of {clips} clips."
  )
  told = [
    cell
    for row in cells.values()
    for quantity, cell in row.items()
    if cell.agrees is not None and quantity.motion is None
  ]
  if not told:
    return f"{text} No difference to {sweep.base} is there that the paper has, too."
  sure = [cell for cell in told if cell.p is not None and cell.p < SURE]
  return (
    f"{text} Of {len(told)} differences to {sweep.base} that the paper has, too (without those by "
    f"motion), {sum(bool(cell.agrees) for cell in told)} have its sign; of the {len(sure)} with "
    f"p < {SURE}, {sum(bool(cell.agrees) for cell in sure)}."
  )


def _fmanet(sweep: Sweep, rows: Rows, cells: Cells) -> Iterator[Block]:
  by_motion = [(metric, motion) for motion in (*RANGES, None) for metric in ("psnr", "tof")]
  table_3 = [row for row in papers.TABLE_3_ROWS if row in rows]
  has_more = any(x.motion or x.frames == RECONSTRUCTION for row in table_3 for x in cells[row])
  table_3 = table_3 if len(table_3) > 1 or has_more else []
  pairs = [(k, x) for k, x in papers.TABLE_3_PAIRS if k in rows and x in rows]
  for frames, title in ((RECONSTRUCTION, "Net^D's reconstruction"), (RESTORED, "Net^R's output")):
    columns = [Quantity(metric, frames, motion) for metric, motion in by_motion]
    labels: dict[str, Sequence[Cell]] = {row: (row, *_filtering(row)) for row in table_3}
    if table := _table(("row", "k_d", "filtering"), labels, columns, cells):
      yield Heading(3, f"Flow-guided against conventional filtering (Table 3): {title}")
      yield table
      if pairs:
        yield _gains(
          sweep, rows, pairs, [x for x in columns if any(x in c for c in cells.values())]
        )
  columns = [Quantity(metric) for metric in ("psnr", "ssim", "tof")]
  table_4 = [row for row in papers.TABLE_4_ROWS if row in rows]
  others = [row for row in rows if row not in (*papers.TABLE_4_ROWS, *table_3)]
  for title, names in (("Design (Table 4)", table_4), ("Further rows", others)):
    labels = {row: (row, _parameters(rows, row)) for row in names}
    if table := _table(("row", "parameters, M"), labels, columns, cells):
      yield Heading(3, title)
      yield table


def _gains(
  sweep: Sweep, rows: Rows, pairs: Sequence[tuple[str, str]], columns: Sequence[Quantity]
) -> Table:
  """What flow-guided filtering adds to conventional filtering of the same k_d."""
  lines = []
  for flow, conventional in pairs:
    line = [f"{flow} minus {conventional}"]
    for x in columns:
      found = comparison.difference(sweep, rows, flow, conventional, x)
      line.append("–" if found.difference is None else _difference(METRICS[x.metric], found))
    lines.append(line)
  return Table(["rows", *_titles(columns)], lines)


def _filtering(row: str) -> tuple[str, str]:
  """k_d and the kind of filtering of a row of Table 3."""
  size = row[1:3] if row.startswith("k") else "20"
  return size, "conventional" if row.endswith("_conventional") else "flow-guided"


def _keep(rows: Rows, cells: Cells) -> Iterator[Block]:
  labels = {row: (row,) for row in rows}
  if table := _table(("row",), labels, [Quantity(metric) for metric in _KEEP_METRICS], cells):
    yield Heading(3, "Ablation")
    yield table
  columns = [Quantity(m, RESTORED, motion) for motion in RANGES for m in ("psnr", "lpips", "ids")]
  if table := _table(("row",), labels, columns, cells):
    yield Heading(3, "By motion")
    yield table


def _parameters(rows: Rows, row: str) -> Cell:
  count, cost = comparison.parameters(rows[row][0]), papers.COSTS.get(row)
  ours = "–" if count is None else f"{count / 1e6:.2f}"
  return (ours, f"paper {cost.parameters:.2f}") if cost else ours


def _table(
  header: Sequence[str],
  labels: Mapping[str, Sequence[Cell]],
  columns: Sequence[Quantity],
  cells: Cells,
) -> Table | None:
  """A table of rows by quantities, of those that some row has; None if there is no such one."""
  columns = [x for x in columns if any(x in cells[row] for row in labels)]
  if not columns:
    return None
  lines = [
    [*labels[row], *(_lines(METRICS[x.metric], cells[row].get(x)) for x in columns)]
    for row in labels
  ]
  return Table([*header, *_titles(columns)], lines)


def _titles(columns: Sequence[Quantity]) -> list[str]:
  by_motion, titles = any(x.motion for x in columns), []
  for x in columns:
    metric, part = METRICS[x.metric], f"{x.motion or 'total'} " if by_motion else ""
    titles.append(f"{part}{metric.label} {'↑' if metric.higher else '↓'}")
  return titles


def _lines(metric: Metric, cell: comparison.Cell | None) -> tuple[str, ...]:
  """A cell of a table: the mean, the paper's number, the difference."""
  if cell is None:
    return ("–",)
  shown = comparison.shown(metric, cell.mean)
  if cell.spread is not None:
    shown += f" ± {comparison.shown(metric, cell.spread)}"
  lines = [shown]
  if cell.paper is not None:
    lines.append(f"paper {comparison.shown(metric, cell.paper)}")
  if cell.difference is not None:
    lines.append(f"Δ {_difference(metric, cell)}")
  return tuple(lines)


def _difference(metric: Metric, found: comparison.Cell | comparison.Difference) -> str:
  sign = {None: "", True: "✓", False: "✗"}[found.agrees]
  if sign:
    sign = f" {sign}" if found.p is not None and found.p < SURE else f" ({sign})"
  p = "" if found.p is None else f", p {found.p:.2g}"
  return f"{comparison.shown(metric, found.difference, signed=True)}{p}{sign}"


def cost(sweep: Sweep, rows: Rows) -> list[Block]:
  """Parameters, operations and seconds of every row."""
  stages = list(
    dict.fromkeys(stage for trials in rows.values() for x in trials for stage in x.runs)
  )
  header = [
    "row",
    "parameters, M",
    *(f"{stage}, GFLOP a step" for stage in stages),
    *(f"{stage}, s" for stage in stages),
    "evaluation, s",
    "evaluation, s a frame",
  ]
  lines: list[list[Cell]] = []
  for row, trials in rows.items():
    times = {stage: _mean_seconds(trials, stage) for stage in (*stages, "evaluation")}
    assert trials[0].metrics is not None
    frames = trials[0].metrics["total"]["frames"]
    evaluation, paper = times["evaluation"], papers.COSTS.get(row)
    a_frame = "–" if evaluation is None or not frames else f"{evaluation / frames:.3f}"
    of_paper = (f"paper {paper.seconds:.3f}",) if paper and sweep.system == "fmanet" else ()
    shown = ["–" if x is None else f"{x:,.0f}" for x in times.values()]
    runs = [trials[0].runs.get(stage) for stage in stages]
    works = [None if run is None else work_of(run) for run in runs]
    counted = ["–" if x is None else f"{x / 1e9:,.1f}" for x in works]
    lines.append([row, _parameters(rows, row), *counted, *shown, (a_frame, *of_paper)])
  note = (
    "Operations are of all devices together, forward and backward, as the run counted them. "
    "Seconds are means over seeds; a run that rows share counts for each of them. Those of the "
    "evaluation include reading and scoring"
  )
  note += "; the paper's are of restoring a frame of 180x320." if sweep.system == "fmanet" else "."
  return [Table(header, lines), Text(note)]


def _mean_seconds(trials: Sequence[Any], stage: str) -> float | None:
  found = [x for trial in trials if (x := trial.record.get("seconds", {}).get(stage)) is not None]
  return statistics.fmean(found) if found else None


def what_was_run(sweep: Sweep) -> list[Block]:
  """Configurations, data, commands, commits and machines, of all rows, those left out, too."""
  record = sweep.record
  facts = {
    "folders": ", ".join(str(folder) for folder in sweep.folders),
    "configuration": record["config"],
    "budget": record["budget"],
    "length, of the recipes'": _json(record.get("length", 1)),
    "changed for all rows": _json(record.get("overrides") or "nothing"),
    "changed by stage": _json(record.get("stage_overrides") or "nothing"),
    "data": _json(record.get("data")),
    "start": _json(record.get("start")),
    "evaluation": _json(record.get("evaluation")),
  }
  lines = []
  for trial in sweep.trials.values():
    state = trial.missing or "done"
    found = [trial.record.get(name) or "–" for name in ("commit", "machine", "started")]
    lines.append([trial.row, str(trial.seed), state, *found])
  blocks: list[Block] = [
    Table(("what", ""), list(facts.items()), labels=2),
    Heading(3, "Differences to the base row"),
    Table(("row", "differences"), [(row, _changes(sweep, row)) for row in sweep.rows], labels=2),
    Heading(3, "Runs"),
    Table(("row", "seed", "state", "commit", "machine", "started"), lines, labels=6),
  ]
  for trial in sweep.trials.values():
    if commands := trial.record.get("commands"):
      text = [shlex.join(command) for command in commands.values()]
      blocks.append(Listing(f"Commands of {trial.row}, seed {trial.seed}", text))
  return blocks


def _changes(sweep: Sweep, row: str) -> str:
  """How a row's runs differ from the base's; without runs, what the sweep says of the row."""
  found: dict[str, None] = {}
  for trial in (trial for (name, _), trial in sweep.trials.items() if name == row):
    base = sweep.trials.get((sweep.base, trial.seed), trial)
    for stage, meta in trial.metas.items():
      configs = [x.get("config") for x in (meta, base.metas.get(stage, meta))]
      if all(isinstance(config, dict) for config in configs):
        ours, theirs = (flatten_dict(config, sep=".") for config in configs)
        found |= dict.fromkeys(
          f"{name} {_json(theirs.get(name))} → {_json(ours.get(name))}"
          for name in {**theirs, **ours}
          if ours.get(name) != theirs.get(name) and name not in _LEFT_OUT_OF_CONFIG
        )
  told = [f"{name} → {_json(x)}" for name, x in sweep.rows[row].items()]
  return "; ".join(found or told) or "none"


def _json(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
