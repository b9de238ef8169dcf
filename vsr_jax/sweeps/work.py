"""Runs a sweep's trainers and evaluations, several at a time, each as a command of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Protocol

import tqdm

from vsr_jax import files
from vsr_jax.checkpoint import is_trained
from vsr_jax.score_table import is_complete
from vsr_jax.sweeps import record
from vsr_jax.sweeps.plan import Chain
from vsr_jax.sweeps.record import DONE, EVALUATION, FAILED, RUNNING, WAITING

PAUSE = 1.0  # seconds between looks at the processes
_TAIL = 1 << 16  # bytes of a log that are read
_LONGEST = 400  # characters of a reason


class Process(Protocol):
  """What is used of `subprocess.Popen`."""

  def poll(self) -> int | None: ...

  def wait(self) -> int: ...

  def send_signal(self, number: int, /) -> None: ...


Launch = Callable[[Sequence[str], Mapping[str, str], IO[bytes]], Process]
"""Starts a command with an environment; what it prints goes to the file."""


def launch(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Process:
  """Starts a command as a process."""
  return subprocess.Popen(
    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
  )


@dataclasses.dataclass
class Task:
  """A run to be trained, or a row to be scored.

  Attributes:
    path: ROW/SEED/STAGE or ROW/SEED/evaluation, from the sweep's folder.
    command: what does it.
    steps: of the run; 0 for an evaluation.
    need: the path of the run that has to be there first, or None.
    state: "waiting", "running", "done" or "failed".
    reason: why it failed.
    seconds: what it took, once it is done; 0 if that is not known.
  """

  path: str
  command: Sequence[str]
  steps: int
  need: str | None
  state: str = WAITING
  reason: str | None = None
  seconds: float = 0.0

  @property
  def kind(self) -> str:
    """Its stage, or "evaluation"."""
    return self.path.rpartition("/")[2]


@dataclasses.dataclass
class _Running:
  task: Task
  process: Process
  slot: int
  log: IO[bytes]
  began: float
  before: float  # seconds of earlier sessions
  first: int  # steps that were done then


class Worker:
  """Does the tasks of some chains, and tells in the sweep's folder what became of them."""

  def __init__(
    self,
    folder: pathlib.Path,
    chains: Sequence[Chain],
    tasks: Mapping[str, Task],
    parallel: int,
    devices: Sequence[str],
    launch: Launch,
  ):
    """Takes what is to be done.

    Args:
      folder: the sweep's.
      chains: what it is done for.
      tasks: by path, in the order in which they are begun; those of rows that cannot be trained
        have failed already.
      parallel: how many run at a time.
      devices: numbers of accelerators that the processes get in turn; none: each sees all.
      launch: starts a command.
    """
    self._folder, self._chains, self._tasks = folder, chains, tasks
    self._parallel, self._devices, self._launch = parallel, devices, launch
    self._running: list[_Running] = []
    self._shown: tuple[int, str, str] | None = None
    for task in tasks.values():
      needed = task.need is None or tasks[task.need].state == DONE
      if task.state == WAITING and needed and is_done(folder, task):
        task.state = DONE
        task.seconds = (record.read_run(folder, task.path) or {"seconds": 0.0})["seconds"]

  def work(self) -> None:
    """Does everything; what fails is written down, and the rest goes on.

    Raises:
      KeyboardInterrupt, Terminated: it came; the trainers have saved what they had.
      OSError: a record cannot be written.
    """
    self._fail_what_needs_failed()
    for chain in self._chains:
      self._write(chain)
    total = sum(task.steps for task in self._tasks.values())
    shape = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {elapsed}{postfix}"
    with tqdm.tqdm(total=total, bar_format=shape, unit_scale=False) as bar:
      try:
        while self._begin_some() or self._running:
          self._show(bar)
          time.sleep(PAUSE)
          self._end_some()
      except BaseException:
        self._stop()
        raise
      self._show(bar)

  def _begin_some(self) -> bool:
    """Begins what there is room for; whether something was begun."""
    begun = False
    for task in self._tasks.values():
      if len(self._running) == self._parallel:
        break
      if task.state == WAITING and (task.need is None or self._tasks[task.need].state == DONE):
        self._begin(task)
        begun = True
    return begun

  def _begin(self, task: Task) -> None:
    slot = min(set(range(self._parallel)) - {other.slot for other in self._running})
    known = record.read_run(self._folder, task.path)
    before = known["seconds"] if known else 0.0
    files.make_folder((self._folder / task.path).parent)
    record.write_run(self._folder, task.path, task.command, before, task.steps)
    log = (self._folder / f"{task.path}.txt").open("ab")
    log.write(f"$ {shlex.join(task.command)}\n".encode())
    log.flush()
    environment = {**os.environ, **environment_of(slot, self._parallel, self._devices)}
    process = self._launch(task.command, environment, log)
    first = steps_of(self._folder / task.path)
    task.state = RUNNING
    self._running.append(_Running(task, process, slot, log, time.monotonic(), before, first))
    tqdm.tqdm.write(f"{task.path}: begins; it prints to {self._folder / task.path}.txt")
    self._write_users(task)

  def _end_some(self) -> None:
    for running in list(self._running):
      code = running.process.poll()
      if code is not None:
        self._end(running, code)

  def _end(self, running: _Running, code: int) -> None:
    task = running.task
    self._running.remove(running)
    running.log.close()
    seconds = running.before + time.monotonic() - running.began
    record.write_run(self._folder, task.path, task.command, seconds, task.steps)
    if code == 0 and is_done(self._folder, task):
      task.state, task.seconds = DONE, seconds
      tqdm.tqdm.write(f"{task.path}: done, {as_time(seconds)}")
    else:
      log = self._folder / f"{task.path}.txt"
      task.state, task.reason = FAILED, f"{why(log, code)} (see {log})"
      tqdm.tqdm.write(f"{task.path}: failed: {task.reason}")
      self._fail_what_needs_failed()
    self._write_users(task)

  def _fail_what_needs_failed(self) -> None:
    for task in self._tasks.values():  # what is needed comes before
      before = self._tasks.get(task.need or "")
      if before and before.state == FAILED and task.state == WAITING:
        task.state, task.reason = FAILED, before.reason

  def _stop(self) -> None:
    """Lets the processes save what they have, and notes that they are to go on later."""
    for running in self._running:
      with contextlib.suppress(OSError):
        running.process.send_signal(signal.SIGTERM)
    for running in self._running:
      running.process.wait()
      running.log.close()
      task = running.task
      task.state = DONE if is_done(self._folder, task) else WAITING
      seconds = running.before + time.monotonic() - running.began
      record.write_run(self._folder, task.path, task.command, seconds, task.steps)
    for chain in self._chains:
      self._write(chain)

  def tasks_of(self, chain: Chain) -> list[Task]:
    """The tasks that a chain needs, in their order."""
    paths = [run.path for run in chain.runs]
    return [self._tasks[x] for x in (*paths, f"{chain.path}/{EVALUATION}") if x in self._tasks]

  def _write_users(self, task: Task) -> None:
    for chain in self._chains:
      if task in self.tasks_of(chain):
        self._write(chain)

  def _write(self, chain: Chain) -> None:
    tasks = self.tasks_of(chain)
    states = [task.state for task in tasks]
    state = next((x for x in (FAILED, RUNNING) if x in states), WAITING)
    state = DONE if set(states) == {DONE} else state
    at = next((task for task in tasks if task.state == state), None)
    stage = at.kind if at and state in (FAILED, RUNNING) else None
    reason = at.reason if at else None
    record.write_row(self._folder, chain, {"state": state, "stage": stage, "reason": reason})

  def failed(self) -> dict[str, str]:
    """Why chains have failed, by path."""
    reasons = {}
    for chain in self._chains:
      for task in self.tasks_of(chain):
        if task.state == FAILED:
          reasons.setdefault(chain.path, task.reason or "")
    return reasons

  def _show(self, bar: tqdm.tqdm) -> None:
    done = sum(task.steps for task in self._tasks.values() if task.state == DONE)
    at = {
      running.task.path: steps_of(self._folder / running.task.path) for running in self._running
    }
    rows = sum(all(t.state == DONE for t in self.tasks_of(chain)) for chain in self._chains)
    left = self._seconds_left(at)
    told = "time left not known yet" if left is None else f"about {as_time(left)} left"
    now = done + sum(at.values()), f"{rows} of {len(self._chains)} rows", told
    if now != self._shown:  # else a log would grow by a line every time
      self._shown = now
      bar.n = now[0]
      bar.set_description_str(now[1], refresh=False)
      bar.set_postfix_str(now[2])

  def _seconds_left(self, at: Mapping[str, int]) -> float | None:
    """An estimate of the time that everything takes still; None before anything is known.

    A stage of which no run has gone on yet is taken to be as fast as the slowest of the others.
    """
    seconds: dict[str, float] = {}
    amounts: dict[str, float] = {}
    for task in self._tasks.values():
      if task.state == DONE and task.seconds:
        seconds[task.kind] = seconds.get(task.kind, 0.0) + task.seconds
        amounts[task.kind] = amounts.get(task.kind, 0.0) + max(task.steps, 1)
    for running in self._running:
      gone = at[running.task.path] - running.first
      if gone > 0:
        kind, now = running.task.kind, time.monotonic() - running.began
        seconds[kind] = seconds.get(kind, 0.0) + now
        amounts[kind] = amounts.get(kind, 0.0) + gone
    rates = {kind: seconds[kind] / amounts[kind] for kind in seconds}
    trained = [rate for kind, rate in rates.items() if kind != EVALUATION]
    if not trained:
      return None
    left = 0.0
    for task in self._tasks.values():
      if task.state in (WAITING, RUNNING):
        amount = max(task.steps, 1) - at.get(task.path, 0)
        unknown = 0.0 if task.kind == EVALUATION else max(trained)
        left += amount * rates.get(task.kind, unknown)
    return left / self._parallel


