"""Reads what `vsr_jax.sweep` wrote: which rows are there, and whether they can be compared."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from vsr_jax import checkpoint, guards, json_files
from vsr_jax.errors import UserError
from vsr_jax.json_files import (
  anything,
  array,
  fields,
  integer,
  mapping,
  number,
  optional,
  plain_name,
  text,
  truth,
)
from vsr_jax.sweeps.record import EVALUATION, ROW, SWEEP, WAITING
from vsr_jax.train import goodput
from vsr_jax.train.recipe import LARGEST_SEED

_SEED = integer(0, LARGEST_SEED)
_SWEEP = fields(
  {
    "version": integer(1, 1),
    "system": text,
    "config": text,
    "budget": text,
    "rows": mapping(plain_name, mapping(text, anything)),
    "seeds": array(_SEED, longest=1000),
    "base": plain_name,
  },
  {
    "overrides": mapping(text, anything),
    "stage_overrides": mapping(text, mapping(text, anything)),
    "row_overrides": mapping(plain_name, mapping(text, anything)),
    "data": mapping(text, anything),
    "start": anything,
    "evaluation": anything,
  },
  more=True,
)
_COMMANDS = mapping(text, array(text))
_ROW = fields(
  {"state": text},
  {
    "stage": optional(text),
    "reason": optional(text),
    "stages": array(plain_name, longest=100),
    "runs": mapping(plain_name, text),
    "commands": _COMMANDS,
    "commit": optional(text),
    "machine": optional(text),
    "started": optional(text),
    "seconds": mapping(text, number(0)),
  },
  more=True,
)
_SCORES = mapping(text, mapping(text, optional(number())))
_PART = fields({"frames": integer(), "scores": _SCORES})
_MOTION = {"motion": mapping(text, _PART)}
_TOTAL = fields({"frames": integer(), "scores": _SCORES}, _MOTION)
_CLIP = fields({"name": text, "frames": integer(), "scores": _SCORES}, _MOTION)
_WORK = fields({}, {"flops_per_step": number(0)}, more=True)
_METRICS = fields(
  {
    "complete": truth,
    "methods": array(text),
    "clips": array(_CLIP),
    "total": _TOTAL,
    "skipped": mapping(text, text),
  },
  more=True,
)

_LISTED = 5  # differences that are named; the rest are counted

# Of metrics.json: what differs from row to row, and what is not of how they were scored.
_RESULTS = {"complete", "checkpoint", "checkpoints", "outputs", "methods", "clips", "total"}
# Of sweep.json: what is of single rows, and may differ between sweeps of one report.
_OF_ROWS = ("rows", "seeds", "row_overrides")
_SWEEP_REMEDY = "give the --out of vsr_jax.sweep, or run that again"

METHODS = {"fmanet": "FMA-Net"}  # the row in metrics.json; KEEP's is named as the sweep's


@dataclasses.dataclass(frozen=True)
class Trial:
  """A row of a sweep with one seed.

  Attributes:
    row: the row's name.
    seed: the seed.
    folder: SWEEP/ROW/SEED.
    record: what row.json holds.
    runs: the folders of its runs, by stage, in order.
    metas: what its checkpoints tell of themselves, by stage, of those that are there.
    metrics: what the evaluation wrote; None if there is none that is complete.
    method: the name of its frames in there.
  """

  row: str
  seed: int
  folder: pathlib.Path
  record: Mapping[str, Any]
  runs: Mapping[str, pathlib.Path]
  metas: Mapping[str, Mapping[str, Any]]
  metrics: Mapping[str, Any] | None
  method: str

  @property
  def missing(self) -> str | None:
    """Why it cannot be compared; None if it can."""
    state, stage = self.record["state"], self.record.get("stage")
    if state == "failed":
      reason = self.record.get("reason") or "no reason was written down"
      return f"failed in {stage}: {guards.shorten(reason, 300)}"
    if state != "done":
      return f"{guards.shorten(state)}{f' ({guards.shorten(stage)})' if stage else ''}"
    return None if self.metrics else "its evaluation is not complete"


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a report has of a system: one sweep, or several that were made alike.

  Attributes:
    system: "fmanet" or "keep".
    folders: of the sweeps.
    record: what the first one's sweep.json holds.
    rows: overrides by row, in the order of the table.
    trials: all that were asked for, by row and seed.
  """

  system: str
  folders: tuple[pathlib.Path, ...]
  record: Mapping[str, Any]
  rows: Mapping[str, Mapping[str, Any]]
  trials: Mapping[tuple[str, int], Trial]

  @property
  def base(self) -> str:
    """The row that the others are compared with; it may not be there."""
    return self.record["base"]


