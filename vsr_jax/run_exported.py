"""Command: restores a video with a file that an export command wrote, without the system itself.

  python -m vsr_jax.run_exported FILE INPUT OUTPUT [--frames A:B] [--quality CRF] [--deinterlace]

FILE holds programs and weights, see docs/export.md. INPUT is a video, a folder of frames or a
picture of the size that FILE is for; for KEEP's, a clip that is one aligned face. The output equals
that of `fmanet_jax.restore`, or `keep_jax.restore --aligned`.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import dataclasses
from collections.abc import Iterator

from vsr_jax import cli, runtime, video, video_cli
from vsr_jax.errors import UserError
from vsr_jax.exported import files, streams
from vsr_jax.faces import paste


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("vsr_jax.run_exported", __doc__)
  parser.add_argument("file", metavar="FILE", help="a file that an export command wrote")
  video_cli.add_video_arguments(parser, dtype_needed=False)
  args = parser.parse_args()
  video.check_output(args.output, args.input)
  contents = files.read(args.file)
  of_faces = "recursion" in contents.manifest
  if of_faces:  # before JAX starts
    runtime.keep_freed_memory()
  else:
    runtime.return_freed_memory()
  runtime.enable_compilation_cache()
  stream = streams.open_stream(args.file, contents)
  del contents  # on the device by now
  with (
    video_cli.readable(args.input) as args.copies,
    video_cli.open_input(args, context=stream.context) as reader,
    cli.memory_errors(args.file, "export it for smaller frames, or free some"),
  ):
    _check_size(reader.info, args.input, args.file, stream)
    size = stream.scale * stream.height, stream.scale * stream.width
    video_cli.check_size(args.output, *size)
    frames = video_cli.counted_for(args.output, reader)

    def restored(read: Iterator[video.Frame]) -> Iterator[video.Frame]:
      for frame in stream.stream(read):
        if of_faces and paste.is_grey(frame.restored_from):
          frame = dataclasses.replace(frame, image=paste.to_grey(frame.image))
        yield frame

    video_cli.write_restored(args, reader, frames, restored, size)


def _check_size(info: video.VideoInfo, clip: str, file: str, stream: streams.Stream) -> None:
  if (info.height, info.width) != (stream.height, stream.width):
    raise UserError(
      f"{clip}: {info.width}x{info.height}, and {file} is for {stream.width}x{stream.height}; "
      "resize the clip, or export for its size"
    )


if __name__ == "__main__":
  cli.run(main)
