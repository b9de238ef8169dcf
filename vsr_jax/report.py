"""Command: writes up what sweeps have found: tables in the papers' form, curves, what was run.

  python -m vsr_jax.report SWEEP [SWEEP ...] --out report

DIR gets report.html, which needs nothing beside it, report.md with figures/, report.json,
report.csv, and tensorboard/ for its hparams plugin. A row stands in a table only if all its seeds
are done and its data, steps and evaluation are those of the base row; the report says of the others
what differs. Several sweeps of one system, such as the parts that several hosts made, are joined if
they were made alike.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import csv
import io
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from vsr_jax import cli, files, paths
from vsr_jax.errors import UserError
from vsr_jax.reporting import comparison, figures, sections, strips, sweeps, tensorboard
from vsr_jax.reporting.comparison import Rows
from vsr_jax.reporting.pages import Block, Heading, Picture, to_html, to_markdown
from vsr_jax.reporting.papers import Quantity
from vsr_jax.reporting.sections import Cells
from vsr_jax.reporting.sweeps import Sweep

_FIGURES = "figures"
_COLUMNS = ("system", "row", *Quantity._fields, *comparison.Cell._fields)


class Part(NamedTuple):
  """What a report has of a system.

  Attributes:
    sweep: the sweep, or several as one.
    rows: the trials of the rows that are compared.
    left_out: why other rows are not.
    cells: what was found.
  """

  sweep: Sweep
  rows: Rows
  left_out: dict[str, str]
  cells: Cells


def main(given: Sequence[str] | None = None) -> None:
  """Runs the command with the given arguments or the process's; see the docstring and `--help`."""
  args = _parse(given)
  parts = read(args.sweeps, args.seeds)
  blocks = write_up(parts)
  title = "Ablations"
  blocks.insert(0, Heading(1, title))
  files.make_folder(args.out)
  files.make_folder(args.out / _FIGURES)
  texts: dict[str, str | bytes] = {
    f"{_FIGURES}/{block.name}.png": block.data for block in blocks if isinstance(block, Picture)
  }
  texts |= {
    "report.html": to_html(title, blocks),
    "report.md": to_markdown(blocks, _FIGURES),
    "report.json": json.dumps(to_json(parts), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    "report.csv": to_csv(parts),
  }
  for name, content in texts.items():
    with files.naming(args.out / name):
      files.write_whole(args.out / name, content)
  for part in parts:
    tensorboard.write(args.out / "tensorboard", part.sweep, part.rows)
  print(f"written to {args.out}/report.html, report.md, report.json and report.csv")


def read(folders: Sequence[pathlib.Path], seeds: Collection[int] | None = None) -> list[Part]:
  """Reads sweeps and compares their rows, by system.

  Args:
    folders: of the sweeps.
    seeds: those to compare; None for all of a sweep.

  Raises:
    UserError: a folder is none of a sweep or damaged, sweeps of one system were not made alike, or
      no row can be compared.
  """
  by_system: dict[str, list[Sweep]] = {}
  for folder in folders:
    sweep = sweeps.read(folder)
    by_system.setdefault(sweep.system, []).append(sweep)
  parts = []
  for found in by_system.values():
    sweep = sweeps.join(found)
    rows, left_out = sweeps.comparable(sweep, seeds)
    if not rows:
      why = "; ".join(f"{row}: {reason}" for row, reason in left_out.items()) or "it has no rows"
      places = ", ".join(map(str, sweep.folders))
      raise UserError(f"{places}: no row is complete, so that there is nothing to report ({why})")
    parts.append(Part(sweep, rows, left_out, comparison.compare(sweep, rows)))
  return parts


def write_up(parts: Sequence[Part]) -> list[Block]:
  """The report's blocks, but for the title."""
  blocks: list[Block] = []
  for part in parts:
    sweep, rows = part.sweep, part.rows
    found = {
      "scores": sections.results(sweep, rows, part.cells, part.left_out),
      "frames": list(strips.strips(sweep, rows)),
      "curves": list(figures.curves(sweep, rows)),
      "cost": sections.cost(sweep, rows),
      "what was run": sections.what_was_run(sweep),
    }
    for title, section in found.items():
      blocks += [Heading(2, f"{sections.NAMES[sweep.system]}: {title}"), *section]
  return blocks


def to_json(parts: Sequence[Part]) -> dict[str, Any]:
  """Everything that the tables show, in full precision."""
  systems = []
  for part in parts:
    rows = {
      row: {
        "seeds": [trial.seed for trial in part.rows[row]],
        "parameters": comparison.parameters(part.rows[row][0]),
        "overrides": part.sweep.rows[row],
        "cells": [{**quantity._asdict(), **cell._asdict()} for quantity, cell in cells.items()],
      }
      for row, cells in part.cells.items()
    }
    systems.append(
      {
        "system": part.sweep.system,
        "folders": [str(folder) for folder in part.sweep.folders],
        "base": part.sweep.base,
        "sweep": part.sweep.record,
        "rows": rows,
        "left_out": part.left_out,
      }
    )
  return {"version": 1, "systems": systems}


def to_csv(parts: Sequence[Part]) -> str:
  """The same as lines: one for every row and quantity, None as an empty field."""
  page = io.StringIO()
  writer = csv.DictWriter(page, _COLUMNS, lineterminator="\n")
  writer.writeheader()
  for part in parts:
    for row, cells in part.cells.items():
      for quantity, cell in cells.items():
        fields = {**quantity._asdict(), **cell._asdict()}
        fields["values"] = " ".join(map(repr, cell.values))
        writer.writerow({"system": part.sweep.system, "row": row, **fields})
  return page.getvalue()


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.report", __doc__)
  parser.add_argument("sweeps", metavar="SWEEP", nargs="+", type=paths.place)
  parser.add_argument(
    "--out", type=paths.place, metavar="DIR", default="report", help="default: report"
  )
  parser.add_argument(
    "--seeds", type=_seeds, metavar="0,1", help="those that are compared; default: all of a sweep"
  )
  return parser.parse_args(given)


def _seeds(text: str) -> list[int]:
  """The argument 0,1 of --seeds."""
  try:
    found = [int(x) for x in text.split(",")]
  except ValueError:
    raise argparse.ArgumentTypeError(f"{text!r} are no seeds, such as 0,1") from None
  if min(found) < 0:
    raise argparse.ArgumentTypeError(f"{text!r}: a seed is not negative")
  return sorted(set(found))


if __name__ == "__main__":
  cli.run(main)
