"""How commands end when they are stopped before they begin."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.interrupts import send_when_seen

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = ["fmanet_jax.train", "keep_jax.restore", "data_prep.flow_labels"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
  ("number", "code", "line"),
  [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 2, "terminated by SIGTERM")],
)
def test_a_signal_during_the_imports_ends_in_one_line(monkeypatch, command, number, code, line):
  monkeypatch.chdir(ROOT)
  package = command.partition(".")[0]
  start = [sys.executable, "-X", "importtime", "-m", command]
  returned, said = send_when_seen(start, rf"\| {package}\n", number)
  said = [text for text in said.splitlines() if not text.startswith("import time:")]
  assert (returned, said) == (code, [line])


def test_importing_a_package_leaves_the_signals_alone():
  program = "import signal, fmanet_jax, keep_jax, data_prep; signal.raise_signal(signal.SIGINT)"
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  assert "KeyboardInterrupt" in done.stderr


def test_a_second_sigterm_does_not_disturb_the_tidying_up(run_main):
  tidied = []

  def main():
    try:
      os.kill(os.getpid(), signal.SIGTERM)
    finally:
      os.kill(os.getpid(), signal.SIGTERM)
      tidied.append(True)

  said = run_main(main, code=2)
  assert tidied
  assert said.err == "terminated by SIGTERM\n"
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
