"""Workers end with the process that started them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from vsr_jax.processes import Process

# Starts a worker, which prints its number and then has nothing to do for long, and waits.
PARENT = """
import multiprocessing, os, signal, sys, time
from vsr_jax.processes import start_worker

def work():
  start_worker()
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGINT)
  print(os.getpid(), flush=True)
  time.sleep(120)

if __name__ == "__main__":
  context = multiprocessing.get_context("spawn")
  context.Process(target=work, daemon=True).start()
  time.sleep(120)
"""


def test_a_worker_leaves_signals_alone_and_ends_with_its_parent(tmp_path):
  (tmp_path / "parent.py").write_text(PARENT)
  command = [sys.executable, str(tmp_path / "parent.py")]
  parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  pid = int(parent.stdout.readline())
  os.kill(pid, 0)  # it lives
  parent.kill()
  parent.wait()
  deadline = time.monotonic() + 20
  while _lives(pid):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def _lives(pid) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # In a container nobody may care for orphans: their exit codes wait for ever.
  with open(f"/proc/{pid}/stat") as file:
    return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_process_is_known_to_have_ended():
  here = Process.current()
  assert here.is_near
  assert not here.has_ended
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
  living = dataclasses.replace(here, pid=child.pid, start=0)
  assert not living.has_ended
  child.send_signal(signal.SIGKILL)
  child.wait()
  assert living.has_ended
  assert not dataclasses.replace(living, host="elsewhere").has_ended
  assert not dataclasses.replace(living, space="f").has_ended


def test_a_process_that_got_the_number_of_another_is_another():
  here = Process.current()
  if not here.start:
    pytest.skip("needs /proc")
  assert dataclasses.replace(here, start=here.start - 1).has_ended
