"""The arguments of `keep_jax.restore`, beside those of every command that restores a video.

`keep_jax.evaluate` takes those of the network, too.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from keep_jax import background, streaming
from vsr_jax import cli
from vsr_jax.faces import detector, sharpness


def add_arguments(parser: cli.Parser) -> None:
  """Adds the options for which faces are restored, how, and what is written of them."""
  add = parser.add_argument
  add(
    "--checkpoint",
    metavar="DIR",
    help="a run, or what keep_jax.convert or keep_jax.extract wrote; default: the demonstration "
    "weights",
  )
  add(
    "--no-network",
    "--identity",
    action="store_true",
    help="change no face: try detection, alignment and pasting",
  )
  add("--aligned", action="store_true", help="the input is one aligned face, the output too")
  add_network_arguments(parser)
  _add_choice_arguments(add)
  add("--upscale", type=float, default=1.0, metavar="S", help="enlarge frames so much; default: 1")
  background.add_arguments(parser)
  add("--detector", choices=detector.NAMES, default="mtcnn", help="default: mtcnn, which ships")
  add("--detector-weights", metavar="FILE", help="the checkpoint of another detector")
  add(
    "--alignment",
    choices=("lmeds", "least_squares"),
    default="lmeds",
    help="robust, as released; or by all five landmarks, which is steadier",
  )
  add("--parsenet", metavar="FILE", help="parsing_parsenet.pth: paste only what is face and hair")
  add(
    "--colors",
    choices=("input", "network"),
    help="of restored faces; default: the input's with the demonstration weights, otherwise the "
    "network's, as released",
  )
  add("--draw-boxes", action="store_true", help="draw the faces found over the output")
  add("--save-crops", metavar="DIR", help="write the aligned and the restored faces as PNGs")
  add("--strip", metavar="FILE.png", help="a picture of a few frames: input, aligned, restored")
  add("--side-by-side", action="store_true", help="put the input at the left")


def add_network_arguments(parser: cli.Parser, mode: streaming.Mode = "stream") -> None:
  """Adds the options for how the network runs over a clip; `mode` is the default."""
  add = parser.add_argument
  add(
    "--mode",
    choices=streaming.MODES,
    default=mode,
    help="state carried over the whole clip; or chunks of --window frames, as in the released code "
    f"or (experimental) restored from both directions; default: {mode}",
  )
  add(
    "--window",
    type=int,
    default=streaming.WINDOW,
    metavar="N",
    help="frames a gain sees; default: %(default)s",
  )
  add(
    "--look-ahead",
    type=int,
    default=streaming.LOOK_AHEAD,
    metavar="N",
    help="most frames after a frame that its gain sees (in the first window it sees the whole "
    "window); default: %(default)s",
  )
  add(
    "--fidelity",
    type=float,
    default=1.0,
    metavar="W",
    help="from 0, the codebook's face, to 1, the input's; default: 1",
  )


def check_network_arguments(parser: cli.Parser, args: argparse.Namespace) -> None:
  """Raises `UserError` for values that `add_network_arguments` cannot take."""
  if not 2 <= args.window <= streaming.LONGEST_WINDOW:
    parser.error(f"--window {args.window}: must be 2 to {streaming.LONGEST_WINDOW}")
  if args.mode == "stream" and not 0 <= args.look_ahead < args.window - 1:
    parser.error(f"--look-ahead {args.look_ahead}: must be 0 to --window {args.window} - 2")
  if not 0 <= args.fidelity <= 1:
    parser.error(f"--fidelity {args.fidelity:g}: must be 0 to 1")


def _add_choice_arguments(add: Callable) -> None:
  """Adds the options for which faces are restored."""
  add("--faces", choices=("largest", "all"), default="largest", help="which faces of a frame")
  add("--tracks", type=_numbers, metavar="N,N", help="the faces of these numbers, see --list-faces")
  add(
    "--list-faces",
    action="store_true",
    help="print numbers, frames, sizes, scores, sharpness and places of the faces and end; --strip "
    "draws them",
  )
  add(
    "--min-face",
    type=float,
    default=0,
    metavar="PIXELS",
    help="leave alone faces whose box's longer side is below this; it is the median of the track",
  )
  add(
    "--min-score",
    type=float,
    default=0,
    metavar="S",
    help="take for no faces what the detector gives less than this, from 0 to 1, in the mean",
  )
  add(
    "--skip-sharp",
    action="store_true",
    help="leave alone faces whose fine detail has at least "
    f"{sharpness.THRESHOLD:g} of the contrast of coarse structure, see docs/faces.md",
  )


def _numbers(text: str) -> list[int]:
  """The argument N,N of --tracks."""
  if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text, re.ASCII):
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0,2")
  return [int(number) for number in text.split(",")]


def check_arguments(parser: cli.Parser, args: argparse.Namespace) -> None:
  """Raises `UserError` for values out of range and options that exclude each other."""
  if args.output is None and not args.list_faces:
    parser.error("name an OUTPUT; without one there is only --list-faces")
  if args.aligned:
    whole = ("draw_boxes", "save_crops", "strip", "background", "parsenet", "list_faces", "tracks")
    for name in (*whole, "colors", "min_face", "min_score", "skip_sharp"):
      if getattr(args, name):
        parser.error(f"--{name.replace('_', '-')} is for whole frames, not for --aligned")
    for name, default in (("upscale", 1), ("background_model", background.LANCZOS)):
      if getattr(args, name) != default:
        parser.error(f"--{name.replace('_', '-')} is for whole frames, not for --aligned")
  background.check_arguments(parser, args)
  check_network_arguments(parser, args)
  if not args.min_face >= 0:
    parser.error(f"--min-face {args.min_face:g}: must be 0 or more")
  if not 0 <= args.min_score <= 1:
    parser.error(f"--min-score {args.min_score:g}: must be 0 to 1")
