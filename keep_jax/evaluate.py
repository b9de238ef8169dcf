"""Command: scores restored clips of faces against their truth, with bicubic as the row to beat.

  python -m keep_jax.evaluate DATA [--checkpoint [NAME=]DIR ...] [--degradation mild] [--out DIR]
  python -m keep_jax.evaluate DATA --outputs [NAME=]DIR ...     (what other methods have restored)
  python -m keep_jax.evaluate DATA --save-inputs DIR            (what they are to restore)

DATA is VFHQ, built or as its test is released, a folder of clips of aligned faces, or any other set
of clips with a face. Aligned faces are scored, as the released code does, or with --whole-frames
whole frames. Every method gets the same low-quality frames. docs/metrics.md defines the columns.
The table is printed and written to metrics.json and metrics.md, anew after every clip; strips/ and
plots/ get a picture a clip.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import collections
import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from keep_jax import arguments, evaluation_networks, streaming
from keep_jax.evaluation_networks import Measuring
from keep_jax.evaluation_pictures import save_curves, take_maps, watched
from keep_jax.face_scores import TRUTH, FaceClipScore, Networks
from keep_jax.faces import find_faces, restore_faces
from vsr_jax import cli, evaluation, files, given_outputs, paths, plotting, runtime, video
from vsr_jax.data_prep import landmarks
from vsr_jax.data_prep.clip import LOW_QUALITY, SHARP, Clip
from vsr_jax.data_prep.face_degrade import PRESETS, Degradation
from vsr_jax.data_prep.face_streams import FaceClip, aligned_size, face_clip
from vsr_jax.data_prep.folders import FileStream
from vsr_jax.data_prep.opening import choose_clips
from vsr_jax.errors import UserError
from vsr_jax.evaluation import BICUBIC, Advance, Job
from vsr_jax.faces import detector, rotated
from vsr_jax.faces.align import SIZE
from vsr_jax.faces.detections import Detector
from vsr_jax.frame_strip import FrameStrip
from vsr_jax.frames import Frame
from vsr_jax.images import resized
from vsr_jax.metrics import Score
from vsr_jax.ops.resize import resize_bicubic
from vsr_jax.score_table import ScoreTable
from vsr_jax.threads import prefetch

SMALLEST = 32  # pixels of a frame's side: LPIPS's networks would have no features left
SAVED_RATE = Fraction(25)  # nominal: image files have none

Images = Generator[np.ndarray, None, None]  # uint8 RGB [h w 3], one a frame
Method = Callable[[FaceClip], Images]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What holds for all clips.

  Attributes:
    low_quality: the stream with the low-quality frames, or how they are made.
    size: side of the aligned faces, in pixels; None for whole frames.
    methods: what restores a clip, by name.
    networks: what looks at the frames.
    detect: finds faces in whole frames; None for aligned faces.
    out: the folder of the results.
    save_inputs: a folder for the low-quality frames, or None.
    plots: whether plots are drawn.
    seen: by method, the gain and the flow of every frame that it has restored, the oldest first,
      until they are taken away.
  """

  low_quality: str | Degradation
  size: int | None
  methods: Mapping[str, Method]
  networks: Networks
  detect: Detector | None
  out: pathlib.Path
  save_inputs: pathlib.Path | None
  plots: bool
  seen: Mapping[str, collections.deque]


