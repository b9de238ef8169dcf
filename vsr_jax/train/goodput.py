"""Where the seconds of a run go, over all its sessions: WORKDIR/goodput.json."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from vsr_jax import json_files
from vsr_jax.chips import Chip
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.json_files import fields, integer, number
from vsr_jax.paths import place

FILE = "goodput.json"
WRITE_EVERY = 30.0  # seconds between writings while steps run

KINDS = ("start", "compile", "data", "steps", "evaluation", "checkpoints", "lost")
_RATES = ("steps_per_second", "samples_per_second", "flop_utilisation")
_SCHEMA = fields(
  {
    "sessions": integer(1),
    "step": integer(),
    "timed_steps": integer(),
    "lost_steps": integer(),
    "seconds": fields(dict.fromkeys(KINDS, number(0))),
  },
  more=True,
)


class Work(NamedTuple):
  """What one step of the session's program is."""

  samples: int  # of all hosts together
  flops: float  # of all devices together, as `vsr_jax.flops` counts them
  devices: int
  chip: Chip | None  # None: one that the table does not have, such as a CPU
  dtype: str  # of products


class Goodput:
  """Divides a session's time, adds the sessions before, and writes the sums; a context manager.

  The time is that of the training loop's thread in the first process, which alone writes the file.
  What is not measured as something else is "start" until `begin`, and "steps" afterwards. "data" is
  time in which a batch is made while no device has a step to run. When a session was killed, the
  next one repeats the steps after the last checkpoint: "lost" is their number times the mean time
  of a step, taken from "steps".
  """

  def __init__(self, workdir: str | pathlib.Path, began: float | None = None):
    """Starts the measurement.

    Args:
      workdir: the run's folder.
      began: when the session began, by `time.monotonic`; None: now.
    """
    self._path = place(workdir) / FILE
    self._began = time.monotonic() if began is None else began
    self._measured = dict.fromkeys(KINDS, 0.0)  # in this session; "steps" is the rest
    self._before: dict[str, Any] | None = None
    self._first: int | None = None  # finished steps when the loop began
    self._step = 0
    self._work: Work | None = None
    self._row = 0, 0.0  # the step of the last rates, and the seconds of steps until then
    self._written = 0.0
    self._waiting = ThreadPoolExecutor(1, "end of steps")
    self._end: Future[float] | None = None  # of the latest step, by `time.monotonic`

  def __enter__(self) -> Goodput:
    return self

  def __exit__(self, *error: object) -> None:
    self._waiting.shutdown(wait=False, cancel_futures=True)
    self.write()

  def begin(self, step: int) -> None:
    """Ends the start: the next steps are numbered from `step` + 1.

    Warns:
      UserWarning: the file of the sessions before is damaged, and its sums begin anew; or the
        file cannot be written.
    """
    self._measured["start"] = time.monotonic() - self._began
    self._before = _read(self._path)
    self._first = self._step = step
    self._row = step, 0.0
    self.write()

  def take(self, work: Work) -> None:
    """Takes what a step of this session is."""
    self._work = work

  @contextlib.contextmanager
  def of(self, kind: str) -> Iterator[None]:
    """A context whose time is of a kind; such contexts are not nested."""
    began = time.monotonic()
    try:
      yield
    finally:
      self._measured[kind] += time.monotonic() - began

  @contextlib.contextmanager
  def making_batch(self) -> Iterator[None]:
    """A context in which a batch is made; the part of it counts in which no step runs."""
    began = time.monotonic()
    yield
    if self._end is not None and self._end.done():  # without a step before it, this is the start
      self._measured["data"] += time.monotonic() - max(began, self._end.result())

  def started(self, results: Any) -> None:
    """Takes arrays that a step which was just started will make."""
    self._end = self._waiting.submit(_end_of, results)

  def finished(self, step: int) -> None:
    """Notes that a step has ended, and writes the file from time to time.

    Warns:
      UserWarning: the file cannot be written.
    """
    self._step = step
    if time.monotonic() - self._written >= WRITE_EVERY:
      self.write()

  def scalars(self) -> dict[str, float]:
    """The rates since the last call, and the sums of all sessions, for TensorBoard."""
    step, seconds = self._row
    self._row = self._step, self._stepping()
    rates = self._rates(self._step - step, self._row[1] - seconds)
    sums = self._sums()
    told = {f"seconds/{kind}": x for kind, x in sums["seconds"].items()}
    told |= {"lost_steps": sums["lost_steps"]}
    told |= {name: x for name, x in rates.items() if x is not None}
    return {f"goodput/{name}": x for name, x in told.items()}

  def write(self) -> None:
    """Writes the file, once the loop has begun.

    Warns:
      UserWarning: it cannot be written, on a full disk say, for which the run does not end.
    """
    if self._first is None or jax.process_index() != 0:
      return
    self._written = time.monotonic()
    told = self._sums() | self._rates(self._step - self._first, self._stepping())
    if self._work:
      told |= {"flops_per_step": self._work.flops, "devices": self._work.devices}
      told |= {"chip": self._work.chip.name if self._work.chip else None}
    try:
      write_whole(self._path, json.dumps(told, indent=1) + "\n")
    except (OSError, UserError) as e:
      warnings.warn(f"{self._path}: not written now, {e}; the run goes on", stacklevel=3)

  def _session(self) -> dict[str, float]:
    """This session's seconds by kind, which sum up to its time."""
    rest = time.monotonic() - self._began - sum(self._measured.values())
    return self._measured | {"steps": max(rest, 0.0)}

  def _stepping(self) -> float:
    """This session's seconds of steps and of waiting for data."""
    session = self._session()
    return session["steps"] + session["data"]

  def _rates(self, steps: int, seconds: float) -> dict[str, float | None]:
    work = self._work
    if not work or not steps:
      return dict.fromkeys(_RATES)
    speed, used = steps / max(seconds, 1e-9), None
    if work.chip:
      used = speed * work.flops / (work.devices * work.chip.peak(work.dtype))
    return dict(zip(_RATES, (speed, speed * work.samples, used), strict=True))

  def _sums(self) -> dict[str, Any]:
    """The sums of all sessions; to be called once the loop has begun."""
    assert self._first is not None
    seconds, sessions, timed, lost = self._session(), 1, self._step - self._first, 0
    if before := self._before:
      past = dict(before["seconds"])
      repeated = min(max(before["step"] - self._first, 0), before["timed_steps"])
      wasted = past["steps"] * repeated / max(before["timed_steps"], 1)
      past["lost"] += wasted
      past["steps"] -= wasted
      seconds = {kind: seconds[kind] + past[kind] for kind in KINDS}
      sessions, lost = before["sessions"] + 1, before["lost_steps"] + repeated
      timed += before["timed_steps"] - repeated
    seconds = {kind: round(x, 3) for kind, x in seconds.items()}
    told = {"sessions": sessions, "step": self._step, "timed_steps": timed, "lost_steps": lost}
    return told | {"seconds": seconds}


def _end_of(results: Any) -> float:
  with contextlib.suppress(Exception):  # which the loop meets, too
    jax.block_until_ready(results)
  return time.monotonic()


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return json_files.read(path, _SCHEMA)
  except FileNotFoundError:
    return None
  except (OSError, UserError, json_files.BadJson) as e:  # a folder of that name, for instance
    warnings.warn(f"{path}: damaged ({e}); where the time goes is summed anew", stacklevel=3)
    return None
