"""Trains the stages of a recipe one after the other, from an empty folder, in so many minutes.

What the commands that make the demonstration weights of both systems share. An interrupted call
goes on where it stopped; what was done is listed command by command in the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import jax
from ml_collections import ConfigDict

from vsr_jax import cli, memory, plotting
from vsr_jax.checkpoint import is_trained
from vsr_jax.train import budget, plot
from vsr_jax.train.budget import Plan, StagePlan
from vsr_jax.train.recipe import as_flags, changes


@dataclasses.dataclass(frozen=True)
class Making:
  """How the weights of a system are made in a folder.

  Attributes:
    folder: where everything is kept.
    plan: the folder's.
    package: the system's, such as "keep_jax", for the commands that are told.
    recipe: gives the recipe of a stage.
    recipe_file: where that stands, for the commands that are told.
    shares: the stages in order, with their parts of the minutes.
    train: the system's trainer; gets a recipe and the run's folder.
  """

  folder: pathlib.Path
  plan: Plan
  package: str
  recipe: Callable[[str], ConfigDict]
  recipe_file: str
  shares: Mapping[str, float]
  train: Callable[[ConfigDict, str], None]


def train_stage(making: Making, config: ConfigDict, run: pathlib.Path) -> None:
  """Trains a stage to the end of its schedule, which is planned if it is not yet.

  Args:
    making: its plan gets the stage, and is saved, if it does not have it.
    config: the stage's recipe with its data and what it starts from; it gets the planned length.
    run: the run's folder.

  Raises:
    UserError: see the trainer.
  """
  name, plan = config.stage, making.plan
  if name not in plan.stages:
    print(f"{name}: timing {budget.TIMED_STEPS} steps", flush=True)
    plan.stages[name] = _time(making, config.copy_and_resolve_references())
    budget.save(making.folder, plan)
  stage = plan.stages[name]
  if is_trained(run, stage.steps):
    return
  budget.apply(config, stage)
  log(making.folder, train_command(making, config, run))
  print(f"{run}: {stage.steps:,} steps of {stage.batch}, {stage.seconds_a_step:.3g} s each")
  _train(making, config, run)


def train_command(making: Making, config: ConfigDict, run: pathlib.Path) -> list[str]:
  """The command that trains a stage as it is trained here: its arguments, after `python -m`."""
  recipe = f"{making.recipe_file}:{config.stage}"
  words = [f"{making.package}.train", "--config", recipe, "--workdir", str(run)]
  return words + as_flags(changes(config, making.recipe(config.stage)))


def _time(making: Making, config: ConfigDict) -> StagePlan:
  """Times a few steps of a stage, and says how many there is time for."""
  name, batch, workers = config.stage, config.data.batch, config.data.workers
  if jax.default_backend() != "cpu":
    batch *= budget.ACCELERATED * jax.device_count()
    workers = min(16, os.cpu_count() or 1)
  config.data.batch, config.data.workers = batch, workers
  budget.for_timing(config)
  with tempfile.TemporaryDirectory(prefix=f"{name}_timing_", dir=making.folder) as place:
    began = time.monotonic()
    _train(making, config, pathlib.Path(place))
    a_step, compiled = budget.read_timing(pathlib.Path(place), time.monotonic() - began)
  steps = budget.count_steps(60 * making.plan.minutes * making.shares[name], a_step, compiled)
  return StagePlan(steps, batch, workers, a_step, compiled)


def _train(making: Making, config: ConfigDict, run: pathlib.Path) -> None:
  """Trains quietly, and frees what that took."""
  with contextlib.redirect_stdout(io.StringIO()):  # it would tell the next command
    making.train(config, str(run))
  jax.clear_caches()
  memory.release_freed_memory()


def log(folder: pathlib.Path, command: Sequence[object]) -> None:
  """Adds a command, its arguments after `python -m`, to the list of what was done and when."""
  with (folder / "commands.txt").open("a") as file:
    file.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.write(shlex.join(["python", "-m", *map(str, command)]) + "\n")


def call(
  folder: pathlib.Path,
  module: str,
  main: Callable[[Sequence[str]], None],
  arguments: Sequence[object],
) -> None:
  """Lists a command in a folder, and runs it in this process.

  Args:
    folder: the folder.
    module: the command's.
    main: its main function.
    arguments: its own.
  """
  words = [str(argument) for argument in arguments]
  log(folder, [module, *words])
  main(words)


def draw_curves(folder: pathlib.Path, runs: Sequence[pathlib.Path], out: pathlib.Path) -> None:
  """Draws the curves of runs, named by their place in a folder, where matplotlib is installed."""
  if plotting.is_installed():
    plot.draw([(str(run.relative_to(folder)), plot.read_log(run)) for run in runs], out)
  else:
    print("no curves are drawn, matplotlib is missing: pip install -e '.[plot]'")


def add_arguments(parser: cli.Parser) -> None:
  """Adds the arguments that all such commands have."""
  add = parser.add_argument
  add("folder", metavar="DIR", type=pathlib.Path, help="where everything is kept")
  add("--minutes", type=float, required=True, metavar="N", help="for all stages together")
  add("--data", type=pathlib.Path, metavar="DIR", help="the clips; default: DIR/data")
  add("--seed", type=int, default=0, metavar="N")


def check_arguments(parser: cli.Parser, args: argparse.Namespace) -> None:
  """Raises `UserError` for values that cannot be, and fills in where the data are."""
  if not 0 < args.minutes <= 1e6:
    parser.error(f"--minutes {args.minutes:g}: must be above 0")
  if not 0 <= args.seed < 2**32:
    parser.error(f"--seed {args.seed}: must be 0 to {2**32 - 1}")
  args.data = args.data or args.folder / "data"
