"""Command: restores a blurry low-resolution video, enlarged by the model's scale.

  python -m fmanet_jax.restore INPUT OUTPUT [--checkpoint DIR] [--dtype bfloat16] [--tile N]
    [--frames A:B] [--side-by-side] [--quality CRF] [--deinterlace]

INPUT is a video or a folder of frames; OUTPUT's name decides its form, see `vsr_jax.video`. Frames
stream from the decoder, a thread, through the model to the encoder, another thread.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np

from fmanet_jax import streaming
from vsr_jax import cli, runtime, video, video_cli
from vsr_jax.enlarge import enlarger
from vsr_jax.ops.resize import resize_bicubic


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  video.check_output(args.output, args.input)
  radius = streaming.load_architecture(args.checkpoint).frames // 2
  with (
    video_cli.readable(args.input) as args.copies,
    video_cli.open_input(args, context=(radius, radius)) as reader,
    cli.memory_errors(args.input, "give a smaller --tile"),
  ):
    restore_video(reader, args)


def restore_video(reader: video.Reader, args: argparse.Namespace) -> None:
  """Restores the frames that a reader gives, as the command line says."""
  frames = video_cli.counted_for(args.output, reader)
  runtime.enable_compilation_cache()
  runtime.return_freed_memory()
  restorer = streaming.open_restorer(args.checkpoint, args.dtype)
  info = reader.info
  height, width = (restorer.scale * size for size in (info.height, info.width))
  shown_width = 2 * width if args.side_by_side else width
  video_cli.check_size(args.output, height, shown_width)
  tile = args.tile or enlarger.fitting_tile(restorer, info.height, info.width)
  if tile != args.tile:
    print(f"note: whole frames do not fit the memory; restoring by tiles of {tile} pixels")

  def restored(read: Iterator[video.Frame]) -> Iterator[video.Frame]:
    for frame in enlarger.enlarge_frames(restorer, read, tile):
      if args.side_by_side:
        assert frame.restored_from is not None  # set in every restored `Frame`
        before = resize_bicubic(frame.restored_from, restorer.scale)
        frame = dataclasses.replace(frame, image=np.hstack([before, frame.image]))
      yield frame

  video_cli.write_restored(args, reader, frames, restored, (height, shown_width))


def _parse() -> argparse.Namespace:
  parser = cli.Parser("fmanet_jax.restore", __doc__)
  video_cli.add_video_arguments(parser)
  parser.add_argument("--checkpoint", metavar="DIR", help="default: the demonstration weights")
  parser.add_argument(
    "--tile",
    type=int,
    metavar="N",
    help="restore by tiles of N x N input pixels; default: only if whole frames do not fit",
  )
  parser.add_argument(
    "--side-by-side", action="store_true", help="put the bicubically enlarged input at the left"
  )
  args = parser.parse_args()
  if args.tile is not None and args.tile <= streaming.OVERLAP:
    parser.error(f"--tile {args.tile}: must be above the overlap of {streaming.OVERLAP} pixels")
  return args


if __name__ == "__main__":
  cli.run(main)
