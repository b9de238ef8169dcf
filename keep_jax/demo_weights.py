"""Command: trains the demonstration weights from an empty folder, within so many minutes.

  python -m keep_jax.demo_weights DIR --minutes N --stills STILLS --videos VIDEOS [--seed 0]
  python -m keep_jax.demo_weights DIR --minutes N --data DATA
  python -m keep_jax.demo_weights DIR --minutes N ... --variant no_kfn    (afterwards, to compare)

Makes the data (`data_prep.demo_faces`; DATA: they are there already), trains the three stages of
configs/keep/demo.py one after the other, extracts the weights, scores them and draws the curves:

  DIR/data             the clips
  DIR/plan.json        steps and batches, by the minutes and the measured time of a step
  DIR/vqgan, prediction, fusion               the runs
  DIR/weights          float16, as they ship
  DIR/evaluation       tables of both validation sets, stage II and III beside bicubic
  DIR/curves.png, commands.txt                what was done, command by command

An interrupted call goes on where it stopped. The minutes are of training; data and scores take
their own time. `--variant no_kfn` trains stages II and III once more without the Kalman filter,
from the same stage I, with as many steps, the same seed and data: DIR/no_kfn.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import io
import os
import pathlib
import shlex
import tempfile
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from keep_jax import demo_plan, evaluate, extract, recipe, train
from keep_jax.demo_plan import Plan, StagePlan
from vsr_jax import cli, files, lpips, memory, plotting, runtime, score_table
from vsr_jax.checkpoint import is_trained
from vsr_jax.configs.keep import ablations, demo
from vsr_jax.data_prep import demo_faces
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.locks import locked
from vsr_jax.train import plot
from vsr_jax.train.recipe import as_flags, changes

RECIPE, RECIPE_FILE = demo.get_config, "configs/keep/demo.py"
STAGES = ("vqgan", "prediction", "fusion")
KEEP, NO_KFN = "keep", "no_kfn"
SETS = ("validation", "validation_real")


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  files.check_folder(args.folder)
  runtime.keep_freed_memory()
  runtime.enable_compilation_cache()
  for name in STAGES:  # before any work
    config = RECIPE(name)
    if recipe.uses_lpips(config):
      lpips.load(config.loss.perceptual_weights or None, config.loss.perceptual_network)
  with locked(args.folder):
    plan = demo_plan.load(args.folder, args.minutes, args.seed)
    if args.variant == NO_KFN:
      _check_stages(args.folder, plan)
    _prepare_data(args)
    for name in STAGES if args.variant == KEEP else STAGES[1:]:
      train_stage(args, plan, name)
    finish(args)


def train_stage(args: argparse.Namespace, plan: Plan, name: str) -> None:
  """Trains a stage to the end of its schedule, which is planned if it is not yet.

  Args:
    args: the command's.
    plan: gets the stage, and is saved, if it does not have it.
    name: the stage.

  Raises:
    UserError: see `train.train`.
  """
  run = run_folder(args.folder, args.variant, name)
  if name not in plan.stages:
    print(f"{name}: timing {demo_plan.TIMED_STEPS} steps", flush=True)
    plan.stages[name] = _plan_stage(args, plan, name)
    demo_plan.save(args.folder, plan)
  stage = plan.stages[name]
  if is_trained(run, stage.steps):
    return
  config = make_config(args, plan, name)
  demo_plan.apply(config, stage)
  _log(args.folder, train_command(config, run))
  print(f"{run}: {stage.steps:,} steps of {stage.batch}, {stage.seconds_a_step:.3g} s each")
  _train(config, run)


def run_folder(folder: pathlib.Path, variant: str, stage: str) -> pathlib.Path:
  """The folder of a stage's run; both variants have the same stage I."""
  return folder / stage if variant == KEEP or stage == STAGES[0] else folder / variant / stage


def make_config(args: argparse.Namespace, plan: Plan, name: str) -> ConfigDict:
  """A stage's recipe with the variant's model, its data and what it starts from."""
  config = RECIPE(name)
  if args.variant != KEEP:
    config.model.update(ablations.overrides(args.variant))
  config.seed = plan.seed
  config.data.root = str(args.data / "train")
  config.data.validation = str(args.data / SETS[0])
  before = STAGES.index(name) - 1
  if before >= 0:
    config.init_from = str(run_folder(args.folder, args.variant, STAGES[before]))
  return config


def train_command(config: ConfigDict, run: pathlib.Path) -> list[str]:
  """The command that trains a stage as it is trained here: its arguments, after `python -m`."""
  words = ["keep_jax.train", "--config", f"{RECIPE_FILE}:{config.stage}", "--workdir", str(run)]
  return words + as_flags(changes(config, RECIPE(config.stage)))


