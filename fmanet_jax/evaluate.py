"""Command: scores restored clips against their truth, with bicubic enlargement as the row to beat.

  python -m fmanet_jax.evaluate DATA [--checkpoint DIR] [--out DIR] ...
  python -m fmanet_jax.evaluate DATA --outputs [NAME=]DIR ...    (what other methods have restored)

DATA is a clip set, REDS as released, or what `data_prep.build` made; --split tells which of its
clips are scored, by default those of the test, which are REDS4 of REDS. RGB PSNR, SSIM and tOF by
clip and in total are printed and written to metrics.json and metrics.md, anew after every clip, so
that an interrupted run leaves what it has finished.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import functools
import pathlib
from collections.abc import Callable, Generator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import tqdm

from fmanet_jax import streaming
from vsr_jax import cli, evaluation, files, given_outputs, paths, runtime, video
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, Clip
from vsr_jax.data_prep.folders import FileStream
from vsr_jax.data_prep.opening import choose_clips
from vsr_jax.enlarge import enlarger
from vsr_jax.errors import UserError
from vsr_jax.evaluation import Job
from vsr_jax.given_outputs import GivenOutputs
from vsr_jax.metrics import ClipScore, Score, clip_score, motion
from vsr_jax.ops.resize import resize_bicubic
from vsr_jax.score_table import ScoreTable

SMALLEST_TRUTH = 48  # pixels: tOF leaves out the edges, and nothing would be left
MARGIN_OF_OUTPUTS = 1  # frames at each end that are not scored, as for windows of T = 3
SAVED_RATE = Fraction(25)  # nominal: image files have none

# Pairs of frame number and restored frame, uint8 RGB [h w 3], in order; may exceed what is scored.
Outputs = Generator[tuple[int, np.ndarray], None, None]


def main(given: Sequence[str] | None = None) -> None:
  """Runs the command with the given arguments or the process's; see the docstring and `--help`."""
  args = _parse(given)
  methods: dict[str, Callable[[Clip], Outputs]] = {}
  model, margin = None, MARGIN_OF_OUTPUTS
  if args.checkpoint or not args.outputs:
    runtime.enable_compilation_cache()
    runtime.return_freed_memory()
    model, params = streaming.load(args.checkpoint, args.dtype)
    margin = model.arch.frames // 2
    restorer = streaming.Restorer(model, params)
    methods["FMA-Net"] = functools.partial(restore_and_save, restorer, args.save_frames)
  margin = 0 if args.all_frames else margin
  evaluation.check_names([evaluation.BICUBIC, *methods, *(name for name, _ in args.outputs)])
  chosen, skipped = find_scored(args, 2 * margin + 1)
  for name, folder in args.outputs:
    found = {clip.name: find_outputs(folder, clip, margin) for clip in chosen}  # before any work
    methods[name] = functools.partial(_read_outputs, found)
  if model is not None:
    _check_scale(chosen, model.arch.scale)
  if args.save_frames:
    _prepare_saving(args, chosen)
  setting = {
    "data": str(args.data),
    "checkpoint": args.checkpoint,
    "outputs": {name: str(folder) for name, folder in args.outputs},
    "dtype": model and args.dtype,
    "left_out_at_each_end": margin,
  }
  files.make_folder(args.out)
  files.remove_left(args.out)
  table = make_table(list(methods), setting, margin)
  table.skipped |= skipped
  jobs = [_job(clip, methods, margin) for clip in chosen]
  evaluation.evaluate(jobs, table, args.out)
  evaluation.tell(table, args.out, args.data)


def make_table(methods: Sequence[str], setting: dict[str, Any], margin: int) -> ScoreTable:
  """An empty table of bicubic enlargement and other methods; `margin` frames are not scored."""
  left_out = f"all frames but {margin} at each end of a clip" if margin else "all frames"
  notes = [clip_score.describe(left_out)]
  return ScoreTable([evaluation.BICUBIC, *methods], clip_score.METRICS, setting, notes)


def _job(clip: Clip, methods: Mapping[str, Callable[[Clip], Outputs]], margin: int) -> Job:
  span = range(margin, clip.length - margin)
  return Job(clip.name, len(span), functools.partial(score_clip, clip, methods, span))


