"""What the commands that restore a video have in common."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from vsr_jax import video
from vsr_jax.errors import Parser, UserError, show_warning
from vsr_jax.frames_folder import several_frames

T = TypeVar("T")

LARGEST_SIDE = 16_384  # of H.264 pictures as x264 takes them


def add_video_arguments(parser: Parser) -> None:
  """Adds INPUT, OUTPUT, --dtype, --frames and --quality, which every one of them has."""
  parser.add_argument("input", metavar="INPUT", help="a video, or a folder of frames")
  parser.add_argument("output", metavar="OUTPUT", help=".mp4, .mkv, .mov, or a folder for PNGs")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument(
    "--frames", type=frame_range, metavar="A:B", default=(0, None), help="only frames A..B-1"
  )
  parser.add_argument(
    "--quality",
    type=_quality,
    metavar="CRF",
    default=18,
    help="of H.264: 1 (best) to 51, or 0 for lossless; default: 18",
  )


def frame_range(text: str) -> tuple[int, int | None]:
  """The argument A:B, either of which may be left out; B is None then."""
  found = re.fullmatch(r"(\d*):(\d*)", text, re.ASCII)
  if not found:
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B")
  start, stop = int(found[1] or 0), int(found[2]) if found[2] else None
  if stop is not None and stop <= start:
    raise argparse.ArgumentTypeError(f"{text!r} holds no frame; the first is 0, B is left out")
  return start, stop


def _quality(text: str) -> int:
  if not text.isdecimal() or int(text) > 51:
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 51")
  return int(text)


def frame_total(reader: video.Reader, start: int, stop: int | None) -> int | None:
  """How many frames there will be, as far as the file tells."""
  count = reader.info.frame_count
  if count is None:
    return None
  return max(1, min(count, count if stop is None else stop) - start)


def check_size(path: str, height: int, width: int) -> None:
  """Raises `UserError` if the output cannot hold frames of that size."""
  if path.lower().endswith((".mp4", ".mkv", ".mov")) and max(height, width) > LARGEST_SIDE:
    raise UserError(
      f"{path}: H.264 takes no frames of {width}x{height}; name a folder (for PNG) as output"
    )


def check_count(path: str, total: int | None) -> None:
  """Raises `UserError` if the output is a picture and there are known to be more frames."""
  if total is not None and total > 1 and video.holds_one_frame(path):
    raise several_frames(path)


def counted_for(path: str, frames: Iterable[T]) -> Iterator[T]:
  """Passes frames on; if the output is a picture, `UserError` where there are two, before any."""
  frames = iter(frames)
  if video.holds_one_frame(path):
    held = list(itertools.islice(frames, 2))
    check_count(path, len(held))
    frames = iter(held)
  yield from frames


@contextlib.contextmanager
def shown_warnings() -> Iterator[None]:
  """Within it each warning is one line above the progress bar."""
  with warnings.catch_warnings():
    warnings.showwarning = show_warning
    yield


@contextlib.contextmanager
def memory_errors(path: str, remedy: str) -> Iterator[None]:
  """Within it a device that runs out of memory is a `UserError`."""
  try:
    yield
  except RuntimeError as e:  # what XLA raises is one
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise UserError(f"{path}: the device's memory is too small for this; {remedy}") from e
