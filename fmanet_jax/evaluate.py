"""Command: scores restored clips against their truth, with bicubic enlargement as the row to beat.

  python -m fmanet_jax.evaluate DATA [--checkpoint DIR] [--out DIR] ...
  python -m fmanet_jax.evaluate DATA --outputs DIR ...    (frames that any method has restored)

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
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Generator, Sequence
from fractions import Fraction

import numpy as np
import tqdm

from fmanet_jax import score_table, streaming
from fmanet_jax.score_table import ScoreTable
from vsr_jax import cli, files, progress, runtime, video
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, Clip
from vsr_jax.data_prep.folders import FileStream
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.enlarge import enlarger
from vsr_jax.errors import UserError
from vsr_jax.images import read_image
from vsr_jax.metrics import ClipScore, Score, motion
from vsr_jax.ops.resize import resize_bicubic
from vsr_jax.video.frames_folder import natural_key

SMALLEST_TRUTH = 48  # pixels: tOF leaves out the edges, and nothing would be left
MARGIN_OF_OUTPUTS = 1  # frames at each end that are not scored, as for windows of T = 3
SAVED_RATE = Fraction(25)  # nominal: image files have none

# Pairs of frame number and restored frame, uint8 RGB [h w 3], in order; may exceed what is scored.
Outputs = Generator[tuple[int, np.ndarray], None, None]


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  if args.outputs:
    method, margin, model = args.outputs.resolve().name, MARGIN_OF_OUTPUTS, None
  else:
    runtime.enable_compilation_cache()
    runtime.return_freed_memory()
    model, params = streaming.load(args.checkpoint, args.dtype)
    method, margin = "FMA-Net", model.arch.frames // 2
  if args.all_frames:
    margin = 0
  chosen, skipped = find_scored(args, 2 * margin + 1)
  if model is None:
    outputs_of = functools.partial(read_outputs, args.outputs, margin)
    for clip in chosen:
      find_outputs(args.outputs / clip.name, clip, margin)  # checked before hours of work
  else:
    _check_scale(chosen, model.arch.scale)
    if args.save_frames:
      _prepare_saving(args, chosen)
    restorer = streaming.Restorer(model, params)
    outputs_of = functools.partial(restore_and_save, restorer, args.save_frames)
  setting = {
    "data": str(args.data),
    "checkpoint": args.checkpoint,
    "outputs": args.outputs and str(args.outputs),
    "dtype": model and args.dtype,
    "left_out_at_each_end": margin,
  }
  files.make_folder(args.out)
  files.remove_left(args.out)
  table = ScoreTable(method, setting, skipped=skipped)
  evaluate(chosen, outputs_of, margin, table, functools.partial(score_table.write, args.out))
  print(score_table.to_markdown(score_table.to_json(table)))
  print(f"written to {args.out}/metrics.json and metrics.md")
  if not table.scores:
    raise UserError(f"{args.data}: no clip could be scored; the reasons are above")


def evaluate(
  chosen: Sequence[Clip],
  outputs_of: Callable[[Clip], Outputs],
  margin: int,
  table: ScoreTable,
  save: Callable[[ScoreTable], None],
) -> None:
  """Scores clips one by one into a table; one that cannot be read is skipped and named.

  Args:
    chosen: the clips, with their truth.
    outputs_of: opens the restored frames of a clip; raises `UserError` if it cannot.
    margin: frames at each end of a clip that are not scored.
    table: filled in.
    save: called with the table at the start, which shows whether it can be written, and
      after every clip.
  """
  save(table)
  with progress.Clock(), progress.bar(None, sum(c.length - 2 * margin for c in chosen)) as bar:
    done = 0
    for clip in chosen:
      bar.set_description(clip.name)
      span = range(margin, clip.length - margin)
      try:
        with contextlib.closing(outputs_of(clip)) as outputs:
          table.scores[clip.name] = score_clip(clip, outputs, span, bar.update)
      except UserError as e:
        table.skipped[clip.name] = str(e)
        bar.write(f"skipped {clip.name}: {e}")
      done += len(span)
      bar.update(done - bar.n)  # what was skipped
      table.complete = clip is chosen[-1]
      save(table)


def score_clip(
  clip: Clip, outputs: Outputs, span: range, advance: Callable[[int], object]
) -> tuple[Score, Score]:
  """Scores bicubic enlargement and restored frames of a clip, in constant memory.

  Args:
    clip: with its truth.
    outputs: numbers and restored frames, uint8 [s*h s*w 3].
    span: the numbers to score.
    advance: told 1 after every frame scored.

  Returns:
    The scores of bicubic enlargement and of the restored frames.

  Raises:
    UserError: a frame cannot be decoded or has another size than the truth.
  """
  bicubic, restored = ClipScore(), ClipScore()
  previous = truth_motion = None
  for number, output in outputs:
    if number not in span:
      continue
    truth = clip.decode(SHARP, number)
    if output.shape != truth.shape:
      h, w = output.shape[:2]
      raise UserError(
        f"frame {number} was restored to {w}x{h} but the truth, {clip.label(SHARP, number)}, "
        f"is {truth.shape[1]}x{truth.shape[0]}; restore it at scale {clip.scale}"
      )
    if previous is not None:
      truth_motion = motion(previous, truth)  # once for both: it takes longest
    enlarged = resize_bicubic(clip.decode(BLUR_BICUBIC, number), clip.scale)
    bicubic.add(truth, enlarged, truth_motion)
    restored.add(truth, output, truth_motion)
    previous = truth
    advance(1)
  return bicubic.score, restored.score


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


def read_outputs(folder: pathlib.Path, margin: int, clip: Clip) -> Outputs:
  """Reads the frames to be scored of a clip that was restored before; see `find_outputs`."""
  for number, path in enumerate(find_outputs(folder / clip.name, clip, margin), margin):
    yield number, read_image(path)


def find_outputs(folder: pathlib.Path, clip: Clip, margin: int) -> list[pathlib.Path]:
  """The PNGs that hold the scored frames of a clip.

  Either all are named as the truth's frames; or, in natural order of their names, there is one for
  each frame of the clip or one for each frame that is scored.

  Raises:
    UserError: there is no such folder, or its names and number of PNGs fit neither.
  """
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder; restore {clip.name} or leave it out with --clips")
  found = sorted(folder.glob("*.png"), key=lambda path: natural_key(path.name))
  span, truth = slice(margin, clip.length - margin), clip.stream(SHARP)
  if isinstance(truth, FileStream):  # frames of a built set have no names
    named = [folder / name for name in truth.names[span]]
    if set(named) <= set(found) and {path.name for path in found} <= set(truth.names):
      return named
  scored = clip.length - 2 * margin
  if len(found) == scored:
    return found
  if len(found) == clip.length:
    return found[span]
  raise UserError(
    f"{folder}: {len(found)} PNGs, but {clip.name} has {clip.length} frames of which "
    f"{scored} are scored; name them as the truth's"
  )


def find_scored(args: argparse.Namespace, num_frames: int) -> tuple[list[Clip], dict[str, str]]:
  """The clips to score, cut to the frames asked for; and why others are skipped."""
  if args.frames is not None and args.frames < num_frames:
    raise UserError(f"--frames {args.frames}: at least {num_frames} are needed to score one")
  streams = (SHARP, BLUR_BICUBIC)
  opened = open_clips(args.data, split=args.split, streams=streams, num_frames=num_frames)
  # Damaged clips are left out; a table of REDS4 without one of them has to say so.
  listed = sorted([*(clip.name for clip in opened.clips), *opened.left_out])
  wanted = args.clips.split(",") if args.clips is not None else listed
  if unknown := [name for name in wanted if name not in listed]:
    raise UserError(f"{args.data}: no clip {' '.join(unknown)}; there are {' '.join(listed)}")
  chosen = [
    dataclasses.replace(clip, length=min(clip.length, args.frames or clip.length))
    for clip in opened.clips
    if clip.name in wanted
  ]
  for clip in chosen:
    if min(clip.sizes[SHARP]) < SMALLEST_TRUTH:
      raise UserError(
        f"{clip.label(SHARP, 0)}: too small for tOF, which needs {SMALLEST_TRUTH} pixels each way"
      )
  skipped = {name: reason for name, reason in opened.left_out.items() if name in wanted}
  if not chosen:
    raise UserError(f"{args.data}: {' '.join(wanted)} cannot be read; prepare or extract it again")
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


def _parse() -> argparse.Namespace:
  parser = cli.Parser("fmanet_jax.evaluate", __doc__)
  parser.add_argument("data", metavar="DATA", type=pathlib.Path, help="clip set, REDS, built set")
  parser.add_argument("--split", default="test", help="of a release or a built set; default: test")
  parser.add_argument("--clips", metavar="A,B", help="names of the clips to score; default: all")
  parser.add_argument("--frames", type=int, metavar="N", help="only the first N of every clip")
  parser.add_argument(
    "--all-frames",
    action="store_true",
    help="score the first and last frames too, for which no window of T frames is whole",
  )
  source = parser.add_mutually_exclusive_group()
  source.add_argument("--checkpoint", metavar="DIR", help="default: the demonstration weights")
  source.add_argument(
    "--outputs", type=pathlib.Path, metavar="DIR", help="score DIR/CLIP/*.png, restore nothing"
  )
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument(
    "--save-frames", type=pathlib.Path, metavar="DIR", help="keep what is restored: DIR/CLIP/*.png"
  )
  parser.add_argument(
    "--out", type=pathlib.Path, metavar="DIR", default="evaluation", help="default: evaluation"
  )
  args = parser.parse_args()
  if args.outputs and args.save_frames:
    parser.error("--save-frames: with --outputs nothing is restored")
  return args


if __name__ == "__main__":
  cli.run(main)