def main(given: Sequence[str] | None = None) -> None:
  """Runs the command with the given arguments or the process's; see the docstring and `--help`."""
  args = _parse(given)
  evaluation.check_names([BICUBIC, TRUTH, *(name for name, _ in (*args.checkpoint, *args.outputs))])
  clips, skipped = choose_clips(
    args.data, split=args.split, streams=None, names=args.clips, frames=args.frames
  )
  low_quality = choose_degradation(args.degradation, clips)
  outputs = {name: _given(folder, clips) for name, folder in args.outputs}  # before any work
  runtime.enable_compilation_cache()
  runtime.return_freed_memory()
  measuring = evaluation_networks.load(args)
  detect = None
  if args.whole_frames:
    detect = rotated.with_rotations(detector.make_detector(args.detector, args.detector_weights))
  restorers = _load_restorers(args)
  size = None if args.whole_frames else choose_size(args.size, clips, restorers)
  setting = Setting(
    PRESETS.get(low_quality, low_quality),
    size,
    {name: _restoring(args, name, restorers[name], detect) for name in restorers} | outputs,
    measuring.networks,
    detect,
    args.out,
    args.save_inputs,
    plotting.is_installed(),
    {} if args.whole_frames else {name: watched(restorer) for name, restorer in restorers.items()},
  )
  _prepare_folders(args, clips, list(restorers))
  if measuring.note:
    print(measuring.note, file=sys.stderr)
  if not setting.plots:
    print("no plots are drawn, matplotlib is missing: pip install -e '.[plot]'", file=sys.stderr)
  table = make_table(args, setting, measuring, low_quality, restorers)
  table.skipped |= skipped
  jobs = [Job(c.name, c.length, functools.partial(score_clip, setting, c)) for c in clips]
  with cli.memory_errors(str(args.data), "try --dtype bfloat16"):
    evaluation.evaluate(jobs, table, args.out)
  evaluation.tell(table, args.out, args.data)


def score_clip(setting: Setting, clip: Clip, advance: Advance) -> dict[str, Score]:
  """Scores all methods on a clip, in constant memory, and draws its pictures.

  Args:
    setting: the setting.
    clip: the clip.
    advance: told 1 after every frame.

  Returns:
    The scores by method, and the truth's own.

  Raises:
    UserError: a frame cannot be read, has another size than the truth, or there is no face.
  """
  source = face_clip(clip, setting.low_quality, setting.size)
  if min(source.shape) < SMALLEST:
    raise UserError(
      f"frames of {source.shape[1]}x{source.shape[0]}: metrics need {SMALLEST} pixels"
    )
  points = source.landmarks
  if points is None:
    points = _find_landmarks(setting, clip)
  names = [BICUBIC, *setting.methods]
  score, strip = FaceClipScore(setting.networks, names), FrameStrip(range(clip.length))
  for seen in setting.seen.values():
    seen.clear()  # of a clip that could not be restored to its end
  with contextlib.ExitStack() as stack:
    opened = [stack.enter_context(contextlib.closing(f(source))) for f in setting.methods.values()]
    low_frames = _saving(setting.save_inputs, clip, source.low())
    both = prefetch(zip(source.good(), low_frames, strict=True))
    frames = stack.enter_context(contextlib.closing(both))
    for number, ((truth, low), *images) in enumerate(zip(frames, *opened, strict=True)):
      outputs = dict(zip(names, [resize_bicubic(low, size=source.shape), *images], strict=True))
      for image in images:
        label, remedy = clip.label(SHARP, number), "restore the inputs of --save-inputs"
        evaluation.check_size(number, image.shape, truth.shape, label, remedy)
      score.add(truth, outputs, points[number])
      strip.add(
        number, low, outputs, truth, score.latest, take_maps(setting.seen, strip.shows(number))
      )
      advance(1)
  scores = score.scores
  strip.save(setting.out / "strips", clip.name)
  if setting.plots and score.faces:
    curves = {name: score.values[name] for name in names}
    save_curves(setting.out / "plots" / f"{clip.name}.png", clip.name, score.faces, curves)
  return scores


def _find_landmarks(setting: Setting, clip: Clip) -> np.ndarray:
  """The landmarks of a clip's main face, [t 5 2] in pixels of its frames."""
  assert setting.detect is not None  # whole frames
  source = landmarks.Source(clip.name, pathlib.Path(clip.name), clip)
  points, _ = landmarks.clip_landmarks(source, setting.detect)
  if points is None:
    raise UserError("no face found in the truth; leave the clip out")
  return points


