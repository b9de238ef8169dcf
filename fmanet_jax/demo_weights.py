"""Command: trains the demonstration weights from an empty folder, within so many minutes.

  python -m fmanet_jax.demo_weights DIR --minutes N --videos VIDEOS [--seed 0]
  python -m fmanet_jax.demo_weights DIR --minutes N --data DATA

Makes the data (DATA: they are there already) by `data_prep.prepare` and `data_prep.flow_labels`,
trains both stages of configs/fmanet/demo.py one after the other, extracts the weights, scores them
and those that ship, and draws the curves:

  DIR/data             the clips: train (plain, with shake, at half the rate) and validation
  DIR/plan.json        steps and batches, by the minutes and the measured time of a step
  DIR/degradation, joint                      the runs
  DIR/weights          float16, as they ship
  DIR/evaluation       tables of the validation clips, of these weights and of those that ship
  DIR/curves.png, commands.txt                what was done, command by command

An interrupted call goes on where it stopped. The minutes are of training; data and scores take
their own time.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import pathlib

from ml_collections import ConfigDict

from fmanet_jax import evaluate, extract, streaming, train
from vsr_jax import cli, files, runtime, score_table
from vsr_jax.configs.fmanet import demo
from vsr_jax.data_prep import clip_set, flow_labels, prepare
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.locks import locked
from vsr_jax.train import budget, from_scratch
from vsr_jax.train.from_scratch import Making

RECIPE, RECIPE_FILE = demo.get_config, "configs/fmanet/demo.py"
SHARES = {"degradation": 0.1, "joint": 0.9}  # of the minutes
STAGES = tuple(SHARES)

# The videos of each set, files of these names; docs/demo_weights.md has their origin. Whatever is
# validated on is never trained on.
VIDEOS = {
  "train": (
    "sam2_01_dog",
    "sam2_02_cups",
    "sam2_04_coffee",
    "sam2_05_default_juggle",
    "sam2_bedroom",
    "cityCC0",
  ),
  "validation": (
    "cotracker_paragliding",
    "cotracker_paragliding-launch",
    "dlib_MOT17-13",
    "dlib_MOT20-05",
    "monst3r_lady-running",
    "propainter_skate",
    "samtrack_blackswan",
  ),
}
# Options of `data_prep.prepare`, a call each: as they are, as held by hand, and faster.
VARIANTS = {
  "train": ((), ("--shake", "10"), ("--stride", "2", "--shake", "5")),
  "validation": ((),),
}


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  files.check_folder(args.folder)
  runtime.keep_freed_memory()
  runtime.enable_compilation_cache()
  with locked(args.folder):
    plan = budget.load(args.folder, args.minutes, args.seed)
    making = Making(args.folder, plan, "fmanet_jax", RECIPE, RECIPE_FILE, SHARES, train.train)
    _prepare_data(args)
    for name in STAGES:
      from_scratch.train_stage(making, make_config(args, name), args.folder / name)
    finish(args)


def make_config(args: argparse.Namespace, name: str) -> ConfigDict:
  """A stage's recipe with its data and what it starts from."""
  config = RECIPE(name)
  config.seed = args.seed
  config.data.root = str(args.data / "train")
  config.data.validation = str(args.data / "validation")
  if name != STAGES[0]:
    config.init_from = str(args.folder / STAGES[0])
  return config


def find_videos(folder: pathlib.Path, names: tuple[str, ...]) -> list[pathlib.Path]:
  """The videos of these names, whatever their suffix.

  Raises:
    UserError: one is missing, or there are two of a name.
  """
  found = []
  for name in names:
    paths = [path for path in folder.iterdir() if path.stem == name] if folder.is_dir() else []
    if len(paths) != 1:
      many = f"several videos are named {name}" if paths else f"has no video {name}.*"
      raise UserError(f"{folder}: {many}; docs/demo_weights.md lists what is wanted")
    found += paths
  return found


def _prepare_data(args: argparse.Namespace) -> None:
  """Makes the data, or finds them made.

  Raises:
    UserError: neither is possible.
  """
  if args.videos is not None:
    sources = {name: find_videos(args.videos, VIDEOS[name]) for name in VIDEOS}  # before any work
    for name, videos in sources.items():
      for options in VARIANTS[name]:
        given = [*videos, "--out", args.data / name, *options]
        from_scratch.call(args.folder, "vsr_jax.data_prep.prepare", prepare.main, given)
    given = [args.data / "train"]
    from_scratch.call(args.folder, "vsr_jax.data_prep.flow_labels", flow_labels.main, given)
    for name, videos in sources.items():
      _check_made(args.data / name, videos, len(VARIANTS[name]))
  for name in VIDEOS:
    if not (args.data / name).is_dir():
      raise UserError(
        f"{args.data / name}: there are no clips; give --videos, which docs/demo_weights.md lists"
      )
    open_clips(args.data / name, num_frames=RECIPE(STAGES[0]).model.frames)


def _check_made(folder: pathlib.Path, videos: list[pathlib.Path], variants: int) -> None:
  """Raises `UserError` if a set lacks a variant of a video, which `prepare` has skipped."""
  origins = [entry["origin"] for entry in clip_set.read_finished(folder)]
  made = {(origin["path"], origin["name"]) for origin in origins}
  for video in videos:
    if sum(path == str(video.resolve()) for path, _ in made) < variants:
      raise UserError(f"{video}: was skipped for {folder}, see above; get the video again")


def finish(args: argparse.Namespace) -> None:
  """Exports the weights, scores them and those that ship, and draws the curves."""
  folder, weights = args.folder, args.folder / "weights"
  runs = [folder / name for name in STAGES]
  from_scratch.log(folder, ["fmanet_jax.extract", runs[-1], weights, "--float16"])
  print(extract.extract(runs[-1], weights, half=True))
  for name, checkpoint in (("weights", weights), ("shipped", streaming.DEMO_WEIGHTS)):
    out = folder / "evaluation" / name
    if not score_table.is_complete(out):
      given = [args.data / "validation", "--checkpoint", checkpoint, "--out", out]
      from_scratch.call(folder, "fmanet_jax.evaluate", evaluate.main, given)
  from_scratch.draw_curves(folder, runs, folder / "curves.png")
  print(f"{folder}: weights, evaluation, curves.png; {folder / 'commands.txt'} tells the commands")


def _parse() -> argparse.Namespace:
  parser = cli.Parser("fmanet_jax.demo_weights", __doc__)
  from_scratch.add_arguments(parser)
  parser.add_argument("--videos", type=pathlib.Path, metavar="DIR", help="the videos to begin with")
  args = parser.parse_args()
  from_scratch.check_arguments(parser, args)
  return args


if __name__ == "__main__":
  cli.run(main)