def score_clip(
  clip: Clip,
  methods: Mapping[str, Callable[[Clip], Outputs]],
  span: range,
  advance: Callable[[int], object],
) -> dict[str, Score]:
  """Scores bicubic enlargement and restored frames of a clip, in constant memory.

  Args:
    clip: with its truth.
    methods: by name, what opens the restored frames of a clip.
    span: the numbers of the frames to score.
    advance: told 1 after every frame scored.

  Returns:
    The scores by method, those of bicubic enlargement first.

  Raises:
    UserError: a frame cannot be decoded or has another size than the truth.
  """
  scores = {name: ClipScore() for name in (evaluation.BICUBIC, *methods)}
  previous = truth_motion = None
  with contextlib.ExitStack() as stack:
    opened = [stack.enter_context(contextlib.closing(method(clip))) for method in methods.values()]
    scored = [((i, image) for i, image in outputs if i in span) for outputs in opened]
    # The outputs are read to their ends, for what is saved of them.
    for number, *outputs in zip(span, *scored, strict=True):
      truth = clip.decode(SHARP, number)
      frames = {name: image for name, (_, image) in zip(methods, outputs, strict=True)}
      for image in frames.values():
        label, remedy = clip.label(SHARP, number), f"restore it at scale {clip.scale}"
        evaluation.check_size(number, image.shape, truth.shape, label, remedy)
      if previous is not None:
        truth_motion = motion(previous, truth)  # once for all: it takes longest
      frames[evaluation.BICUBIC] = resize_bicubic(clip.decode(BLUR_BICUBIC, number), clip.scale)
      for name, score in scores.items():
        score.add(truth, frames[name], truth_motion)
      previous = truth
      advance(1)
  return {name: score.score for name, score in scores.items()}


def restore_and_save(
  restorer: streaming.Restorer, folder: pathlib.Path | None, clip: Clip
) -> Outputs:
  """Restores a clip as a stream, and saves all its frames in FOLDER/CLIP if a folder is given."""
  with contextlib.ExitStack() as stack:
    writer = None
    if folder:
      path = _saved_clip(folder, clip)
      writer = stack.enter_context(video.open_writer(path, *clip.sizes[SHARP], SAVED_RATE))
    frames = clip.decode_each(BLUR_BICUBIC, range(clip.length))
    tile = enlarger.fitting_tile(restorer, *clip.sizes[BLUR_BICUBIC])
    if tile:
      tqdm.tqdm.write(f"note: {clip.name} does not fit whole, restored by tiles of {tile} pixels")
    for number, output in enumerate(enlarger.enlarge_frames(restorer, frames, tile)):
      if writer:
        writer.write(output)
      yield number, output


def _read_outputs(found: Mapping[str, GivenOutputs], clip: Clip) -> Outputs:
  return found[clip.name].read()


def find_outputs(folder: pathlib.Path, clip: Clip, margin: int) -> GivenOutputs:
  """Finds the restored frames of a clip; see `given_outputs.find`."""
  truth = clip.stream(SHARP)
  names = truth.names if isinstance(truth, FileStream) else None  # a built set's have none
  span = range(margin, clip.length - margin)
  return given_outputs.find(folder, clip.name, span, len(truth), names)


def find_scored(args: argparse.Namespace, num_frames: int) -> tuple[list[Clip], dict[str, str]]:
  """The clips to score, cut to the frames asked for; and why others are skipped."""
  chosen, skipped = choose_clips(
    args.data,
    split=args.split,
    streams=(SHARP, BLUR_BICUBIC),
    num_frames=num_frames,
    names=args.clips,
    frames=args.frames,
  )
  for clip in chosen:
    if min(clip.sizes[SHARP]) < SMALLEST_TRUTH:
      raise UserError(
        f"{clip.label(SHARP, 0)}: too small for tOF, which needs {SMALLEST_TRUTH} pixels each way"
      )
  return chosen, skipped


def _check_scale(chosen: Sequence[Clip], scale: int) -> None:
  for clip in chosen:
    if clip.scale != scale:
      raise UserError(
        f"{clip.label(SHARP, 0)}: {clip.scale} times the input's size, but the checkpoint restores "
        f"at scale {scale}; take another checkpoint or prepare the data with --scale {scale}"
      )


def _prepare_saving(args: argparse.Namespace, chosen: Sequence[Clip]) -> None:
  if args.save_frames.resolve().is_relative_to(args.data.resolve()):
    raise UserError(f"{args.save_frames}: lies within the data; save the frames elsewhere")
  files.make_folder(args.save_frames)
  for clip in chosen:
    video.check_output(_saved_clip(args.save_frames, clip))


def _saved_clip(folder: pathlib.Path, clip: Clip) -> str:
  return f"{folder / clip.name}/"  # the slash: a folder even if the name has a dot


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
  parser = cli.Parser("fmanet_jax.evaluate", __doc__)
  parser.add_argument("data", metavar="DATA", type=paths.place, help="clip set, REDS, built set")
  evaluation.add_arguments(parser)
  parser.add_argument(
    "--all-frames",
    action="store_true",
    help="score the first and last frames too, for which no window of T frames is whole",
  )
  parser.add_argument(
    "--checkpoint", metavar="DIR", help="default: the demonstration weights, without --outputs"
  )
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument(
    "--save-frames", type=paths.local, metavar="DIR", help="keep what is restored: DIR/CLIP/*.png"
  )
  args = parser.parse_args(given)
  if args.outputs and not args.checkpoint and args.save_frames:
    parser.error("--save-frames: with --outputs nothing is restored")
  return args


if __name__ == "__main__":
  cli.run(main)