def _saving(folder: pathlib.Path | None, clip: Clip, frames: Iterator[np.ndarray]) -> Images:
  """The same frames; they are written to FOLDER/CLIP/*.png, if a folder is given."""
  if folder is None:
    yield from frames
    return
  writer = None
  with contextlib.ExitStack() as stack:
    for image in frames:
      if writer is None:
        height, width, _ = image.shape
        path = _clip_folder(folder, clip)
        writer = stack.enter_context(video.open_writer(path, height, width, SAVED_RATE))
      writer.write(image)
      yield image


def _restoring(
  args: argparse.Namespace, name: str, restorer: streaming.Restorer, detect: Detector | None
) -> Method:
  """How a checkpoint restores a clip: aligned faces as they are, whole frames as the command."""
  side = restorer.model.arch.image_size
  folder = None if args.save_frames is None else args.save_frames / name

  def aligned(source: FaceClip) -> Images:
    for image in restorer.stream(source.low()):
      yield resized(image, *source.shape)

  def whole(source: FaceClip) -> Images:
    assert detect is not None
    faces, _ = find_faces(source.low(), detect, size=side)
    frames = (Frame(image, t / SAVED_RATE, t) for t, image in enumerate(source.low()))
    restore = restorer.stream_tracks
    for result in restore_faces(frames, faces, restore, size=side, upscale=source.scale):
      yield result.image

  method = whole if args.whole_frames else aligned
  return lambda source: _saving(folder, source.clip, method(source))


def _given(folder: pathlib.Path, clips: Sequence[Clip]) -> Method:
  """What another method has restored, found for all clips before anything is scored."""
  found = {}
  for clip in clips:
    frames = clip.stream(SHARP)
    names = frames.names if isinstance(frames, FileStream) else None
    span = range(clip.length)
    found[clip.name] = given_outputs.find(folder, clip.name, span, len(frames), names)
  return lambda source: (image for _, image in found[source.clip.name].read())


def choose_degradation(asked: str | None, clips: Sequence[Clip]) -> str:
  """A preset's name, or the stream of low-quality frames, which is taken where the set has it.

  Raises:
    UserError: the stream was asked for, and a clip lacks it.
  """
  if asked is None:
    own = all(len(clip.streams.get(LOW_QUALITY, ())) for clip in clips)
    return LOW_QUALITY if own else "mild"
  if asked == LOW_QUALITY:
    for clip in clips:
      clip.stream(LOW_QUALITY)
  return asked


def choose_size(
  asked: int | None, clips: Sequence[Clip], restorers: Mapping[str, streaming.Restorer]
) -> int:
  """The side of the aligned faces: that of clips that are aligned already, or the models'.

  Raises:
    UserError: the clips do not have one side.
  """
  sides = {aligned_size(clip): clip.name for clip in clips}
  if len(sides) > 1:
    told = ", ".join(f"{name} {side or 'by landmarks'}" for side, name in sides.items())
    raise UserError(f"aligned faces of several sizes ({told}); score them apart with --clips")
  (side,) = sides
  if side is not None and asked not in (None, side):
    raise UserError(f"--size {asked}: the faces are aligned at {side} already; leave --size out")
  models = [restorer.model.arch.image_size for restorer in restorers.values()]
  return side or asked or max(models, default=SIZE)


def make_table(
  args: argparse.Namespace,
  setting: Setting,
  measuring: Measuring,
  low_quality: str,
  restorers: Mapping[str, streaming.Restorer],
) -> ScoreTable:
  """An empty table that says what is compared, and how."""
  crop = "whole frames" if setting.size is None else f"aligned faces, {setting.size}x{setting.size}"
  notes = [f"Scored: {crop}. Input: {low_quality}, the same for every method."]
  mode = None
  if restorers:
    chunks = f"chunks of {args.window} frames" if args.mode != "stream" else "state carried on"
    mode = args.mode
    sides = {name: r.model.arch.image_size for name, r in restorers.items()}
    told = [f"{name} ({side} pixels)" for name, side in sides.items()]
    notes.append(f"Restored here in mode {mode} ({chunks}): {', '.join(told)}.")
  entries = {
    "data": str(args.data),
    "split": args.split,
    "checkpoints": {name: path and str(path) for name, path in args.checkpoint},
    "outputs": {name: str(path) for name, path in args.outputs},
    "scored": "aligned" if setting.size else "whole frames",
    "size": setting.size,
    "degradation": low_quality,
    "mode": mode,
    "window": args.window if mode else None,
    "look_ahead": args.look_ahead if mode == "stream" else None,
    "fidelity": args.fidelity if mode else None,
    "dtype": args.dtype if mode else None,
    "networks": measuring.names,
  }
  methods = [BICUBIC, *setting.methods]
  if "flow" in measuring.names:
    methods.append(TRUTH)
    notes.append(f"Row {TRUTH}: its own warping error; that of a blurred clip can be smaller.")
  notes += evaluation_networks.describe(measuring)
  return ScoreTable(methods, measuring.metrics, entries, notes, mean_of_clips=True)


