"""Commands run as processes of their own, without starting an interpreter for each.

For what holds in a process only: flags that are read once, settings, what reaches stderr. Where a
call of the command's main function proves the same, the fixture `run_main` is faster still.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pathlib
import sys
from typing import NamedTuple


class Ended(NamedTuple):
  """What a process returned and printed."""

  returncode: int | None
  stdout: str
  stderr: str


def run(module: str, *arguments: object, folder: pathlib.Path) -> Ended:
  """Runs `python -m MODULE ARGUMENTS` in a copy of one process that has imported the module.

  Args:
    module: the command's.
    arguments: its own.
    folder: an existing one, for what it prints.
  """
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([__name__, module])
  files = [folder / name for name in ("stdout.txt", "stderr.txt")]
  process = context.Process(target=_run, args=(module, [*map(str, arguments)], *files))
  process.start()
  process.join()
  return Ended(process.exitcode, *(path.read_text() for path in files))


def _run(module: str, arguments: list[str], stdout: pathlib.Path, stderr: pathlib.Path) -> None:
  """In the copy: the command, its output redirected."""
  for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
    with path.open("w") as file:
      os.dup2(file.fileno(), stream.fileno())
  sys.argv = [module, *arguments]
  from vsr_jax import cli

  cli.run(importlib.import_module(module).main)
