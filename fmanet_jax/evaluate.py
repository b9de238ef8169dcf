"""Command: scores restored clips against their truth, with bicubic enlargement as the row to beat.

  python -m fmanet_jax.evaluate DATA [--checkpoint DIR] [--out DIR] ...
  python -m fmanet_jax.evaluate DATA --outputs [NAME=]DIR ...    (what other methods have restored)

DATA is a clip set, REDS as released, or what `data_prep.build` made; --split tells which of its
clips are scored, by default those of the test, which are REDS4 of REDS. RGB PSNR, SSIM and tOF by
clip and in total are printed and written to metrics.json and metrics.md, anew after every clip, so
that an interrupted run leaves what it has finished; strips/ gets a picture a clip. --by-motion and
--reconstruction add what Table 3 of the paper has.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import functools
import itertools
import pathlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import tqdm

from fmanet_jax import reconstruction, streaming
from fmanet_jax.reconstruction import Reconstructor, draw_flow
from vsr_jax import cli, evaluation, files, given_outputs, paths, runtime, video
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, Clip
from vsr_jax.data_prep.folders import FileStream
from vsr_jax.data_prep.opening import choose_clips
from vsr_jax.enlarge import enlarger
from vsr_jax.errors import UserError
from vsr_jax.evaluation import Job
from vsr_jax.flow import released
from vsr_jax.flow.estimators import ESTIMATORS
from vsr_jax.flow.following import Follower, flow_to_previous
from vsr_jax.frame_strip import FrameStrip
from vsr_jax.given_outputs import GivenOutputs
from vsr_jax.metrics import ClipScore, Score, clip_score, motion
from vsr_jax.metrics.magnitude import magnitude, range_of
from vsr_jax.metrics.sums import PSNR, SSIM, compute
from vsr_jax.ops.resize import resize_bicubic
from vsr_jax.score_table import ScoreTable

SMALLEST_TRUTH = 48  # pixels: tOF leaves out the edges, and nothing would be left
MARGIN_OF_OUTPUTS = 1  # frames at each end that are not scored, as for windows of T = 3
STRIP_SIDE = 256  # pixels of the truth about its middle that a strip shows
STRIPS = "strips"
SAVED_RATE = Fraction(25)  # nominal: image files have none

# Pairs of frame number and restored frame, uint8 RGB [h w 3], in order; may exceed what is scored.
Outputs = Generator[tuple[int, np.ndarray], None, None]


class Setting(NamedTuple):
  """What holds for all clips.

  Attributes:
    methods: by name, what opens the restored frames of a clip.
    out: the folder of the results.
    margin: frames at each end of a clip that are not scored.
    follow: the flow [1 h w 2] from a true frame to the one before, given as (before, frame); None:
      scores are not told apart by motion.
    reconstructor: makes Net^D's frames of the truth; None: they are not scored.
  """

  methods: Mapping[str, Callable[[Clip], Outputs]]
  out: pathlib.Path
  margin: int = MARGIN_OF_OUTPUTS
  follow: Callable[[np.ndarray, np.ndarray], Any] | None = None
  reconstructor: Reconstructor | None = None


def main(given: Sequence[str] | None = None) -> None:
  """Runs the command with the given arguments or the process's; see the docstring and `--help`."""
  args = _parse(given)
  methods: dict[str, Callable[[Clip], Outputs]] = {}
  model, margin, reconstructor = None, MARGIN_OF_OUTPUTS, None
  if args.checkpoint or not args.outputs:
    runtime.enable_compilation_cache()
    runtime.return_freed_memory()
    model, params = streaming.load(args.checkpoint, args.dtype)
    margin = model.arch.frames // 2
    restorer = streaming.Restorer(model, params)
    methods["FMA-Net"] = functools.partial(restore_and_save, restorer, args.save_frames)
    reconstructor = Reconstructor(model, params) if args.reconstruction else None
  margin = 0 if args.all_frames else margin
  reserved = [evaluation.BICUBIC, *([reconstruction.NAME] if reconstructor else [])]
  evaluation.check_names([*reserved, *methods, *(name for name, _ in args.outputs)])
  chosen, skipped = find_scored(args, 2 * margin + 1)
  for name, folder in args.outputs:
    found = {clip.name: find_outputs(folder, clip, margin) for clip in chosen}  # before any work
    methods[name] = functools.partial(_read_outputs, found)
  if model is not None:
    _check_scale(chosen, model.arch.scale)
  if args.save_frames:
    _prepare_saving(args, chosen)
  follow, flow = _load_flow(args)
  record = {
    "data": str(args.data),
    "checkpoint": args.checkpoint,
    "outputs": {name: str(folder) for name, folder in args.outputs},
    "dtype": model and args.dtype,
    "left_out_at_each_end": margin,
    "flow": flow,
  }
  for folder in (args.out, args.out / STRIPS):
    files.make_folder(folder)
    files.remove_left(folder)
  setting = Setting(methods, args.out, margin, follow, reconstructor)
  table = make_table(setting, record)
  table.skipped |= skipped
  jobs = [_job(setting, clip) for clip in chosen]
  with cli.memory_errors(str(args.data), "leave out --reconstruction, or try --dtype bfloat16"):
    evaluation.evaluate(jobs, table, args.out)
  evaluation.tell(table, args.out, args.data)


