"""Command: restores a blurry low-resolution video, enlarged by the model's scale.

  python -m fmanet_jax.restore INPUT OUTPUT [--checkpoint DIR] [--dtype bfloat16] [--tile N]
    [--frames A:B] [--side-by-side] [--quality CRF]

INPUT is a video or a folder of frames; OUTPUT's name decides its form, see `vsr_jax.video`. Frames
stream from the decoder, a thread, through the model to the encoder, another thread.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import re
import sys
import time
import warnings
from collections.abc import Iterator

import jax
import numpy as np
import tqdm

from fmanet_jax import inference
from vsr_jax import errors, video
from vsr_jax.errors import UserError
from vsr_jax.resize import resize_bicubic
from vsr_jax.train.mesh import make_mesh

LARGEST_SIDE = 16_384  # of H.264 pictures as x264 takes them


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  start, stop = args.frames
  video.check_output(args.output, args.input)
  with warnings.catch_warnings():
    warnings.showwarning = _show_warning
    with video.open_reader(args.input, start, stop) as reader:
      try:
        restore(reader, args)
      except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
          raise
        raise UserError(
          f"{args.input}: the device's memory is too small for this; give a smaller --tile"
        ) from e


def restore(reader: video.Reader, args: argparse.Namespace) -> None:
  """Restores the frames that a reader gives, as the command line says."""
  model, params = inference.load(args.checkpoint, args.dtype)
  mesh = make_mesh() if jax.device_count() > 1 else None
  restorer = inference.Restorer(model, params, mesh)
  info = reader.info
  height, width = (model.arch.scale * size for size in (info.height, info.width))
  shown_width = 2 * width if args.side_by_side else width
  _check_size(args.output, height, shown_width)
  tile = args.tile or inference.fitting_tile(restorer, info.height, info.width)
  if tile != args.tile:
    print(f"note: whole frames do not fit the memory; restoring by tiles of {tile} pixels")
  began, count = time.monotonic(), 0
  with (
    video.open_writer(
      args.output, height, shown_width, info.frame_rate, source=info, quality=args.quality
    ) as writer,
    contextlib.closing(restored(restorer, reader, tile)) as results,
    tqdm.tqdm(total=_total(reader, *args.frames), unit="frame", desc="restoring") as bar,
  ):
    for frame, image in results:
      if args.side_by_side:
        image = np.hstack([resize_bicubic(frame.image, model.arch.scale), image])
      writer.write(image, frame.time)
      count += 1
      bar.update()
  seconds = time.monotonic() - began
  print(
    f"{args.output}: {count} frames of {shown_width}x{height} in {seconds:.1f} s, "
    f"{count / seconds:.2f} frames/s"
  )


def restored(
  restorer: inference.Restorer, reader: video.Reader, tile: int | None
) -> Iterator[tuple[video.Frame, np.ndarray]]:
  """Yields every frame of a clip with its restored image, uint8 [sh sw 3]."""
  taken: collections.deque[video.Frame] = collections.deque()

  def images(frames):
    for frame in frames:
      taken.append(frame)
      yield frame.image

  with contextlib.closing(video.prefetch(reader)) as frames:
    for image in inference.restore_frames(restorer, images(frames), tile):
      yield taken.popleft(), image


def _total(reader: video.Reader, start: int, stop: int | None) -> int | None:
  """How many frames there will be, as far as the file tells."""
  count = reader.info.frame_count
  if count is None:
    return None
  return max(1, min(count, count if stop is None else stop) - start)


def _check_size(path: str, height: int, width: int) -> None:
  if path.lower().endswith((".mp4", ".mkv", ".mov")) and max(height, width) > LARGEST_SIDE:
    raise UserError(
      f"{path}: H.264 takes no frames of {width}x{height}; name a folder (for PNG) as output"
    )


def _show_warning(message: Warning, *_args, **_kwargs) -> None:
  tqdm.tqdm.write(f"warning: {message}", file=sys.stderr)


def _parse() -> argparse.Namespace:
  parser = errors.Parser(prog="fmanet_jax.restore", description=__doc__.partition("\n")[0])
  parser.add_argument("input", metavar="INPUT", help="a video, or a folder of frames")
  parser.add_argument("output", metavar="OUTPUT", help=".mp4, .mkv, .mov, or a folder for PNGs")
  parser.add_argument("--checkpoint", metavar="DIR", help="default: the demonstration weights")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument(
    "--tile",
    type=int,
    metavar="N",
    help="restore by tiles of N x N input pixels; default: only if whole frames do not fit",
  )
  parser.add_argument(
    "--frames", type=_frame_range, metavar="A:B", default=(0, None), help="only frames A..B-1"
  )
  parser.add_argument(
    "--side-by-side", action="store_true", help="put the bicubically enlarged input at the left"
  )
  parser.add_argument(
    "--quality",
    type=int,
    metavar="CRF",
    default=18,
    help="of H.264: 1 (best) to 51, or 0 for lossless; default: 18",
  )
  args = parser.parse_args()
  if args.tile is not None and args.tile <= inference.OVERLAP:
    parser.error(f"--tile {args.tile}: must be above the overlap of {inference.OVERLAP} pixels")
  if not 0 <= args.quality <= 51:
    parser.error(f"--quality {args.quality}: must be 0 to 51")
  return args


def _frame_range(text: str) -> tuple[int, int | None]:
  found = re.fullmatch(r"(\d*):(\d*)", text, re.ASCII)
  if not found:
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B")
  start, stop = int(found[1] or 0), int(found[2]) if found[2] else None
  if stop is not None and stop <= start:
    raise argparse.ArgumentTypeError(f"{text!r} holds no frame; the first is 0, B is left out")
  return start, stop


if __name__ == "__main__":
  errors.run(main)
