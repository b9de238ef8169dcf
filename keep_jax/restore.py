"""Command: restores the faces of a video with KEEP.

  python -m keep_jax.restore INPUT OUTPUT [--checkpoint DIR] [--faces largest|all] [--upscale S]
    [--background VIDEO | --background-model realesrgan|fmanet]
    [--tracks 0,2] [--min-face PIXELS] [--min-score S] [--skip-sharp]
    [--mode stream|as_released|bidirectional] [--aligned] [--draw-boxes] [--save-crops DIR]
    [--strip FILE.png] [--side-by-side]
  python -m keep_jax.restore INPUT --list-faces [--strip FILE.png]

INPUT is a video, a folder of frames or a picture; OUTPUT's name decides its form, see
`vsr_jax.video`. A first pass finds the faces and follows them, a second one restores each person
with a state of its own and puts the faces back. Frames without a face pass through.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import collections
import contextlib
import functools
import glob
import os
import re
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import cv2
import numpy as np

from keep_jax import arguments, background, show, streaming
from keep_jax.choice import Choice, FaceTrack
from keep_jax.faces import RestoredFrame, StreamTracks, find_faces, identity, restore_faces
from vsr_jax import cli, files, progress, runtime, video, video_cli
from vsr_jax.enlarge.enlarger import Enlarger
from vsr_jax.errors import UserError
from vsr_jax.faces import align, detector, parsenet, paste, rotated, tracks
from vsr_jax.frames import paired

T = TypeVar("T")


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  _check_paths(args)
  with (
    video_cli.readable(args.input, args.background) as args.copies,
    cli.memory_errors(args.input, "try --dtype bfloat16 or a smaller --background-tile"),
    progress.Clock() as args.clock,
  ):
    run = list_faces if args.list_faces else restore_aligned if args.aligned else restore_frames
    run(args)


def _check_paths(args: argparse.Namespace) -> None:
  """Raises `UserError`, before any work is done, for what cannot be written."""
  for path in filter(None, (args.output, args.strip)):
    for source in filter(None, (args.input, args.background)):
      video.check_output(path, source)
  if args.save_crops:
    files.check_folder(args.save_crops)
    for path in glob.glob(os.path.join(glob.escape(args.save_crops), "face_*")):
      video.check_output(path)  # an earlier run's, to be replaced
  outputs = filter(None, (args.output, args.strip, args.save_crops))
  places = [os.path.realpath(path) for path in outputs]
  if len(set(places)) < len(places):
    raise UserError(f"{args.output}: is to be written twice; name other places")


def restore_aligned(args: argparse.Namespace) -> None:
  """Restores a clip that is one aligned face."""
  _choose_settings(args)
  restore, size = _network(args)
  with video_cli.open_input(args, context=(0, _look_ahead(args))) as reader:
    info = reader.info
    if info.height != info.width:
      raise UserError(
        f"{args.input}: {info.width}x{info.height} is no aligned face, which is square; leave out "
        "--aligned to find the faces"
      )
    total = video_cli.frame_total(reader, *args.frames)
    counted = video_cli.counted_for(args.output, reader)
    width = 2 * size if args.side_by_side else size
    args.clock.start()
    count = 0
    with (
      _writer(args, size, width, info) as writer,
      contextlib.closing(video.prefetch(counted)) as frames,
      progress.bar("restoring", total) as bar,
    ):
      for faces, frame in paired(restore, (({0: frame.image}, frame) for frame in frames)):
        if frame.is_context:
          break
        image = faces[0]
        before = cv2.resize(frame.image, (size, size), interpolation=cv2.INTER_LINEAR)
        if image.shape != before.shape:  # the network that changes nothing
          image = before
        image = paste.to_grey(image) if paste.is_grey(frame.image) else image
        shown = np.hstack([before, image]) if args.side_by_side else image
        writer.write(shown, frame.time, frame.duration, frame.name)
        count += 1
        bar.update()
  print(f"{args.output}: {count} frames of {width}x{size}{args.clock.speed(count)}")


def list_faces(args: argparse.Namespace) -> None:
  """Prints what faces there are and which would be restored; with --strip, a picture of them."""
  faces, total, warning = _find_faces(args, align.SIZE)
  print(show.table(faces, args.frames[0]))
  if args.strip and faces:
    with (
      _reopen_input(args, warning, (0, _look_ahead(args))) as reader,
      contextlib.closing(video.prefetch(reader)) as frames,
      contextlib.closing(_with_progress(frames, "drawing faces", total)) as counted,
    ):
      show.save_sheet(args.strip, counted, faces)


def restore_frames(args: argparse.Namespace) -> None:
  """Restores the faces of whole frames."""
  _choose_settings(args)
  restore, size = _network(args)
  enlarger = background.open_enlarger(args)
  masks = None
  if args.parsenet:
    masks = functools.partial(parsenet.face_masks, parsenet.load(args.parsenet))
  args.clock.start()
  seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
  faces, total, warning = _find_faces(args, size)
  seconds["detect"] = time.monotonic() - args.clock.began
  strip = show.Strip(faces, total)
  without = shown = 0
  with contextlib.ExitStack() as stack:
    reader = stack.enter_context(_reopen_input(args, warning, (0, _look_ahead(args))))
    height, width = paste.enlarged_size(reader.info.height, reader.info.width, args.upscale)
    width *= 2 if args.side_by_side else 1
    writer = stack.enter_context(_writer(args, height, width, reader.info))
    crops = show.Crops(args.save_crops, faces, size, reader.info.frame_rate, stack)
    behind = stack.enter_context(_images_behind(args, enlarger, warning))
    frames = stack.enter_context(contextlib.closing(video.prefetch(reader)))
    options = {"size": size, "upscale": args.upscale, "background": behind, "masks": masks}
    options["input_colors"] = (args.colors or _usual_colors(args)) == "input"
    results = restore_faces(frames, faces, restore, seconds=seconds, **options)
    counted = stack.enter_context(contextlib.closing(_with_progress(results, "restoring", total)))
    for t, result in enumerate(counted):
      frame = result.frame
      writer.write(_output_image(args, faces, t, result), frame.time, frame.duration, frame.name)
      crops.write(t, result)
      strip.add(t, result)
      without += not result.restored
      shown += 1
      if shown == total:  # what follows was for the gains
        break
  if args.strip and strip.rows:
    strip.save(args.strip)
  seconds["restore"] = time.monotonic() - args.clock.began - sum(seconds.values())
  count = sum(len(face.frames) > 0 for face in faces)
  behind_took = f", enlarging the background {seconds['background']:.1f} s" if enlarger else ""
  print(
    f"{args.output}: {shown} frames of {width}x{height}, {count} face "
    f"track{'s' * (count != 1)}, {without} frames without a face{args.clock.speed(shown)} "
    f"(finding faces {seconds['detect']:.1f} s, aligning {seconds['align']:.1f} s, "
    f"restoring and writing {seconds['restore']:.1f} s{behind_took}, "
    f"pasting {seconds['paste']:.1f} s)"
  )


def _find_faces(args: argparse.Namespace, size: int) -> tuple[list[FaceTrack], int, str | None]:
  """The first pass. Returns the faces, the number of frames and the reader's warning.

  Also checks what the second pass needs (sizes, background), so that errors come early.
  """
  detect = rotated.with_rotations(detector.make_detector(args.detector, args.detector_weights))
  context = (tracks.SMOOTHED, tracks.SMOOTHED)
  with video_cli.open_input(args, context=context) as reader, contextlib.ExitStack() as stack:
    height, width = paste.enlarged_size(reader.info.height, reader.info.width, args.upscale)
    if not args.list_faces:
      video_cli.check_size(args.output, height, 2 * width if args.side_by_side else width)
    total = video_cli.frame_total(reader, *args.frames)
    read = video_cli.counted_for(args.output, reader)
    if args.background:
      behind = stack.enter_context(_open_background(args))
      read = video_cli.accompanied(read, behind, args.background)
    with (
      contextlib.closing(video.prefetch(read)) as frames,
      contextlib.closing(_with_progress(frames, "finding faces", total)) as counted,
    ):
      images = (frame.image for frame in counted)
      choice = Choice(
        args.faces, args.min_face, args.min_score, args.tracks, skip_sharp=args.skip_sharp
      )
      first, stop = args.frames
      options = {
        "robust": args.alignment == "lmeds",
        "measure": args.list_faces,
        "span": (reader.lead, None if stop is None else reader.lead + stop - first),
        "look_ahead": 0 if args.list_faces else _look_ahead(args),
      }
      try:
        faces, total = find_faces(images, detect, choice, size=size, **options)
      except ValueError as e:
        raise UserError(f"{args.input}: {e}; --list-faces shows them") from e
  if not any(len(face.frames) for face in faces):
    reason = "no face is to be restored; --list-faces tells why" if faces else "no face found"
    warnings.warn(f"{args.input}: {reason}; the frames pass as they are", stacklevel=1)
    if args.strip:
      warnings.warn(f"{args.strip}: is not written, there is nothing to show", stacklevel=1)
  return faces, total, reader.warning


def _output_image(
  args: argparse.Namespace, faces: list[FaceTrack], t: int, result: RestoredFrame
) -> np.ndarray:
  """The frame as it is written."""
  image = result.image
  if args.draw_boxes:
    image = show.draw_faces(image, faces, t, args.upscale)
  if args.side_by_side:
    image = np.hstack([paste.enlarge(result.frame.image, args.upscale), image])
  return image


def _choose_settings(args: argparse.Namespace) -> None:
  """The process's settings for the networks that will run; before JAX starts."""
  if not args.no_network or args.background_model != background.LANCZOS:
    runtime.enable_compilation_cache()
  if args.background_model != background.LANCZOS:
    runtime.return_freed_memory()
  elif not args.no_network:
    # Otherwise allocating 0.5 GB of temporaries anew for each frame takes a twelfth of its time.
    runtime.keep_freed_memory()