def _load_flow(args: argparse.Namespace) -> tuple[Follower | None, str | None]:
  """What follows the truth's motion, and the network's name; None unless they are asked for."""
  if not args.by_motion:
    return None, None
  name, params = released.load(args.flow_weights)
  return Follower(ESTIMATORS[name], params, flow_to_previous), name


def make_table(setting: Setting, record: dict[str, Any]) -> ScoreTable:
  """An empty table of bicubic enlargement and other methods; `record` describes the evaluation."""
  margin = setting.margin
  left_out = f"all frames but {margin} at each end of a clip" if margin else "all frames"
  notes, names = [clip_score.describe(left_out)], [evaluation.BICUBIC, *setting.methods]
  if setting.reconstructor is None:
    return ScoreTable(names, clip_score.METRICS, record, notes)
  notes.append(
    f"Row {reconstruction.NAME}: the blurred frames that Net^D makes of the truth, against the "
    "input; not to be compared with the other rows."
  )
  names.append(reconstruction.NAME)
  return ScoreTable(names, clip_score.METRICS, record, notes, apart=(reconstruction.NAME,))


def _job(setting: Setting, clip: Clip) -> Job:
  span = range(setting.margin, clip.length - setting.margin)
  return Job(clip.name, len(span), functools.partial(score_clip, setting, clip, span))


def score_clip(
  setting: Setting, clip: Clip, span: range, advance: Callable[[int], object]
) -> dict[str, Score]:
  """Scores bicubic enlargement and restored frames of a clip, in constant memory.

  Args:
    setting: the setting.
    clip: with its truth.
    span: the numbers of the frames to score.
    advance: told 1 after every frame scored.

  Returns:
    The scores by method, those of bicubic enlargement first.

  Raises:
    UserError: a frame cannot be decoded or has another size than the truth.
  """
  methods = setting.methods
  scores = {name: ClipScore() for name in (evaluation.BICUBIC, *methods)}
  small = min(clip.sizes[BLUR_BICUBIC]) < SMALLEST_TRUTH
  reconstructed = ClipScore(with_motion=not small)
  strip = FrameStrip(span, STRIP_SIDE)
  previous = truth_motion = None
  # By motion, what is scored first has a frame before it unless the clip begins with it.
  before = clip.decode(SHARP, span.start - 1) if setting.follow and span.start else None
  with contextlib.ExitStack() as stack:
    opened = [stack.enter_context(contextlib.closing(method(clip))) for method in methods.values()]
    scored = [((i, image) for i, image in outputs if i in span) for outputs in opened]
    blurred = _reconstructed(setting.reconstructor, clip, span)
    # The outputs are read to their ends, for what is saved of them.
    for number, *outputs in zip(span, *scored, strict=True):
      truth, low = clip.decode(SHARP, number), clip.decode(BLUR_BICUBIC, number)
      frames = {name: image for name, (_, image) in zip(methods, outputs, strict=True)}
      for image in frames.values():
        label, remedy = clip.label(SHARP, number), f"restore it at scale {clip.scale}"
        evaluation.check_size(number, image.shape, truth.shape, label, remedy)
      if previous is not None:
        truth_motion = motion(previous, truth)  # once for all: it takes longest
      part = None
      if setting.follow and before is not None:
        part = range_of(float(magnitude(setting.follow(before, truth))[0]))
      frames[evaluation.BICUBIC] = resize_bicubic(low, clip.scale)
      added = {
        name: score.add(truth, frames[name], truth_motion, part) for name, score in scores.items()
      }
      frame_scores = {name: compute((PSNR, SSIM), x) for name, x in added.items()}
      maps: dict[str, np.ndarray] = {}
      for image, flow in itertools.islice(blurred, 1):
        reconstructed.add(low, image, None, part)
        if flow is not None and strip.shows(number):
          maps["flow of FMA-Net"] = draw_flow(flow)
      strip.add(number, low, {name: frames[name] for name in scores}, truth, frame_scores, maps)
      previous = before = truth
      advance(1)
  strip.save(setting.out / STRIPS, clip.name)
  if setting.reconstructor:
    scores[reconstruction.NAME] = reconstructed
  return {name: score.score for name, score in scores.items()}


def _reconstructed(
  reconstructor: Reconstructor | None, clip: Clip, span: range
) -> Iterator[tuple[np.ndarray, Any]]:
  """What `Reconstructor.stream` gives; nothing without one."""

  def decode(number: int) -> tuple[np.ndarray, np.ndarray]:
    return clip.decode(BLUR_BICUBIC, number), clip.decode(SHARP, number)

  return iter(()) if reconstructor is None else reconstructor.stream(decode, clip.length, span)


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
  parser.add_argument(
    "--by-motion", action="store_true", help="also tell apart frames by the truth's motion"
  )
  parser.add_argument(
    "--flow-weights", metavar="FILE", help="for --by-motion; default: RAFT-small's, which ship"
  )
  parser.add_argument(
    "--reconstruction",
    action="store_true",
    help="also score the blurred frames that the checkpoint's Net^D makes of the truth",
  )
  args = parser.parse_args(given)
  if args.flow_weights and not args.by_motion:
    parser.error("--flow-weights: are for --by-motion")
  if args.outputs and not args.checkpoint and args.reconstruction:
    parser.error("--reconstruction: needs a checkpoint")
  if args.outputs and not args.checkpoint and args.save_frames:
    parser.error("--save-frames: with --outputs nothing is restored")
  return args


if __name__ == "__main__":
  cli.run(main)
