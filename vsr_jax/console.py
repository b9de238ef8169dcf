# PYTHON_ARGCOMPLETE_OK
"""What an installation puts on the PATH: `fmanet-restore` for `python -m fmanet_jax.restore`.

Every script in pyproject.toml leads to `main` here, which goes by the name it was called by. The
modules are only named: nothing of them is imported before their command is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from vsr_jax.errors import UserError

# Modules that run as commands; a test holds that pyproject.toml has a script for each.
COMMANDS = (
  "fmanet_jax.convert",
  "fmanet_jax.demo",
  "fmanet_jax.evaluate",
  "fmanet_jax.export",
  "fmanet_jax.extract",
  "fmanet_jax.restore",
  "fmanet_jax.train",
  "keep_jax.convert",
  "keep_jax.demo",
  "keep_jax.evaluate",
  "keep_jax.export",
  "keep_jax.extract",
  "keep_jax.restore",
  "keep_jax.train",
  "vsr_jax.compare",
  "vsr_jax.convert_lpips",
  "vsr_jax.data_prep.align",
  "vsr_jax.data_prep.animate",
  "vsr_jax.data_prep.build",
  "vsr_jax.data_prep.face_degrade",
  "vsr_jax.data_prep.flow_labels",
  "vsr_jax.data_prep.landmarks",
  "vsr_jax.data_prep.prepare",
  "vsr_jax.data_prep.show",
  "vsr_jax.page.__main__",
  "vsr_jax.report",
  "vsr_jax.run_exported",
  "vsr_jax.sweep",
  "vsr_jax.train.plot",
)


def script_name(module: str) -> str:
  """A command's name on the PATH: "vsr-flow-labels" of "vsr_jax.data_prep.flow_labels"."""
  package, *_, last = module.removesuffix(".__main__").split(".")
  return f"{package.removesuffix('_jax')}-{last}".replace("_", "-")


def words(module: str) -> list[str]:
  """The words that start a command: as a script where this process began as one."""
  names = {script_name(command) for command in COMMANDS}
  if _typed_name() in names and script_name(module) in names:
    return [script_name(module)]
  return ["python", "-m", module]


def main() -> None:
  """Runs the command that the process was called by, as `python -m` of its module does.

  Raises:
    SystemExit: as `cli.run`.
  """
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds
  modules = {script_name(command): command for command in COMMANDS}
  found = modules.get(_typed_name())
  cli.run(_unknown if found is None else importlib.import_module(found).main)


def _typed_name() -> str:
  return os.path.basename(sys.argv[0])


def _unknown() -> NoReturn:
  names = ", ".join(map(script_name, COMMANDS))
  raise UserError(f"{sys.argv[0]}: no such command; call it by one of the names {names}")