def _load_restorers(args: argparse.Namespace) -> dict[str, streaming.Restorer]:
  restorers = {}
  for name, path in args.checkpoint:
    model, params = streaming.load(path, args.dtype)
    options = args.mode, args.window, args.look_ahead, args.fidelity
    restorers[name] = streaming.Restorer(model, params, *options)
  return restorers


def _prepare_folders(
  args: argparse.Namespace, clips: Sequence[Clip], restored: Sequence[str]
) -> None:
  """Makes the folders of the results; raises `UserError` where frames cannot be saved."""
  saved = [args.save_inputs] if args.save_inputs else []
  saved += [args.save_frames / name for name in restored] if args.save_frames else []
  for folder in saved:
    if folder.resolve().is_relative_to(args.data.resolve()):
      raise UserError(f"{folder}: lies within the data; save the frames elsewhere")
    files.make_folder(folder)
    for clip in clips:
      video.check_output(_clip_folder(folder, clip))
  for folder in (args.out, args.out / "strips", args.out / "plots"):
    files.make_folder(folder)
    files.remove_left(folder)


def _clip_folder(folder: pathlib.Path, clip: Clip) -> str:
  return f"{folder / clip.name}/"  # the slash: a folder even if the name has a dot


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
  parser = cli.Parser("keep_jax.evaluate", __doc__)
  add = parser.add_argument
  add("data", metavar="DATA", type=paths.place, help="VFHQ, or another set of clips of faces")
  add(
    "--checkpoint",
    action="append",
    default=[],
    type=evaluation.named_path,
    metavar="[NAME=]DIR",
    help="a row for what keep_jax.restore takes: a run, or what keep_jax.convert wrote; "
    "repeatable. Default: the demonstration weights, without --outputs and --save-inputs",
  )
  evaluation.add_arguments(parser)
  add(
    "--degradation",
    choices=(*PRESETS, LOW_QUALITY),
    help=f"how the input is made, or {LOW_QUALITY}: the set's own, the default where it has such "
    "frames; otherwise mild",
  )
  add("--whole-frames", action="store_true", help="score whole frames, not aligned faces")
  add("--size", type=int, metavar="N", help="side of the aligned faces; default: the model's")
  evaluation_networks.add_arguments(parser)
  arguments.add_network_arguments(parser, mode="as_released")
  add("--dtype", choices=("float32", "bfloat16"), default="float32")
  add("--detector", choices=detector.NAMES, default="mtcnn", help="for whole frames")
  add("--detector-weights", metavar="FILE", help="the checkpoint of another detector")
  add("--save-inputs", type=paths.local, metavar="DIR", help="keep the input: DIR/CLIP/*.png")
  add(
    "--save-frames", type=paths.local, metavar="DIR", help="keep what is restored: DIR/NAME/CLIP/"
  )
  args = parser.parse_args(given)
  arguments.check_network_arguments(parser, args)
  if not (args.checkpoint or args.outputs or args.save_inputs):
    args.checkpoint = [("KEEP", None)]  # the demonstration weights
  if args.size is not None and (args.whole_frames or not SMALLEST <= args.size <= 1024):
    parser.error(f"--size {args.size}: must be {SMALLEST} to 1024, and is for aligned faces")
  return args


if __name__ == "__main__":
  cli.run(main)
