"""The table of scores that an evaluation makes: as JSON, as Markdown, in files."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vsr_jax import files, json_files
from vsr_jax.errors import UserError
from vsr_jax.metrics import Metric, Score, magnitude
from vsr_jax.metrics.sums import compute, mean_over_clips


@dataclasses.dataclass
class ScoreTable:
  """What an evaluation has found so far.

  Attributes:
    methods: names of the methods that are scored; the first is the one to beat.
    metrics: the columns.
    setting: JSON entries that describe the evaluation (data, checkpoint, ...).
    notes: sentences for below the table.
    mean_of_clips: whether the total is the mean of the clips' values, instead of the value over
      all frames of all clips.
    scores: the clips' scores by method.
    skipped: by clip, why it could not be scored.
    complete: whether no clip is left to do.
    apart: methods that have another truth, so that they are not compared with the first.
  """

  methods: Sequence[str]
  metrics: Sequence[Metric]
  setting: dict[str, Any]
  notes: Sequence[str] = ()
  mean_of_clips: bool = False
  scores: dict[str, Mapping[str, Score]] = dataclasses.field(default_factory=dict)
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  complete: bool = False
  apart: Collection[str] = ()


def to_json(table: ScoreTable) -> dict[str, Any]:
  """The table as JSON entries: values in full precision, null where there is none.

  The infinite PSNR of a frame that equals its truth and the tOF of a single frame become null.
  """
  clips = [{"name": name, **_entry(table, [scores])} for name, scores in table.scores.items()]
  return {
    "complete": table.complete,
    **table.setting,
    "methods": list(table.methods),
    "clips": clips,
    "total": _entry(table, list(table.scores.values())),
    "skipped": table.skipped,
  }


def _entry(table: ScoreTable, clips: Sequence[Mapping[str, Score]]) -> dict[str, Any]:
  """Number of frames and scores by method, of one clip or of all, and of their parts by motion."""
  entry = _values(table, clips)
  parts = {}
  for name in magnitude.RANGES:
    there = [clip for clip in clips if name in clip[table.methods[0]].parts]
    if there:
      methods = table.methods
      of_part = [{x: clip[x].parts.get(name, Score()) for x in methods} for clip in there]
      parts[name] = _values(table, of_part)
  return entry | ({"motion": parts} if parts else {})


def _values(table: ScoreTable, clips: Sequence[Mapping[str, Score]]) -> dict[str, Any]:
  scores = {}
  for method in table.methods:
    parts = [clip[method] for clip in clips]
    if table.mean_of_clips:
      values = mean_over_clips(table.metrics, parts)
    else:
      values = compute(table.metrics, sum(parts, Score()))
    scores[method] = {name: x if math.isfinite(x) else None for name, x in values.items()}
  return {"frames": sum(clip[table.methods[0]].frames for clip in clips), "scores": scores}


def to_markdown(table: ScoreTable) -> str:
  """The table in Markdown: the total, then each clip, a row a method; and its notes."""
  entries = to_json(table)
  parts = [_lines(table, "clip", [{"name": "total", **entries["total"]}, *entries["clips"]])]
  if motion := entries["total"].get("motion"):
    parts.append(_lines(table, "motion", [{"name": name, **row} for name, row in motion.items()]))
  notes = [*table.notes, *([magnitude.NOTE] if motion else [])]
  if len(table.methods) > 1:
    notes.append(f"In brackets: the difference from {table.methods[0]}.")
  if not table.complete:
    notes.append("Incomplete: the run has not reached every clip.")
  if table.skipped:
    skipped = [f"{name} ({reason})" for name, reason in table.skipped.items()]
    count = len(skipped) + len(table.scores)
    notes.append(f"Skipped {len(skipped)} of {count} clips: {'; '.join(skipped)}.")
  return "\n\n".join([*parts, *notes])


def _lines(table: ScoreTable, kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of `to_json`, each with a line a method, as a table in Markdown."""
  arrows = [f"{metric.label} {'↑' if metric.higher else '↓'}" for metric in table.metrics]
  lines = [[kind, "method", "frames", *arrows], ["---"] * 2 + ["---:"] * (1 + len(arrows))]
  for row in rows:
    for method in table.methods:
      cells = [_cell(row["name"]), _cell(method), str(row["frames"])]
      values = (_value(table, metric, row["scores"], method) for metric in table.metrics)
      lines.append([*cells, *values])
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _value(
  table: ScoreTable, metric: Metric, scores: Mapping[str, Mapping[str, Any]], method: str
) -> str:
  """A method's value as a cell, with its difference from the first method's."""
  x, first = scores[method][metric.name], next(iter(scores))
  if x is None:
    return "–"
  shown = f"{metric.shown_times * x:.{metric.places}f}"
  base = scores[first][metric.name]
  if method == first or method in table.apart or base is None:
    return shown
  return f"{shown} ({metric.shown_times * (x - base):+.{metric.places}f})"


def _cell(text: str) -> str:
  return text.replace("|", r"\|")


def is_complete(folder: pathlib.Path) -> bool:
  """Whether a folder holds a table in which no clip is left to do.

  Raises:
    UserError: its metrics.json is damaged.
  """
  schema = json_files.fields({"complete": json_files.truth}, more=True)
  try:
    return json_files.load(folder / "metrics.json", schema, remedy="remove it")["complete"]
  except FileNotFoundError:
    return False


def write(folder: pathlib.Path, table: ScoreTable) -> None:
  """Writes metrics.json and metrics.md, each atomically.

  Raises:
    UserError: a file cannot be written.
    OSError: the disk is full.
  """
  texts = {
    "metrics.json": json.dumps(to_json(table), indent=1, allow_nan=False),
    "metrics.md": to_markdown(table),
  }
  for name, text in texts.items():
    path = folder / name
    try:
      files.write_whole(path, f"{text}\n")
    except OSError as e:
      if e.errno in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise UserError(f"{path}: cannot be written ({e.strerror}); name another --out") from e