def _network(args: argparse.Namespace) -> tuple[StreamTracks, int]:
  """The function that restores streams of faces, or the identity; and the faces' side in pixels."""
  if args.no_network:
    return identity, align.SIZE
  model, params = streaming.load(args.checkpoint, args.dtype)
  if args.checkpoint is None:
    side = model.arch.image_size
    print(
      f"note: restoring with the demonstration weights, a small model for faces of {side}x{side} "
      "pixels that are blurred or compressed; it makes sharper faces worse, which --skip-sharp "
      "leaves alone; for better ones convert the released weights (README.md tells how) and name "
      "them with --checkpoint"
    )
  restorer = streaming.Restorer(
    model, params, args.mode, args.window, args.look_ahead, args.fidelity
  )
  return restorer.stream_tracks, model.arch.image_size


def _usual_colors(args: argparse.Namespace) -> str:
  """The small network changes colors far more than the released one, where faces are pasted."""
  return "input" if args.checkpoint is None and not args.no_network else "network"


def _writer(
  args: argparse.Namespace, height: int, width: int, info: video.VideoInfo
) -> contextlib.AbstractContextManager[video.Writer]:
  return video.open_writer(
    args.output, height, width, info.frame_rate, source=info, quality=args.quality
  )


@contextlib.contextmanager
def _reopen_input(
  args: argparse.Namespace, warning: str | None, context: tuple[int, int]
) -> Iterator[video.Reader]:
  """Opens the clip once more, without repeating `warning`, the one of the first pass."""
  with warnings.catch_warnings():
    if warning:
      warnings.filterwarnings("ignore", message=re.escape(warning))
    with video_cli.open_input(args, context=context, tell=False) as reader:
      yield reader


