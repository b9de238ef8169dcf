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
import pathlib

from ml_collections import ConfigDict

from keep_jax import evaluate, extract, recipe, train
from vsr_jax import cli, files, lpips, runtime, score_table
from vsr_jax.checkpoint import is_trained
from vsr_jax.configs.keep import ablations, demo
from vsr_jax.data_prep import demo_faces
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.locks import locked
from vsr_jax.train import budget, from_scratch
from vsr_jax.train.from_scratch import Making

RECIPE, RECIPE_FILE = demo.get_config, "configs/keep/demo.py"
SHARES = {"vqgan": 0.45, "prediction": 0.35, "fusion": 0.2}  # of the minutes
STAGES = tuple(SHARES)
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
    plan = budget.load(args.folder, args.minutes, args.seed)
    making = Making(args.folder, plan, "keep_jax", RECIPE, RECIPE_FILE, SHARES, train.train)
    if args.variant == NO_KFN:
      _check_stages(making)
    _prepare_data(args)
    for name in STAGES if args.variant == KEEP else STAGES[1:]:
      run = run_folder(args.folder, args.variant, name)
      from_scratch.train_stage(making, make_config(args, name), run)
    finish(args)


def run_folder(folder: pathlib.Path, variant: str, stage: str) -> pathlib.Path:
  """The folder of a stage's run; both variants have the same stage I."""
  return folder / stage if variant == KEEP or stage == STAGES[0] else folder / variant / stage


def make_config(args: argparse.Namespace, name: str) -> ConfigDict:
  """A stage's recipe with the variant's model, its data and what it starts from."""
  config = RECIPE(name)
  if args.variant != KEEP:
    config.model.update(ablations.overrides(args.variant))
  config.seed = args.seed
  config.data.root = str(args.data / "train")
  config.data.validation = str(args.data / SETS[0])
  before = STAGES.index(name) - 1
  if before >= 0:
    config.init_from = str(run_folder(args.folder, args.variant, STAGES[before]))
  return config


def _prepare_data(args: argparse.Namespace) -> None:
  """Makes the data, or finds them made.

  Raises:
    UserError: neither is possible.
  """
  if args.stills is not None:
    size = RECIPE(STAGES[0]).model.image_size
    options = ["--out", args.data, "--size", size, "--seed", args.seed]
    command = ["vsr_jax.data_prep.demo_faces", args.stills, args.videos, *options]
    from_scratch.log(args.folder, command)
    demo_faces.make_sets(args.stills, args.videos, args.data, size, seed=args.seed)
  for name in ("train", *SETS):
    if not (args.data / name).is_dir():
      raise UserError(
        f"{args.data / name}: there are no clips; give --stills and --videos, which "
        "docs/demo_weights.md lists"
      )
    open_clips(args.data / name, streams=(SHARP,))


def _check_stages(making: Making) -> None:
  """Raises `UserError` unless the weights to compare with are there."""
  for name in STAGES:
    stage = making.plan.stages.get(name)
    if stage is None or not is_trained(making.folder / name, stage.steps):
      raise UserError(
        f"{making.folder}: stage {name!r} is not trained to its end; run this without --variant "
        "first"
      )


def finish(args: argparse.Namespace) -> None:
  """Exports the weights, scores them, and draws the curves."""
  variant, folder = args.variant, args.folder
  place = folder if variant == KEEP else folder / variant
  runs = [run_folder(folder, variant, name) for name in STAGES]
  from_scratch.log(folder, ["keep_jax.extract", runs[-1], place / "weights", "--float16"])
  print(extract.extract(runs[-1], place / "weights", half=True))
  rows = {KEEP: folder / "weights"}
  rows |= {"stage II": runs[1]} if variant == KEEP else {variant: place / "weights"}
  for name in SETS:
    _evaluate(args, name, rows, place / "evaluation" / name)
  from_scratch.draw_curves(folder, runs, place / "curves.png")
  print(f"{place}: weights, evaluation, curves.png; {folder / 'commands.txt'} tells the commands")


def _evaluate(
  args: argparse.Namespace, name: str, rows: dict[str, pathlib.Path], out: pathlib.Path
) -> None:
  """Scores weights on a validation set, unless that is done."""
  if score_table.is_complete(out):
    return
  network = RECIPE(STAGES[0]).loss.perceptual_network
  arguments = [args.data / name, "--degradation", "train", "--lpips", network]
  for row, path in rows.items():
    arguments += ["--checkpoint", f"{row}={path}"]
  arguments += ["--out", out]
  from_scratch.call(args.folder, "keep_jax.evaluate", evaluate.main, arguments)


def _parse() -> argparse.Namespace:
  parser = cli.Parser("keep_jax.demo_weights", __doc__)
  from_scratch.add_arguments(parser)
  add = parser.add_argument
  add("--stills", type=pathlib.Path, metavar="DIR", help="aligned portraits and index.csv")
  add("--videos", type=pathlib.Path, metavar="DIR", help="real clips of faces")
  add("--variant", choices=(KEEP, NO_KFN), default=KEEP, help="default: keep")
  args = parser.parse_args()
  from_scratch.check_arguments(parser, args)
  if (args.stills is None) != (args.videos is None):
    parser.error("give --stills and --videos together")
  return args


if __name__ == "__main__":
  cli.run(main)