def is_done(folder: pathlib.Path, task: Task) -> bool:
  """Whether a run has its last checkpoint, or all clips are scored."""
  place = folder / task.path
  return is_complete(place) if task.kind == EVALUATION else is_trained(place, task.steps)


def steps_of(run: pathlib.Path) -> int:
  """The steps that a run has logged last; 0 if there are none yet."""
  for line in reversed(_tail(run / "log.jsonl").splitlines()):
    with contextlib.suppress(ValueError, TypeError, KeyError):
      return int(json.loads(line)["step"])
  return 0


def _tail(path: pathlib.Path) -> str:
  """The end of a text file; "" if it cannot be read."""
  try:
    with path.open("rb") as file:
      file.seek(max(0, path.stat().st_size - _TAIL))
      return file.read(_TAIL).decode(errors="replace")
  except OSError:
    return ""


def why(log: pathlib.Path, code: int) -> str:
  """Why a command failed, in one line: what it printed last, or how it ended."""
  lines = [line.strip() for line in _tail(log).replace("\r", "\n").splitlines()]
  lines = [line for line in lines if line and not line.startswith("$ ")]
  told = next((x for x in reversed(lines) if x.startswith("error: ")), "".join(lines[-1:]))
  told = "".join(x for x in told.removeprefix("error: ") if x.isprintable())[:_LONGEST]
  if code < 0:
    return f"ended by {signal.Signals(-code).name}, for want of memory perhaps"
  return told or f"ended with code {code}"


def environment_of(slot: int, parallel: int, devices: Sequence[str]) -> dict[str, str]:
  """What a process is told of accelerators.

  Args:
    slot: which of the processes at a time it is.
    parallel: how many there are.
    devices: numbers of the accelerators; the processes get one each, in turn.
  """
  if not devices:
    return {}
  device = devices[slot % len(devices)]
  sharing = -(-parallel // len(devices))
  told = {"CUDA_VISIBLE_DEVICES": device, "TPU_VISIBLE_CHIPS": device}
  told |= {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
  if sharing > 1:
    told["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.2f}"
  return told


def as_time(seconds: float) -> str:
  """A duration for people: "42 s", "17 min", "5 h 20 min"."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
