"""Command: restores the faces of a video with KEEP.

  python -m keep_jax.restore INPUT OUTPUT --checkpoint DIR [--faces largest|all] [--upscale S]
    [--mode stream|as_released|bidirectional] [--aligned] [--draw-boxes] [--save-crops DIR]
    [--strip FILE.png] [--side-by-side]

INPUT is a video, a folder of frames or a picture; OUTPUT's name decides its form, see
`vsr_jax.video`. A first pass finds the faces and follows them, a second one restores each person
with a state of its own and puts the faces back. Frames without a face pass through.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import glob
import os
import re
import time
import warnings
from collections.abc import Iterator
from fractions import Fraction

import cv2
import numpy as np
import tqdm

from keep_jax import inference
from keep_jax.faces import Face, Restored, StreamTracks, find_faces, restore_faces, unchanged
from vsr_jax import command, errors, files, video
from vsr_jax.errors import UserError
from vsr_jax.faces import align, detections, detector, parsenet, paste

STRIP_FRAMES = 5  # rows of the picture strip
STRIP_HEIGHT = 256  # of a row, in pixels


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  _check_paths(args)
  with command.shown_warnings(), command.memory_errors(args.input, "try --dtype bfloat16"):
    (restore_aligned if args.aligned else restore_frames)(args)


def _check_paths(args: argparse.Namespace) -> None:
  """Raises `UserError`, before any work is done, for what cannot be written."""
  for path in filter(None, (args.output, args.strip)):
    for source in filter(None, (args.input, args.background)):
      video.check_output(path, source)
  if args.save_crops:
    files.check_folder(args.save_crops)
    for path in glob.glob(os.path.join(glob.escape(args.save_crops), "face_*")):
      video.check_output(path)  # of an earlier run, to be replaced
  outputs = filter(None, (args.output, args.strip, args.save_crops))
  places = [os.path.realpath(path) for path in outputs]
  if len(set(places)) < len(places):
    raise UserError(f"{args.output}: is to be written twice; name other places")


def restore_aligned(args: argparse.Namespace) -> None:
  """Restores a clip that is one aligned face."""
  restore, size = _network(args)
  with video.open_reader(args.input, *args.frames) as reader:
    info = reader.info
    if info.height != info.width:
      raise UserError(
        f"{args.input}: {info.width}x{info.height} is no aligned face, which is square; leave out "
        "--aligned to find the faces"
      )
    total = command.frame_total(reader, *args.frames)
    command.check_count(args.output, total)
    width = 2 * size if args.side_by_side else size
    taken: collections.deque[video.Frame] = collections.deque()

    def faces(frames):
      for frame in frames:
        taken.append(frame)
        yield {0: frame.image}

    began, count = time.monotonic(), 0
    with (
      _writer(args, size, width, info) as writer,
      contextlib.closing(video.prefetch(command.counted_for(args.output, reader))) as frames,
      _bar("restoring", total) as bar,
    ):
      for restored in restore(faces(frames)):
        frame, image = taken.popleft(), restored[0]
        before = cv2.resize(frame.image, (size, size), interpolation=cv2.INTER_LINEAR)
        if image.shape != before.shape:  # the network that changes nothing
          image = before
        image = paste.to_grey(image) if paste.is_grey(frame.image) else image
        writer.write(np.hstack([before, image]) if args.side_by_side else image, frame.time)
        count += 1
        bar.update()
  print(f"{args.output}: {count} frames of {width}x{size}{_speed(count, began)}")


def restore_frames(args: argparse.Namespace) -> None:
  """Restores the faces of whole frames."""
  restore, size = _network(args)
  masks = None
  if args.parsenet:
    masks = functools.partial(parsenet.face_masks, parsenet.load(args.parsenet))
  seconds, began = collections.Counter(), time.monotonic()
  faces, total, told = _find(args, size)
  seconds["detect"] = time.monotonic() - began
  strip = _Strip(faces)
  without = shown = 0
  with contextlib.ExitStack() as stack:
    reader = stack.enter_context(_unwarned(args, told))
    height, width = paste.enlarged_size(reader.info.height, reader.info.width, args.upscale)
    width *= 2 if args.side_by_side else 1
    writer = stack.enter_context(_writer(args, height, width, reader.info))
    crops = _Crops(args.save_crops, faces, size, reader.info.frame_rate, stack)
    background = None
    if args.background:
      behind = stack.enter_context(video.open_reader(args.background, *args.frames))
      background = (frame.image for frame in behind)
    frames = stack.enter_context(contextlib.closing(video.prefetch(reader)))
    options = {"size": size, "upscale": args.upscale, "background": background, "masks": masks}
    results = restore_faces(frames, faces, restore, seconds=seconds, **options)
    counted = stack.enter_context(contextlib.closing(_counted(results, "restoring", total)))
    for t, result in enumerate(counted):
      writer.write(_shown(args, faces, t, result), result.frame.time)
      crops.write(t, result)
      strip.add(t, result)
      without += not result.faces
      shown += 1
  if args.strip and strip.rows:
    strip.save(args.strip)
  seconds["restore"] = time.monotonic() - began - seconds.total()
  print(
    f"{args.output}: {shown} frames of {width}x{height}, {len(faces)} face "
    f"track{'s' * (len(faces) != 1)}, {without} frames without a face{_speed(shown, began)} "
    f"(finding faces {seconds['detect']:.1f} s, aligning {seconds['align']:.1f} s, "
    f"restoring and writing {seconds['restore']:.1f} s, pasting {seconds['paste']:.1f} s)"
  )


def _find(args: argparse.Namespace, size: int) -> tuple[list[Face], int, str | None]:
  """The first pass: the faces, the number of frames, and what the reader warned of.

  What stands in the way of the second pass is told before it.
  """
  detect = detector.make_detector(args.detector, args.detector_weights)
  with video.open_reader(args.input, *args.frames) as reader:
    height, width = paste.enlarged_size(reader.info.height, reader.info.width, args.upscale)
    command.check_size(args.output, height, 2 * width if args.side_by_side else width)
    if args.background:
      video.probe(args.background)
    total = command.frame_total(reader, *args.frames)
    command.check_count(args.output, total)
    with (
      contextlib.closing(video.prefetch(command.counted_for(args.output, reader))) as frames,
      contextlib.closing(_counted(frames, "finding faces", total)) as counted,
    ):
      images = (frame.image for frame in counted)
      robust = args.alignment == "lmeds"
      faces, total = find_faces(images, detect, args.faces, size=size, robust=robust)
  if not faces:
    warnings.warn(f"{args.input}: no face found; the frames pass as they are", stacklevel=1)
    if args.strip:
      warnings.warn(f"{args.strip}: is not written, there is nothing to show", stacklevel=1)
  return faces, total, reader.warning


def _shown(args: argparse.Namespace, faces: list[Face], t: int, result: Restored) -> np.ndarray:
  """The frame as it is written."""
  image = result.image
  if args.draw_boxes:
    image = draw_faces(image, faces, t, args.upscale)
  if args.side_by_side:
    image = np.hstack([paste.enlarge(result.frame.image, args.upscale), image])
  return image


def draw_faces(image: np.ndarray, faces: list[Face], frame: int, upscale: float = 1) -> np.ndarray:
  """Draws the boxes and landmarks of a frame's faces, with their numbers, over a copy of it."""
  here = [(i, face.track) for i, face in enumerate(faces) if face.at(frame) is not None]
  if not here:
    return image
  boxes, points = (
    upscale * np.stack([getattr(track, name)[frame - track.start] for _, track in here])
    for name in ("boxes", "landmarks")
  )
  found = detections.Detections(boxes, np.ones(len(here), np.float32), points)
  return detections.draw(image, found, [str(i) for i, _ in here])


