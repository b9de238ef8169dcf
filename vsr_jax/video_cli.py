"""Arguments and steps that the commands which restore a video share."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from vsr_jax import images, progress, video
from vsr_jax.cli import Parser
from vsr_jax.errors import UserError
from vsr_jax.paths import local
from vsr_jax.video import spool
from vsr_jax.video.encode import CONTAINERS
from vsr_jax.video.frames_folder import several_frames

LARGEST_SIDE = 16_384  # the largest side of a picture that x264 takes


def add_video_arguments(
  parser: Parser, *, output_needed: bool = True, dtype_needed: bool = True
) -> None:
  """Adds the arguments of every such command: INPUT, OUTPUT, --dtype, --frames and others."""
  parser.add_argument(
    "input",
    metavar="INPUT",
    help="a video, a folder of frames, or a pipe (- for standard input), which is copied to TMPDIR",
  )
  parser.add_argument(
    "output",
    metavar="OUTPUT",
    nargs=None if output_needed else "?",
    help=".mp4, .mkv, .mov, or a folder for PNGs",
  )
  if dtype_needed:
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument(
    "--frames", type=frame_range, metavar="A:B", default=(0, None), help="only frames A..B-1"
  )
  parser.add_argument(
    "--deinterlace", action="store_true", help="make whole pictures of the fields of a video"
  )
  parser.add_argument(
    "--quality",
    type=_quality,
    metavar="CRF",
    default=18,
    help="H.264's: 1 (best) to 51, or 0 for lossless RGB, which few players show; default: 18",
  )
  parser.add_argument(
    "--max-pixels",
    type=_pixels,
    metavar="N",
    default=images.MAX_PIXELS,
    help="refuse an input whose frames are larger; default: %(default)s (8192x8192)",
  )


def frame_range(text: str) -> tuple[int, int | None]:
  """Parses A:B, of which either may be left out: A is 0 then, B None."""
  found = re.fullmatch(r"(\d*):(\d*)", text, re.ASCII)
  if not found:
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B")
  start, stop = _frame_number(found[1]), _frame_number(found[2]) if found[2] else None
  if stop is not None and stop <= start:
    raise argparse.ArgumentTypeError(f"{text!r} holds no frame; the first is 0, B is left out")
  return start, stop


def _frame_number(digits: str) -> int:
  """Parses digits; 19 and more give sys.maxsize, as no clip is so long and Python limits digits."""
  digits = digits.lstrip("0") or "0"
  return int(digits) if len(digits) < 19 else sys.maxsize


def _quality(text: str) -> int:
  if not text.isdecimal() or int(text) > 51:
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 51")
  return int(text)


def _pixels(text: str) -> int:
  if not text.isdecimal() or not 0 < int(text) <= images.MOST_PIXELS:
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {images.MOST_PIXELS}")
  return int(text)


@contextlib.contextmanager
def readable(*paths: str | None) -> Iterator[dict[str, str | None]]:
  """A context in which inputs can be read repeatedly: a pipe is first copied to a temporary file.

  Args:
    *paths: the inputs; None is left out.

  Yields:
    By input the path of its copy, None where it is no pipe; see `video.open_reader`.
  """
  with contextlib.ExitStack() as stack:
    copies = {}
    for path in filter(None, paths):
      local(path)
      if spool.is_pipe(path):
        print(f"note: {path}: can be read only once; it is copied to a temporary file first")
      copies[path] = stack.enter_context(spool.copied(path))
    yield copies


def open_input(
  args: argparse.Namespace, *, context: tuple[int, int] = (0, 0), tell: bool = True
) -> video.Reader:
  """Opens INPUT with the options of the command line.

  Args:
    args: what `add_video_arguments` added, and `copies`, from `readable`.
    context: how many frames before and after --frames are read, too; see `video.open_reader`.
    tell: whether to print notes on the clip and the output; to be done once per run.

  Returns:
    The reader.

  Raises:
    UserError: see `video.open_reader`.
  """
  reader = video.open_reader(
    args.input,
    *args.frames,
    context=context,
    copy=args.copies[args.input],
    deinterlace=args.deinterlace,
    max_pixels=args.max_pixels,
  )
  notes = list(reader.info.notes)
  if args.quality == 0 and (args.output or "").lower().endswith(tuple(CONTAINERS)):
    notes.append(f"{args.output}: lossless RGB, which few players show; --quality 1 is for most")
  for note in notes if tell else ():
    print(f"note: {note}")
  return reader


def frame_total(reader: video.Reader, start: int, stop: int | None) -> int | None:
  """How many frames of start:stop there are by the file's header; None if it states no count."""
  count = reader.info.frame_count
  if count is None:
    return None
  return max(1, min(count, count if stop is None else stop) - start)


def write_restored(
  args: argparse.Namespace,
  reader: video.Reader,
  frames: Iterator[video.Frame],
  restore: Callable[[Iterator[video.Frame]], Iterator[video.Frame]],
  size: tuple[int, int],
) -> None:
  """Restores frames as they are read, writes OUTPUT, and prints how many it has and their speed.

  Args:
    args: what `add_video_arguments` added.
    reader: of INPUT.
    frames: the reader's, from `counted_for`.
    restore: the network as a stream.
    size: height and width of the frames that it gives.
  """
  count = 0
  with (
    progress.Clock() as clock,
    video.open_writer(
      args.output, *size, reader.info.frame_rate, source=reader.info, quality=args.quality
    ) as writer,
    contextlib.closing(video.prefetch(frames)) as read,
    progress.bar("restoring", frame_total(reader, *args.frames)) as bar,
  ):
    for frame in restore(read):
      if frame.is_context:
        continue
      writer.write(frame.image, frame.time, frame.duration, frame.name)
      count += 1
      bar.update()
  print(f"{args.output}: {count} frames of {size[1]}x{size[0]}{clock.speed(count)}")


def check_size(path: str, height: int, width: int) -> None:
  """Raises `UserError` if the output cannot hold frames of that size."""
  if path.lower().endswith(tuple(CONTAINERS)) and max(height, width) > LARGEST_SIDE:
    raise UserError(
      f"{path}: H.264 takes no frames of {width}x{height}; name a folder (for PNG) as output"
    )


def counted_for(path: str | None, frames: Iterable[video.Frame]) -> Iterator[video.Frame]:
  """Returns the frames; raises `UserError` at once if several are to go into one picture."""
  if path is None or not video.holds_one_frame(path):
    return iter(frames)
  held, count = [], 0
  for frame in frames:
    held.append(frame)
    count += not frame.is_context
    if count > 1:
      raise several_frames(path)
  return iter(held)


def accompanied(
  frames: Iterable[video.Frame], others: Iterator[video.Frame], path: str
) -> Iterator[video.Frame]:
  """Yields the frames; `UserError` if `others`, the frames of the clip at `path`, end earlier."""
  for frame in frames:
    if not frame.is_context and next(others, None) is None:
      raise UserError(f"{path}: ends before frame {frame.index}; give one that is as long")
    yield frame