def read(folder: pathlib.Path) -> Sweep:
  """Reads a sweep's folder.

  Raises:
    UserError: it is none, or a file in it is damaged.
  """
  path = folder / SWEEP
  record = _load(path, _SWEEP)
  if record is None:
    raise UserError(f"{folder}: no folder of a sweep ({SWEEP} is missing); {_SWEEP_REMEDY}")
  if record["system"] not in ("fmanet", "keep"):
    system = guards.shorten(record["system"])
    raise UserError(f"{path}: of {system!r}, neither fmanet nor keep; {_SWEEP_REMEDY}")
  trials = {}
  for row in record["rows"]:
    for seed in record["seeds"]:
      trials[row, seed] = _read_trial(folder, row, seed, METHODS.get(record["system"], row))
  changed = record.get("row_overrides", {})
  rows = {row: overrides | changed.get(row, {}) for row, overrides in record["rows"].items()}
  return Sweep(record["system"], (folder,), record, rows, trials)


def _load(path: pathlib.Path, schema: json_files.Schema) -> Any:
  """The values in a file of JSON; None if there is none."""
  try:
    return json_files.load(path, schema, remedy=_SWEEP_REMEDY)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror or e}); {_SWEEP_REMEDY}") from e


def _read_trial(sweep: pathlib.Path, row: str, seed: int, method: str) -> Trial:
  folder = sweep / row / str(seed)
  record = _load(folder / ROW, _ROW) or {"state": WAITING}
  given = record.get("runs", {})
  stages = [stage for stage in record.get("stages", given) if stage in given]
  runs = {stage: sweep / _inside(folder / ROW, given[stage]) for stage in stages}
  metas = {}
  for stage, run in runs.items():
    if checkpoint.has_checkpoint(run):
      metas[stage] = checkpoint.read_meta(run)
  metrics = _load(folder / EVALUATION / "metrics.json", _METRICS)
  if metrics is not None and not (metrics["complete"] and metrics["clips"]):
    metrics = None
  if metrics and method not in metrics["methods"]:
    raise UserError(f"{folder}/evaluation/metrics.json: has no method {method}; {_SWEEP_REMEDY}")
  return Trial(row, seed, folder, record, runs, metas, metrics, method)


def _inside(file: pathlib.Path, path: str) -> pathlib.PurePosixPath:
  """A path that a file names, which must not lead out of the sweep's folder."""
  found = pathlib.PurePosixPath(path)
  if not found.parts or not all(map(guards.is_name, found.parts)):
    raise UserError(f"{file}: {guards.shorten(path)!r} leads out of the sweep; {_SWEEP_REMEDY}")
  return found


def work_of(run: pathlib.Path) -> float | None:
  """Floating-point operations of a step of a run, as it counted them; None if it did not.

  Raises:
    UserError: the run's file of it is damaged.
  """
  found = _load(run / goodput.FILE, _WORK) or {}
  return found.get("flops_per_step")


