"""What a sweep's folder says of itself: sweep.json, and what became of every row and run."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import pathlib
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vsr_jax import files, json_files
from vsr_jax.errors import UserError
from vsr_jax.locks import NAME, locked
from vsr_jax.sweeps.plan import Chain
from vsr_jax.train.recipe import PACKAGED

SWEEP, ROW = "sweep.json", "row.json"
EVALUATION = "evaluation"  # the folder of a row's scores, and their record's name
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"

# What a call must have in common with those before it; rows and seeds may be added.
_SAME = (
  "system",
  "budget",
  "length",
  "stages",
  "overrides",
  "base",
  "evaluation",
  "recipes",
  "fingerprints",
)

_PATIENCE = 20  # seconds in which another host may write sweep.json
_ANY = json_files.anything
_OF_SWEEP = json_files.fields(
  {
    "version": json_files.integer(1, 1),
    "rows": json_files.mapping(json_files.text, json_files.mapping(json_files.text, _ANY)),
    "seeds": json_files.array(json_files.integer(0)),
  },
  more=True,
)
_OF_RUN = json_files.fields(
  {"command": json_files.array(json_files.text), "seconds": json_files.number(0)}, more=True
)


def join(folder: pathlib.Path, told: Mapping[str, Any], order: Sequence[str]) -> None:
  """Writes sweep.json, or adds rows and seeds to the one that is there.

  Args:
    folder: the sweep's; it is made if it is missing.
    told: what this call is of, JSON values.
    order: the table's rows.

  Raises:
    UserError: the folder holds another sweep or something else; the text says what differs.
  """
  files.make_folder(folder)
  with _patiently_locked(folder):
    check(folder, told)
    found = read(folder) or {**told, "rows": {}, "seeds": []}
    rows = found["rows"] | told["rows"]
    merged = {**found, "rows": {row: rows[row] for row in order if row in rows}}
    merged["rows"] |= rows  # those that the table has no more
    merged["seeds"] = sorted({*found["seeds"], *told["seeds"]})
    _write(folder / SWEEP, merged)


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """What is in sweep.json; None if there is none.

  Raises:
    UserError: it is damaged.
  """
  try:
    return json_files.load(
      folder / SWEEP, _OF_SWEEP, remedy="remove it, and give the same arguments as before"
    )
  except FileNotFoundError:
    return None


def check(folder: pathlib.Path, told: Mapping[str, Any]) -> None:
  """Checks that a folder may become, or is, that of a sweep.

  Args:
    folder: the sweep's; it may be missing.
    told: some or all entries of sweep.json.

  Raises:
    UserError: the folder holds another sweep or something else; the text says what differs.
  """
  if not folder.is_dir():
    files.check_folder(folder)
    return
  found = read(folder)
  if found is None:
    if strange := sorted(set(os.listdir(folder)) - {NAME}):
      raise UserError(f"{folder}: holds {strange[0]} and no {SWEEP}; name a new folder with --out")
    return
  remedy = "give the same to go on with it, or name another folder with --out"
  told = json.loads(json.dumps(told))  # as it is read: tuples are lists
  for key in _SAME:
    there, here = found.get(key), told.get(key)
    if isinstance(there, dict) and isinstance(here, dict):
      name = next((x for x in {**there, **here} if there.get(x) != here.get(x)), None)
      if name is not None:
        raise UserError(
          f"{folder}: holds a sweep with {key} {name} {there.get(name)!r}, not {here.get(name)!r}; "
          f"{remedy}"
        )
    elif key in told and there != here:
      raise UserError(f"{folder}: holds a sweep with {key} {there!r}, not {here!r}; {remedy}")
  for row, changes in told["rows"].items():
    if found["rows"].get(row, changes) != changes:
      raise UserError(
        f"{folder}: its row {row!r} changes {found['rows'][row]}, not {changes}; {remedy}"
      )


@contextlib.contextmanager
def _patiently_locked(folder: pathlib.Path) -> Iterator[None]:
  """Locks the folder itself, for which another host's call that begins now is waited for."""
  began = time.monotonic()
  with contextlib.ExitStack() as stack:
    while True:
      try:
        stack.enter_context(locked(folder))
        break
      except UserError:
        if time.monotonic() - began > _PATIENCE:
          raise
        time.sleep(0.2)
    yield


def write_row(folder: pathlib.Path, chain: Chain, state: Mapping[str, Any]) -> None:
  """Writes a row's row.json.

  Args:
    folder: the sweep's.
    chain: the row with its seed.
    state: "state", "stage" and "reason".
  """
  names = {run.stage: run.path for run in chain.runs}
  if chain.evaluated:
    names[EVALUATION] = f"{chain.path}/{EVALUATION}"
  made = {name: read_run(folder, path) for name, path in names.items()}
  known = [entry for entry in made.values() if entry]
  told = {
    **state,
    "stages": [run.stage for run in chain.runs],
    "runs": {run.stage: run.path for run in chain.runs},
    "commands": {name: entry["command"] for name, entry in made.items() if entry},
    "commit": known[-1].get("commit") if known else None,
    "machine": known[-1].get("machine") if known else machine(),
    "started": min((entry.get("started", "") for entry in known), default=None),
    "seconds": {name: entry["seconds"] for name, entry in made.items() if entry},
  }
  path = folder / chain.path
  files.make_folder(path)
  _write(path / ROW, told)


def read_run(folder: pathlib.Path, path: str) -> dict[str, Any] | None:
  """What is known of how a run, or an evaluation, was made; None if nothing is.

  Warns:
    UserWarning: its record is damaged.
  """
  place = folder / f"{path}.json"
  try:
    return json_files.read(place, _OF_RUN)
  except FileNotFoundError:
    return None
  except json_files.BadJson as e:
    warnings.warn(f"{place}: damaged ({e}); when and how this was made is not known", stacklevel=2)
    return None


def write_run(
  folder: pathlib.Path, path: str, command: Sequence[str], seconds: float, steps: int
) -> None:
  """Writes how a run is made; the time of its start is that of the first session.

  Args:
    folder: the sweep's.
    path: the run's in it.
    command: what is run.
    seconds: of all sessions.
    steps: of the run; 0 for an evaluation.
  """
  before = read_run(folder, path) or {}
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  told = {
    "command": list(command),
    "commit": commit(),
    "machine": machine(),
    "started": before.get("started", now),
    "seconds": round(seconds, 3),
    "steps": steps,
    "log": f"{path}.txt",
  }
  _write(folder / f"{path}.json", told)


def _write(path: pathlib.Path, told: Mapping[str, Any]) -> None:
  files.write_whole(path, json.dumps(told, indent=1, allow_nan=False) + "\n")


@functools.cache
def commit() -> str | None:
  """The commit of the code that runs, with "+" for changed files; None where it is no checkout."""
  root = PACKAGED.parent
  if not (root / ".git").exists():
    return None
  command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
  try:
    done = subprocess.run(
      [*command, "--exclude=*"], capture_output=True, text=True, timeout=20, check=True
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip() or None


@functools.cache
def machine() -> str:
  """The machine's name, its processor and how many cores this process may use."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        name = line.partition(":")[2].strip()
        return f"{platform.node()}, {name}, {os.cpu_count()} cores"
  return f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores"
