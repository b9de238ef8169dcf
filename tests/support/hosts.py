"""Two processes on this machine that train one run, as two hosts would."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[2]


def free_address() -> str:
  """HOST:PORT that nobody listens on."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def start_trainers(module: str, *arguments: object) -> list[subprocess.Popen]:
  """Starts a trainer twice, as two processes of four CPU devices each."""
  address, environment = free_address(), os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
  cluster = ["--multihost", "--coordinator", address, "--processes", "2", "--process"]
  command = [sys.executable, "-m", module, *map(str, arguments), *cluster]
  options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
  return [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, **options) for i in (0, 1)]


def finish(processes: Sequence[subprocess.Popen], code: int) -> list[str]:
  """Waits for processes that end with a code, and gives what each has written to stderr."""
  said = [process.communicate(timeout=900)[1] for process in processes]
  for process, text in zip(processes, said, strict=True):
    assert process.returncode == code, text
    assert "Traceback" not in text
  return said


def wait_for_a_step(workdir: pathlib.Path, process: subprocess.Popen) -> None:
  """Waits until a run's log has a row."""
  log, deadline = workdir / "log.jsonl", time.monotonic() + 200
  while not (log.exists() and log.read_text()):
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.05)
