"""Commands whose stdin, stdout or stderr is closed, full, or no longer read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Prints much, as it would while it works, and then says by a file that it came to its end.
COMMAND = """
import sys
from vsr_jax import cli, errors
def main():
  with open(sys.argv[1], "w") as work:
    for stream in (sys.stdout, sys.stderr):
      for _ in range(2000):
        print("frame " * 20, file=stream)
    work.write("done")
  if len(sys.argv) > 2:
    raise errors.UserError("in.mp4: no such file")
cli.run(main)
"""


def run(redirections, work, *arguments, **streams) -> subprocess.CompletedProcess:
  command = [sys.executable, "-c", COMMAND, str(work), *arguments]
  shell = f'exec "$@" {redirections}'
  return subprocess.run(["sh", "-c", shell, "sh", *command], timeout=60, **streams)


CLOSED = [">&-", "2>&-", "<&- >&- 2>&-"]
FULL = [">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"]


@pytest.mark.parametrize("redirections", CLOSED + FULL)
@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["fail"], 2)])
def test_the_work_is_kept_and_the_exit_code(tmp_path, redirections, arguments, code):
  done = run(redirections, tmp_path / "work", *arguments, stdout=-1, stderr=-1, text=True)
  assert done.returncode == code
  assert "Traceback" not in done.stderr
  assert "Exception ignored" not in done.stderr
  assert done.stderr.endswith("error: in.mp4: no such file\n" if code and done.stderr else "")
  assert (tmp_path / "work").read_text() == "done"  # and nothing that was printed


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_readers_that_are_gone(tmp_path, unbuffered):
  reading, writing = os.pipe()
  os.close(reading)
  streams = {"stdout": writing, "stderr": writing}
  env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
  assert run("", tmp_path / "work", "fail", env=env, **streams).returncode == 2
  os.close(writing)
  assert (tmp_path / "work").read_text() == "done"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_read_arrives_whole_and_in_order(tmp_path, unbuffered):
  env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
  done = run("", tmp_path / "work", "fail", env=env, stdout=-1, stderr=-1, text=True)
  printed = ("frame " * 20 + "\n") * 2000
  assert done.stdout == printed
  assert done.stderr == printed + "error: in.mp4: no such file\n"
