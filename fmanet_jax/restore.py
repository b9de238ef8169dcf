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
import contextlib

import numpy as np

from fmanet_jax import streaming
from vsr_jax import cli, progress, runtime, video, video_cli
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
  total = video_cli.frame_total(reader, *args.frames)
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
  count = 0
  with (
    progress.Clock() as clock,
    video.open_writer(
      args.output, height, shown_width, info.frame_rate, source=info, quality=args.quality
    ) as writer,
    contextlib.closing(video.prefetch(frames)) as read,
    progress.bar("restoring", total) as bar,
  ):
    for frame in enlarger.enlarge_frames(restorer, read, tile):
      if frame.is_context:
        continue
      image = frame.image
      if args.side_by_side:
        assert frame.restored_from is not None  # set in every restored `Frame`
        image = np.hstack([resize_bicubic(frame.restored_from, restorer.scale), image])
      writer.write(image, frame.time, frame.duration, frame.name)
      count += 1
      bar.update()
  print(f"{args.output}: {count} frames of {shown_width}x{height}{clock.speed(count)}")


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
