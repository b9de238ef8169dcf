"""How commands end when they are stopped before they begin."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest

from tests.support.interrupts import send_when_seen
from tests.test_house import house_files
from vsr_jax import cli

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = ["fmanet_jax.train", "keep_jax.restore", "vsr_jax.data_prep.flow_labels"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
  ("number", "code", "line"),
  [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 2, "terminated by SIGTERM")],
)
def test_a_signal_during_the_imports_ends_in_one_line(monkeypatch, command, number, code, line):
  monkeypatch.chdir(ROOT)
  start = [sys.executable, "-X", "importtime", "-m", command]
  returned, said = send_when_seen(start, r"\| +numpy\n", number)
  said = [text for text in said.splitlines() if not text.startswith("import time:")]
  assert (returned, said) == (code, [line])


def test_importing_a_package_leaves_the_signals_alone():
  program = (
    "import signal, fmanet_jax, keep_jax, vsr_jax.data_prep; signal.raise_signal(signal.SIGINT)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  assert "KeyboardInterrupt" in done.stderr


def parsers() -> dict[str, str]:
  """The commands that parse by `Parser`, and the text that its call names them by."""
  files = house_files("*.py")
  called = {
    path: re.findall(r"cli\.Parser\(\s*\"([^\"]*)\", __doc__", text) for path, text in files.items()
  }
  return {
    path.removesuffix(".py").replace("/", "."): names for path, names in called.items() if names
  }


def test_every_command_names_itself_in_its_help():
  found = parsers()
  assert len(found) >= 14
  for module, (name,) in found.items():
    linked = f"vsr_jax.{module}"  # as data_prep is imported
    assert name in (module, linked) or module == f"{name}.__main__"


def test_every_command_hears_signals_while_it_imports():
  begun = """

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()"""
  runs = {path: text for path, text in house_files("*.py").items() if "\n  cli.run(main)" in text}
  commands = [path for path in runs if path.split("/")[0] not in ("tests", "benchmarks")]
  assert len(commands) >= 14
  assert [path for path in commands if "annotations" + begun not in runs[path]] == []


def test_help_begins_with_the_command(capsys):
  parser = cli.Parser("some.command", "Command: does this.\n\nAnd more.")
  with pytest.raises(SystemExit):
    parser.parse_args(["--help"])
  text = capsys.readouterr().out
  assert text.startswith("usage: python -m some.command [-h]\n\nDoes this.\n")


def test_xla_is_silent_in_commands(monkeypatch):
  monkeypatch.setattr(signal, "signal", lambda *_: None)
  monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
  cli.begin()
  assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
  monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")


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


INTERRUPTED = """
import sys, threading, time
from vsr_jax import cli
cli.begin()
def main():
  threading.Thread(target=time.sleep, args=(60,)).start()  # Python waits for it in the end
  try:
    print("working", file=sys.stderr, flush=True)
    time.sleep(60)
  finally:
    print("tidying up", file=sys.stderr, flush=True)
    time.sleep({tidying})
cli.run(main)
"""


@pytest.mark.parametrize(("tidying", "seen"), [(60, "tidying up\n"), (0, "\ninterrupted\n")])
def test_a_second_interrupt_ends_at_once_and_without_a_traceback(tidying, seen):
  command = [sys.executable, "-c", INTERRUPTED.format(tidying=tidying)]
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  assert process.stderr.readline() == "working\n"
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGINT)  # the same, to a process and to its group
  said = ""
  while seen not in said:
    part = process.stderr.read(1)
    assert part, said
    said += part
  time.sleep(0.6)
  process.send_signal(signal.SIGINT)
  said += process.communicate(timeout=30)[1]
  assert process.returncode == 130
  assert said.splitlines()[0] == "tidying up"
  assert set(said.split("\n")[1:]) == {"", "interrupted"}


@pytest.mark.parametrize(
  ("number", "code", "line"),
  [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 2, "terminated by SIGTERM\n")],
)
def test_a_signal_that_comes_in_a_callback_is_not_lost(run_main, number, code, line):
  class Freed:
    def __del__(self):
      signal.raise_signal(number)  # the exception cannot leave here

  def main():
    Freed()
    time.sleep(20)

  began = time.monotonic()
  assert run_main(main, code=code).err == line
  assert time.monotonic() - began < 15


STOPPED = """
import signal, sys
from vsr_jax import cli
cli.begin()
class Program:
  def __del__(self):
    print("freed", flush=True)  # where XLA may crash
def main():
  program = Program()
  print("begun")
  signal.raise_signal(signal.SIGTERM)
cli.run(main)
"""


def test_what_a_signal_stopped_is_not_freed():
  done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (2, "terminated by SIGTERM\n")
  assert done.stdout == "begun\n"


def test_a_warning_is_one_line_in_every_command(run_main):
  said = run_main(lambda: warnings.warn("out.mp4.part: removed", stacklevel=1))
  assert said.err == "warning: out.mp4.part: removed\n"