class _Strip:
  """The picture strip: of a few frames with faces the input, the aligned and the restored face."""

  def __init__(self, faces: list[Face]):
    self.rows: list[np.ndarray] = []
    self._faces = faces
    frames = sorted({t for face in faces for t in range(face.track.start, face.track.stop)})
    picks = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).astype(int)
    self._frames = {frames[i] for i in picks}

  def add(self, t: int, result: Restored) -> None:
    if t not in self._frames or not result.faces:
      return
    i = max(result.faces, key=lambda i: -align.scale(self._faces[i].at(t)))  # the largest
    whole = draw_faces(result.frame.image, self._faces, t)
    self.rows.append(np.hstack([_at_height(x) for x in (whole, result.crops[i], result.faces[i])]))

  def save(self, path: str) -> None:
    picture = np.vstack(self.rows)
    with video.open_writer(path, *picture.shape[:2], Fraction(1)) as target:
      target.write(picture)


def _at_height(image: np.ndarray) -> np.ndarray:
  width = max(1, round(image.shape[1] * STRIP_HEIGHT / image.shape[0]))
  return cv2.resize(image, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)


class _Crops:
  """Writes the aligned and the restored faces: DIR/face_000_{aligned,restored}/00000000.png."""

  def __init__(
    self,
    folder: str | None,
    faces: list[Face],
    size: int,
    rate: Fraction,
    stack: contextlib.ExitStack,
  ):
    self._folder, self._faces, self._size, self._rate = folder, faces, size, rate
    self._stack = stack
    # By face: what closes its writers, and the writers of its crops and of what was restored.
    self._open: dict[int, tuple[contextlib.ExitStack, list[video.Writer]]] = {}
    if folder:
      os.makedirs(folder, exist_ok=True)

  def write(self, t: int, result: Restored) -> None:
    if not self._folder:
      return
    for i in result.faces:
      if i not in self._open:
        self._open[i] = self._start(i)
      closing, writers = self._open[i]
      for writer, images in zip(writers, (result.crops, result.faces), strict=True):
        writer.write(images[i])
      if t + 1 == self._faces[i].track.stop:
        closing.close()
        del self._open[i]

  def _start(self, face: int) -> tuple[contextlib.ExitStack, list[video.Writer]]:
    closing = self._stack.enter_context(contextlib.ExitStack())
    names = (f"face_{face:03d}_{kind}" for kind in ("aligned", "restored"))
    paths = (os.path.join(self._folder, name) for name in names)
    size = (self._size, self._size)
    opened = (video.open_writer(path, *size, self._rate) for path in paths)
    return closing, [closing.enter_context(writer) for writer in opened]