@contextlib.contextmanager
def _images_behind(
  args: argparse.Namespace, enlarger: Enlarger | None, warning: str | None
) -> Iterator[Iterator[np.ndarray] | None]:
  """What is shown around the faces, an image a frame; None: the frames, enlarged by Lanczos."""
  if args.background:
    with _open_background(args) as reader:
      yield (frame.image for frame in reader)
  elif enlarger:
    context = enlarger.context, enlarger.context
    with (
      _reopen_input(args, warning, context) as reader,
      contextlib.closing(video.prefetch(reader)) as frames,
    ):
      size = reader.info.height, reader.info.width
      yield background.enlarged_images(enlarger, frames, size, args.background_tile)
  else:
    yield None


def _open_background(args: argparse.Namespace) -> video.Reader:
  copy = args.copies[args.background]
  return video.open_reader(args.background, *args.frames, copy=copy, max_pixels=args.max_pixels)


def _look_ahead(args: argparse.Namespace) -> int:
  """Number of frames after the range of --frames that gains still see."""
  return args.look_ahead if args.mode == "stream" and not args.no_network else 0


def _with_progress(items: Iterable[T], what: str, total: int | None) -> Generator[T, None, None]:
  with progress.bar(what, total) as bar:
    for item in items:
      bar.update(not (isinstance(item, video.Frame) and item.is_context))
      yield item


def _parse() -> argparse.Namespace:
  parser = cli.Parser("keep_jax.restore", __doc__)
  video_cli.add_video_arguments(parser, output_needed=False)
  arguments.add_arguments(parser)
  args = parser.parse_args()
  arguments.check_arguments(parser, args)
  return args


if __name__ == "__main__":
  cli.run(main)
