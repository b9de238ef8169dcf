"""How commands end when they are stopped before they begin."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests.interrupts import send_when_seen
from tests.test_house import house_files
from vsr_jax import errors

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


def parsers() -> dict[str, str]:
  """The commands that parse by `Parser`, and the text that its call names them by."""
  files = house_files("*.py")
  called = {
    path: re.findall(r"errors\.Parser\(\s*\"([^\"]*)\", __doc__", text)
    for path, text in files.items()
  }
  return {
    path.removesuffix(".py").replace("/", "."): names for path, names in called.items() if names
  }


def test_every_command_names_itself_in_its_help():
  found = parsers()
  assert len(found) >= 14
  for module, (name,) in found.items():
    assert module in (name, f"{name}.__main__")


def test_help_begins_with_the_command(capsys):
  parser = errors.Parser("some.command", "Command: does this.\n\nAnd more.")
  with pytest.raises(SystemExit):
    parser.parse_args(["--help"])
  text = capsys.readouterr().out
  assert text.startswith("usage: python -m some.command [-h]\n\nDoes this.\n")


@pytest.mark.parametrize(("first", "level"), [("-m", "3"), ("program.py", None)])
def test_xla_is_silent_in_commands_only(monkeypatch, first, level):
  monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
  monkeypatch.setattr(sys, "argv", [first])
  errors.silence_xla_of_a_command()
  assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level
  monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)


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