def _network(args: argparse.Namespace) -> tuple[StreamTracks, int]:
  """What restores streams of faces, and the size of the faces."""
  if args.identity:
    return unchanged, align.SIZE
  if args.checkpoint is None:
    raise UserError(
      "KEEP's weights do not ship, their licence is non-commercial; convert the released file with "
      "keep_jax.convert and name it with --checkpoint, or try the way without a network: --identity"
    )
  model, params = inference.load(args.checkpoint, args.dtype)
  restorer = inference.Restorer(
    model, params, args.mode, args.window, args.look_ahead, args.fidelity
  )
  return restorer.stream_tracks, model.arch.image_size


def _writer(args: argparse.Namespace, height: int, width: int, info: video.VideoInfo):
  return video.open_writer(
    args.output, height, width, info.frame_rate, source=info, quality=args.quality
  )


@contextlib.contextmanager
def _unwarned(args: argparse.Namespace, told: str | None) -> Iterator[video.Reader]:
  """The clip a second time, without the warning that the first pass gave already."""
  with warnings.catch_warnings():
    if told:
      warnings.filterwarnings("ignore", message=re.escape(told))
    with video.open_reader(args.input, *args.frames) as reader:
      yield reader


def _bar(what: str, total: int | None) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, unit="frame", desc=what)


def _counted(items, what: str, total: int | None) -> Iterator:
  with _bar(what, total) as bar:
    for item in items:
      yield item
      bar.update()


def _speed(count: int, began: float) -> str:
  seconds = time.monotonic() - began
  return f" in {seconds:.1f} s, {count / seconds:.2f} frames/s"


def _parse() -> argparse.Namespace:
  parser = errors.Parser(prog="keep_jax.restore", description=__doc__.partition("\n")[0])
  command.add_video_arguments(parser)
  add = parser.add_argument
  add("--checkpoint", metavar="DIR", help="what keep_jax.convert wrote")
  add("--identity", action="store_true", help="no network: try detection, alignment and pasting")
  add("--aligned", action="store_true", help="the input is one aligned face, the output too")
  add(
    "--mode",
    choices=inference.MODES,
    default="stream",
    help="state carried over the whole clip; or chunks of --window frames, as in the released code "
    "or (experimental) restored from both directions",
  )
  add(
    "--window",
    type=int,
    default=inference.WINDOW,
    metavar="N",
    help="frames a gain sees; default: %(default)s",
  )
  add(
    "--look-ahead",
    type=int,
    default=inference.LOOK_AHEAD,
    metavar="N",
    help="of them at most after it, beyond the clip's first window, whose gains see all of it; "
    "default: %(default)s",
  )
  add(
    "--fidelity",
    type=float,
    default=1.0,
    metavar="W",
    help="from 0, the codebook's face, to 1, the input's; default: 1",
  )
  add("--faces", choices=("largest", "all"), default="largest", help="which faces of a frame")
  add("--upscale", type=float, default=1.0, metavar="S", help="of the frames; default: 1")
  add("--background", metavar="VIDEO", help="what to paste into: the whole clip, enlarged")
  add("--detector", choices=detector.NAMES, default="mtcnn", help="default: mtcnn, which ships")
  add("--detector-weights", metavar="FILE", help="the checkpoint of another detector")
  add(
    "--alignment",
    choices=("lmeds", "least_squares"),
    default="lmeds",
    help="robust, as released; or by all five landmarks, which is steadier",
  )
  add("--parsenet", metavar="FILE", help="parsing_parsenet.pth: paste only what is face and hair")
  add("--draw-boxes", action="store_true", help="draw the faces found over the output")
  add("--save-crops", metavar="DIR", help="write the aligned and the restored faces as PNGs")
  add("--strip", metavar="FILE.png", help="a picture of a few frames: input, aligned, restored")
  add("--side-by-side", action="store_true", help="put the input at the left")
  args = parser.parse_args()
  _check_arguments(parser, args)
  return args


def _check_arguments(parser: errors.Parser, args: argparse.Namespace) -> None:
  """Raises `UserError` for what does not go together."""
  if args.aligned:
    for name in ("draw_boxes", "save_crops", "strip", "background", "parsenet"):
      if getattr(args, name):
        parser.error(f"--{name.replace('_', '-')} is for whole frames, not for --aligned")
    if args.upscale != 1:
      parser.error("--upscale is for whole frames, not for --aligned")
  if args.window < 2:
    parser.error(f"--window {args.window}: must be at least 2")
  if args.mode == "stream" and not 0 <= args.look_ahead < args.window - 1:
    parser.error(f"--look-ahead {args.look_ahead}: must be 0 to --window {args.window} - 2")
  if not 0 <= args.fidelity <= 1:
    parser.error(f"--fidelity {args.fidelity:g}: must be 0 to 1")


if __name__ == "__main__":
  errors.run(main)
