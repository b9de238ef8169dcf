"""How commands end when they are stopped before they begin."""

from __future__ import annotations

import errno
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


INTERRUPTED = """
import sys, threading, time
from vsr_jax import errors
sys.argv[0] = "-m"  # what Python has there while it imports a command's package
errors.catch_signals_of_a_command()
def main():
  threading.Thread(target=time.sleep, args=(60,)).start()  # Python waits for it in the end
  try:
    print("working", file=sys.stderr, flush=True)
    time.sleep(60)
  finally:
    print("tidying up", file=sys.stderr, flush=True)
    time.sleep({tidying})
errors.run(main)
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
from vsr_jax import errors
sys.argv[0] = "-m"
errors.catch_signals_of_a_command()
class Program:
  def __del__(self):
    print("freed", flush=True)  # where XLA may crash
def main():
  program = Program()
  print("begun")
  signal.raise_signal(signal.SIGTERM)
errors.run(main)
"""


def test_what_a_signal_stopped_is_not_freed():
  done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (2, "terminated by SIGTERM\n")
  assert done.stdout == "begun\n"


def test_a_warning_is_one_line_in_every_command(run_main):
  said = run_main(lambda: warnings.warn("out.mp4.part: removed", stacklevel=1))
  assert said.err == "warning: out.mp4.part: removed\n"


def test_a_full_disk_that_a_library_tells_of_is_known():
  told = ValueError("UNKNOWN: write failed: No space left on device [source locations='x']")
  error = RuntimeError("a save failed")
  assert not errors.is_full(error)
  error.__cause__ = told
  assert errors.is_full(error)
  assert errors.is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
  assert not errors.is_full(OSError(errno.EACCES, "Permission denied"))
