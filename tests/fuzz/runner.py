"""Runs one command on one input in a process of its own, and judges how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

from vsr_jax import cli

# Of one input: what a refusal may take at most, with the imports that the process began with.
SECONDS = 60
MEGABYTES = 1500

DONE, REFUSED, FAILED = "done", "refused", "failed"


@dataclasses.dataclass(frozen=True)
class Case:
  """One input to try.

  Attributes:
    name: tells it from the others and how it was made; the same in every run of one seed.
    work: the command; it returns, or raises as `vsr_jax.cli.run` expects.
    check: called after `work`, in the same process, with whether it was refused; raises
      `AssertionError` for a result that is wrong.
    before: makes the input, in the process that runs `work`.
  """

  name: str
  work: Callable[[], None]
  check: Callable[[bool], None] = lambda refused: None
  before: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a case ended.

  Attributes:
    name: the case's.
    kind: "done" (exit code 0), "refused" (2 and one line) or "failed".
    said: what was printed to stderr, its end.
    seconds: it took.
    megabytes: the process's largest resident size, with what it began with.
  """

  name: str
  kind: str
  said: str
  seconds: float
  megabytes: float


def run_cases(cases: Iterable[Case], jobs: int = 1) -> Iterator[Outcome]:
  """Runs cases, `jobs` at a time, each in a forked process; yields as they end.

  The calling process must have no thread of its own, and has imported what the cases need.
  """
  cases = iter(cases)
  running: dict[int, _Running] = {}
  while True:
    while len(running) < jobs and (case := next(cases, None)) is not None:
      process = _start(case)
      running[process.pid] = process
    if not running:
      return
    yield from _ended(running)
    time.sleep(0.002)


def run_case(case: Case) -> Outcome:
  """Runs one case."""
  return next(run_cases([case]))


@dataclasses.dataclass
class _Running:
  pid: int
  name: str
  began: float
  log: str
  late: bool = False


def _ended(running: dict[int, _Running]) -> Iterator[Outcome]:
  for process in list(running.values()):
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    seconds = time.monotonic() - process.began
    if pid:
      del running[pid]
      yield _judge(process, os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss / 1024)
    elif seconds > SECONDS:
      process.late = True
      os.kill(process.pid, signal.SIGKILL)


def _judge(process: _Running, code: int, seconds: float, megabytes: float) -> Outcome:
  with open(process.log, errors="replace") as f:
    said = f.read()
  os.unlink(process.log)
  lines = [line for line in said.splitlines() if line and not line.startswith("warning: ")]
  if process.late:
    kind, said = FAILED, f"took more than {SECONDS} s\n{said}"
  elif megabytes > MEGABYTES:
    kind, said = FAILED, f"took {megabytes:.0f} MB\n{said}"
  elif code == 0:
    kind = DONE
  elif code == 2 and len(lines) == 1 and lines[0].startswith("error: "):
    kind = REFUSED
  else:
    kind, said = FAILED, f"ended with {code}\n{said}"
  return Outcome(process.name, kind, said[-3000:], seconds, megabytes)


def _start(case: Case) -> _Running:
  file, log = tempfile.mkstemp()
  began = time.monotonic()
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid:
    os.close(file)
    return _Running(pid, case.name, began, log)
  code = 70
  try:  # nothing of the child may come back to the caller's code
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = _run(case)
  except BaseException:
    traceback.print_exc()
  finally:
    with contextlib.suppress(BaseException):
      sys.stdout.flush()
      sys.stderr.flush()
    os._exit(code)


def _run(case: Case) -> int:
  """Runs a case here; returns the exit code of its command, or 70 for a wrong result."""
  case.before()
  with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
    try:
      cli.run(case.work)
    except SystemExit as e:
      code = e.code
  if code in (0, 2):
    case.check(code == 2)
  return code