def join(sweeps: Sequence[Sweep]) -> Sweep:
  """Sweeps of one system as one, for example the parts that several hosts made.

  Raises:
    UserError: they were not made alike, and the text says what differs; or have a trial twice.
  """
  first, *others = sweeps
  rows, trials = dict(first.rows), dict(first.trials)
  for sweep in others:
    places = f"{first.folders[0]} and {sweep.folders[0]}"
    if differing := _differing(_common(first.record), _common(sweep.record)):
      raise UserError(f"{places} cannot be compared: {'; '.join(differing)}; report them apart")
    for row, overrides in sweep.rows.items():
      if rows.setdefault(row, overrides) != overrides:
        what = f"{row} is changed otherwise"
        raise UserError(f"{places} cannot be compared: {what}; report them apart")
    for name, trial in sweep.trials.items():
      there = trials.get(name)
      if there and there.record["state"] != "waiting" and trial.record["state"] != "waiting":
        raise UserError(f"{places} both have {name[0]} with seed {name[1]}; leave one out")
      if not there or there.record["state"] == "waiting":
        trials[name] = trial
  folders = tuple(folder for sweep in sweeps for folder in sweep.folders)
  return Sweep(first.system, folders, first.record, rows, trials)


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
  """What sweeps of one report have in common; their data may be in different places."""
  return {name: _without_paths(x) for name, x in record.items() if name not in _OF_ROWS}


def _without_paths(value: Any) -> Any:
  if not isinstance(value, dict):
    return value
  return {key: _without_paths(x) for key, x in value.items() if key not in ("path", "init_from")}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
  """What differs between two records, in words, each entry of what is nested by itself."""
  ours, theirs = (flatten_dict(dict(record), sep=" ") for record in (one, other))
  lines = [
    f"{name} is {_shown(theirs.get(name))}, not {_shown(ours.get(name))}"
    for name in {**ours, **theirs}
    if ours.get(name) != theirs.get(name)
  ]
  more = len(lines) - _LISTED
  return lines if more <= 0 else [*lines[:_LISTED], f"and {more} more"]


def _shown(value: Any) -> str:
  return guards.shorten("nothing" if value is None else str(value), 80)


def comparable(
  sweep: Sweep, seeds: Collection[int] | None
) -> tuple[dict[str, list[Trial]], dict[str, str]]:
  """The rows that may stand in one table, and why the others may not.

  Args:
    sweep: of the report.
    seeds: those to compare; None for all of the sweep.

  Returns:
    By row its trials, one for each seed; and by row what is missing or differs from the base row,
    or from the first row that is complete where the base is not.
  """
  wanted = sorted({seed for _, seed in sweep.trials} if seeds is None else seeds)
  found, left_out = {}, {}
  for row in sweep.rows:
    trials = [sweep.trials[row, seed] for seed in wanted if (row, seed) in sweep.trials]
    reasons = [f"seed {trial.seed}: {trial.missing}" for trial in trials if trial.missing]
    there = {trial.seed for trial in trials}
    reasons += [f"seed {seed}: not there" for seed in wanted if seed not in there]
    if reasons:
      left_out[row] = "; ".join(reasons)
    else:
      found[row] = trials
  if not found:
    return {}, left_out
  reference = found.get(sweep.base) or next(iter(found.values()))
  first = reference[0]
  for row, trials in list(found.items()):
    differing = [
      line
      for trial in trials
      for line in _differing(_conditions(first, trial), _conditions(trial, first))
    ]
    if differing:
      del found[row]
      left_out[row] = f"not made as {first.row}: {'; '.join(dict.fromkeys(differing))}"
  return found, left_out


def _conditions(trial: Trial, other: Trial) -> dict[str, Any]:
  """How a trial was trained, in stages that another one has, too, and how it was evaluated."""
  assert trial.metrics is not None  # it is complete
  steps = {
    f"steps of {stage}": meta.get("step")
    for stage, meta in trial.metas.items()
    if stage in other.metas
  }
  clips = {clip["name"]: clip["frames"] for clip in trial.metrics["clips"]}
  setting = {name: x for name, x in trial.metrics.items() if name not in _RESULTS}
  return {**steps, **setting, "clips": clips}
