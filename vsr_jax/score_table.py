"""The table of scores that an evaluation makes: as JSON, as Markdown, in files."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vsr_jax import files, json_files
from vsr_jax.errors import UserError
from vsr_jax.metrics import Metric, Score
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
  """

  methods: Sequence[str]
  metrics: Sequence[Metric]
  setting: dict[str, Any]
  notes: Sequence[str] = ()
  mean_of_clips: bool = False
  scores: dict[str, Mapping[str, Score]] = dataclasses.field(default_factory=dict)
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  complete: bool = False


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
  """Number of frames and scores by method, of one clip or of all."""
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
  arrows = [f"{metric.label} {'↑' if metric.higher else '↓'}" for metric in table.metrics]
  lines = [["clip", "method", "frames", *arrows], ["---"] * 2 + ["---:"] * (1 + len(arrows))]
  for row in [{"name": "total", **entries["total"]}, *entries["clips"]]:
    for method in table.methods:
      cells = [_cell(row["name"]), _cell(method), str(row["frames"])]
      lines.append([*cells, *(_value(metric, row["scores"], method) for metric in table.metrics)])
  notes = [*table.notes]
  if len(table.methods) > 1:
    notes.append(f"In brackets: the difference from {table.methods[0]}.")
  if not table.complete:
    notes.append("Incomplete: the run has not reached every clip.")
  if table.skipped:
    skipped = [f"{name} ({reason})" for name, reason in table.skipped.items()]
    count = len(skipped) + len(table.scores)
    notes.append(f"Skipped {len(skipped)} of {count} clips: {'; '.join(skipped)}.")
  text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
  return "\n\n".join([text, *notes])


def _value(metric: Metric, scores: Mapping[str, Mapping[str, Any]], method: str) -> str:
  """A method's value as a cell, with its difference from the first method's."""
  x, first = scores[method][metric.name], next(iter(scores))
  if x is None:
    return "–"
  shown = f"{metric.shown_times * x:.{metric.places}f}"
  base = scores[first][metric.name]
  if method == first or base is None:
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