def _plan_stage(args: argparse.Namespace, plan: Plan, name: str) -> StagePlan:
  """Times a few steps of a stage, and says how many there is time for."""
  config = make_config(args, plan, name)
  batch, workers = config.data.batch, config.data.workers
  if jax.default_backend() != "cpu":
    batch *= demo_plan.ACCELERATED * jax.device_count()
    workers = min(16, os.cpu_count() or 1)
  config.data.batch, config.data.workers = batch, workers
  demo_plan.for_timing(config)
  with tempfile.TemporaryDirectory(prefix=f"{name}_timing_", dir=args.folder) as place:
    began = time.monotonic()
    _train(config, pathlib.Path(place))
    a_step, compiled = demo_plan.read_timing(pathlib.Path(place), time.monotonic() - began)
  seconds = 60 * plan.minutes * demo_plan.SHARES[name]
  steps = demo_plan.count_steps(seconds, a_step, compiled)
  return StagePlan(steps, batch, workers, a_step, compiled)


def _train(config: ConfigDict, run: pathlib.Path) -> None:
  """Trains quietly, and frees what that took."""
  with contextlib.redirect_stdout(io.StringIO()):  # it would tell the next command
    train.train(config, str(run))
  jax.clear_caches()
  memory.release_freed_memory()


def _prepare_data(args: argparse.Namespace) -> None:
  """Makes the data, or finds them made.

  Raises:
    UserError: neither is possible.
  """
  if args.stills is not None:
    size = RECIPE(STAGES[0]).model.image_size
    options = ["--out", args.data, "--size", size, "--seed", args.seed]
    _log(args.folder, ["vsr_jax.data_prep.demo_faces", args.stills, args.videos, *options])
    demo_faces.make_sets(args.stills, args.videos, args.data, size, seed=args.seed)
  for name in ("train", *SETS):
    if not (args.data / name).is_dir():
      raise UserError(
        f"{args.data / name}: there are no clips; give --stills and --videos, which "
        "docs/demo_weights.md lists"
      )
    open_clips(args.data / name, streams=(SHARP,))


def _check_stages(folder: pathlib.Path, plan: Plan) -> None:
  """Raises `UserError` unless the weights to compare with are there."""
  for name in STAGES:
    stage = plan.stages.get(name)
    if stage is None or not is_trained(folder / name, stage.steps):
      raise UserError(
        f"{folder}: stage {name!r} is not trained to its end; run this without --variant first"
      )


def finish(args: argparse.Namespace) -> None:
  """Exports the weights, scores them, and draws the curves."""
  variant, folder = args.variant, args.folder
  place = folder if variant == KEEP else folder / variant
  runs = [run_folder(folder, variant, name) for name in STAGES]
  _log(folder, ["keep_jax.extract", runs[-1], place / "weights", "--float16"])
  print(extract.extract(runs[-1], place / "weights", half=True))
  rows = {KEEP: folder / "weights"}
  rows |= {"stage II": runs[1]} if variant == KEEP else {variant: place / "weights"}
  for name in SETS:
    _evaluate(args, name, rows, place / "evaluation" / name)
  if plotting.is_installed():
    curves = [(str(run.relative_to(folder)), plot.read_log(run)) for run in runs]
    plot.draw(curves, place / "curves.png")
  else:
    print("no curves are drawn, matplotlib is missing: pip install -e '.[plot]'")
  print(f"{place}: weights, evaluation, curves.png; {folder / 'commands.txt'} tells the commands")


def _evaluate(
  args: argparse.Namespace, name: str, rows: dict[str, pathlib.Path], out: pathlib.Path
) -> None:
  """Scores weights on a validation set, unless that is done."""
  if score_table.is_complete(out):
    return
  network = RECIPE(STAGES[0]).loss.perceptual_network
  arguments = [str(args.data / name), "--degradation", "train", "--lpips", network]
  for row, path in rows.items():
    arguments += ["--checkpoint", f"{row}={path}"]
  arguments += ["--out", str(out)]
  _log(args.folder, ["keep_jax.evaluate", *arguments])
  evaluate.main(arguments)


def _log(folder: pathlib.Path, command: Sequence[object]) -> None:
  """Adds a command, its arguments after `python -m`, to the list of what was done and when."""
  with (folder / "commands.txt").open("a") as file:
    file.write(f"# {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.write(shlex.join(["python", "-m", *map(str, command)]) + "\n")


def _parse() -> argparse.Namespace:
  parser = cli.Parser("keep_jax.demo_weights", __doc__)
  add = parser.add_argument
  add("folder", metavar="DIR", type=pathlib.Path, help="where everything is kept")
  add("--minutes", type=float, required=True, metavar="N", help="for the three stages together")
  add("--stills", type=pathlib.Path, metavar="DIR", help="aligned portraits and index.csv")
  add("--videos", type=pathlib.Path, metavar="DIR", help="real clips of faces")
  add("--data", type=pathlib.Path, metavar="DIR", help="the clips; default: DIR/data")
  add("--seed", type=int, default=0, metavar="N")
  add("--variant", choices=(KEEP, NO_KFN), default=KEEP, help="default: keep")
  args = parser.parse_args()
  if not 0 < args.minutes <= 1e6:
    parser.error(f"--minutes {args.minutes:g}: must be above 0")
  if not 0 <= args.seed < 2**32:
    parser.error(f"--seed {args.seed}: must be 0 to {2**32 - 1}")
  if (args.stills is None) != (args.videos is None):
    parser.error("give --stills and --videos together")
  args.data = args.data or args.folder / "data"
  return args


if __name__ == "__main__":
  cli.run(main)
