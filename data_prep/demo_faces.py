"""Command: makes the faces that KEEP's demonstration weights are trained on and scored with.

  python -m vsr_jax.data_prep.demo_faces STILLS VIDEOS --out data/demo_faces [--size 128]
    [--frames 24] [--seed 0]

STILLS is a folder of aligned portraits with index.csv (see `animate`), VIDEOS one of real clips.
Makes clip sets of aligned faces, which `open_clips` opens:

  OUT/train             the training portraits, animated, and the real training clips
  OUT/validation        some validation portraits, animated, 20 frames each
  OUT/validation_real   the real validation clips, whole

`demo_split.py` says who is in which; whom it holds out is not trained on, whatever the index says.
A run that was interrupted goes on where it ended.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import pathlib
from collections.abc import Sequence

from vsr_jax import cli, files
from vsr_jax.data_prep import align, animate, demo_split, landmarks
from vsr_jax.errors import UserError
from vsr_jax.faces import detector

VALIDATION_FRAMES = 20  # KEEP's chunk
SIGMA = 5.0  # frames, of the landmarks' smoothing, as in restoring
SUFFIXES = (".mp4", ".mkv", ".mov")


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  make_sets(args.stills, args.videos, args.out, args.size, args.frames, args.seed)


def make_sets(
  stills: pathlib.Path,
  videos: pathlib.Path,
  out: pathlib.Path,
  size: int = 128,
  frames: int = 24,
  seed: int = 0,
) -> None:
  """Makes all sets, or what an interrupted run left to do.

  Args:
    stills: a folder of aligned portraits with index.csv.
    videos: a folder of real clips.
    out: gets the sets.
    size: side of a frame, in pixels.
    frames: of an animated training clip.
    seed: of the motion.

  Raises:
    UserError: a source is missing or damaged, or would be trained on although it is held out; the
      sets are of other settings.
  """
  files.check_folder(out)
  training = training_stills(stills)
  validation = validation_stills(stills)
  real = [find_videos(videos, demo_split.REAL_TRAINING)]
  real.append(find_videos(videos, demo_split.REAL_VALIDATION))
  settings = {"frames": frames, "size": size, "amplitude": 1.0, "seed": seed}
  settings["rate"] = animate.RATE
  shorter = {**settings, "frames": VALIDATION_FRAMES}
  animate.make_set(validation, out / "validation", shorter)
  animate.make_set(training, out / "train", settings)
  alignment = {"size": size, "detector": "mtcnn", "sigma": SIGMA}
  detect = detector.make_detector()
  for sources, name in zip(real, ("train", "validation_real"), strict=True):
    align.make_set(landmarks.find_clips(sources), out / name, alignment, detect)


def _parse() -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.data_prep.demo_faces", __doc__)
  parser.add_argument("stills", metavar="STILLS", type=pathlib.Path)
  parser.add_argument("videos", metavar="VIDEOS", type=pathlib.Path)
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
  animate.add_size_arguments(parser)
  args = parser.parse_args()
  animate.check_size_arguments(parser, args)
  return args


def training_stills(folder: pathlib.Path) -> list[pathlib.Path]:
  """The portraits to train on.

  Raises:
    UserError: the index is missing or damaged, or has a validation portrait for training.
  """
  stills = [
    still
    for still in animate.read_index(folder, "train")
    if still.stem not in demo_split.SAME_PERSON
  ]
  if held_out := [still for still in stills if still.stem in demo_split.HELD_OUT]:
    raise UserError(
      f"{folder / animate.INDEX}: {held_out[0].name} is for validation and must not be trained on; "
      "get the index again, or change its split"
    )
  return stills


def validation_stills(folder: pathlib.Path) -> list[pathlib.Path]:
  """The portraits whose animations are scored; `UserError` if one is not in the index."""
  stills = {still.stem: still for still in animate.read_index(folder, "validation")}
  if missing := [name for name in demo_split.VALIDATION if name not in stills]:
    raise UserError(
      f"{folder / animate.INDEX}: has no {missing[0]} for validation; get the portraits again"
    )
  return [stills[name] for name in demo_split.VALIDATION]


def find_videos(folder: pathlib.Path, names: Sequence[str]) -> list[pathlib.Path]:
  """The videos of these names, without suffix; `UserError` if one is missing."""
  found = {path.stem: path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")}
  if missing := [name for name in names if name not in found]:
    raise UserError(f"{folder}: has no video {missing[0]}.mp4; docs/demo_weights.md lists them")
  return [found[name] for name in names]


if __name__ == "__main__":
  cli.run(main)
