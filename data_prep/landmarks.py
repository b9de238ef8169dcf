"""Command: finds five landmarks of the face in each frame of clips, for data sets that lack them.

  python -m vsr_jax.data_prep.landmarks CLIP... --out DIR [--detector mtcnn] [--sigma 5]

Each CLIP is a folder of frames, a zip or a folder of such folders or zips, any other set of clips
with sharp frames (see `opening.py`), or a video. Writes
DIR/meta_info/CLIP.txt and DIR/global_meta_info.txt, the text files that VFHQ is released with
(`data_prep.meta_info`); an existing list keeps its lines. Of several faces the one that covers
most of the clip is followed. Landmarks are smoothed over time as in restoring, and interpolated in
gaps of a track; frames before, after and between tracks get the nearest frame's. A clip
whose file exists is skipped, so that an interrupted run can be continued.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from vsr_jax import cli, files, progress, video
from vsr_jax.data_prep import meta_info
from vsr_jax.data_prep.clip import SHARP, Clip
from vsr_jax.data_prep.folders import FileStream
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.faces import detector, tracks
from vsr_jax.faces.detections import Detections
from vsr_jax.files import write_whole
from vsr_jax.guards import is_name
from vsr_jax.locks import locked
from vsr_jax.threads import prefetch


class Source(NamedTuple):
  """What landmarks are found in: a clip of frames, or a video file.

  Attributes:
    name: unique; also the name of the text file.
    path: the path that errors name.
    clip: the frames; None for a video.
    names: the frames' file names; None where they have none.
  """

  name: str
  path: pathlib.Path
  clip: Clip | None = None
  names: tuple[str, ...] | None = None


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  for place in (args.out, args.out / meta_info.FOLDER):
    files.check_folder(place)
  found = find_clips(args.inputs)
  detect = detector.make_detector(args.detector, args.detector_weights)
  with locked(args.out):
    files.make_folder(args.out / meta_info.FOLDER)
    files.remove_left(args.out / meta_info.FOLDER)
    _write_all(args, found, detect)


def _write_all(
  args: argparse.Namespace, found: Sequence[Source], detect: detector.Detector
) -> None:
  """Writes the landmarks of clips and lists them."""
  lengths: dict[str, int] = {}
  skipped: dict[str, str] = {}
  for source in tqdm.tqdm(found, unit="clip", desc="landmarks"):
    file = args.out / meta_info.FOLDER / f"{source.name}.txt"
    try:
      if not file.is_file():
        write_whole(file, make_text(source, detect, args.sigma))
      lengths[source.name] = len(meta_info.read_clip(file).landmarks)
    except UserError as e:
      skipped[source.name] = str(e)
  for name, reason in skipped.items():
    print(f"skipped {name}: {reason}")
  if not lengths:
    raise UserError(f"{args.out}: no clip got landmarks; the reasons stand above")
  listing = args.out / meta_info.GLOBAL
  listed = meta_info.read_global(listing) if listing.is_file() else {}  # of other runs, or VFHQ's
  write_whole(listing, "".join(f"{name}/{n}\n" for name, n in (lengths | listed).items()))
  print(f"{args.out}: landmarks of {len(lengths)} clips; {len(skipped)} skipped")
  progress.tell_next(
    "vsr_jax.data_prep.build", "vfhq", "--manual-dir", args.out, "--data-dir", "data"
  )


def make_text(source: Source, detect: detector.Detector, sigma: float) -> str:
  """Finds the landmarks of a clip and returns the text of `meta_info/CLIP.txt`.

  Raises:
    UserError: the clip cannot be read, or no face was found in it.
  """
  points, fps = clip_landmarks(source, detect, sigma)
  if points is None:
    raise UserError(f"{source.path}: no face found; leave it out")
  names = source.names or [f"{i:08d}.png" for i in range(len(points))]
  return meta_info.format_clip(dict(zip(names, points, strict=True)), fps)


def find_clips(inputs: Sequence[pathlib.Path]) -> list[Source]:
  """Finds the clips that the arguments name.

  Raises:
    UserError: an input is missing or holds no clip, two clips have one name, or a frame's name does
      not begin with 0, as the text files need.
  """
  found: dict[str, Source] = {}
  for path in inputs:
    for source in _clips_of(path):
      if source.name in found:
        other = found[source.name].path
        raise UserError(f"{source.path}: named like {other}; clips need unique names")
      if not is_name(f"{source.name}.txt"):
        raise UserError(f"{source.path}: its name cannot be that of a text file; rename it")
      if not all(name.startswith("0") for name in source.names or ()):
        raise UserError(
          f"{source.path}: has a frame whose name does not begin with 0; name them 00000000.png "
          "and so on"
        )
      found[source.name] = source
  return list(found.values())


def _clips_of(path: pathlib.Path) -> Iterator[Source]:
  if not path.is_dir() and path.suffix != ".zip":
    yield Source(path.stem, path)  # whether it can be read shows later
    return
  for clip in open_clips(path, streams=(SHARP,)).clips:
    frames = clip.stream(SHARP)
    if isinstance(frames, FileStream):
      yield Source(clip.name, frames.source / frames.folder, clip, frames.names)
    else:
      yield Source(clip.name, path, clip)


def clip_landmarks(
  source: Source, detect: detector.Detector, sigma: float = 5.0
) -> tuple[np.ndarray | None, float]:
  """Finds the landmarks of the clip's main face.

  Args:
    source: the clip.
    detect: the detector.
    sigma: standard deviation, in frames, of the Gaussian that smooths landmarks over time.

  Returns:
    [t 5 2] float32, (x, y) in pixels of the frame, or None where no face was found; and the frames
    per second, 0 if unknown.
  """
  found: list[Detections] = []
  with open_frames(source) as (rate, images):
    for image in images:
      height, width = image.shape[:2]
      found.append(detect(image))
  followed = tracks.follow(found, sigma=sigma)
  if not followed:
    return None, rate
  return spread(tracks.choose_parts(followed, "largest", height, width), len(found)), rate


@contextlib.contextmanager
def open_frames(source: Source) -> Iterator[tuple[float, Iterator[np.ndarray]]]:
  """A context with the frames per second, 0 if unknown, and the frames, uint8 RGB [h w 3]."""
  if source.clip:
    images = source.clip.decode_each(SHARP, range(source.clip.length))
    yield source.clip.rate, prefetch(images)
    return
  with video.open_reader(str(source.path)) as reader:
    yield float(reader.info.frame_rate), (frame.image for frame in video.prefetch(reader))


def spread(parts: Sequence[tracks.Track], count: int) -> np.ndarray:
  """Landmarks of every frame, [count 5 2]; a frame outside all tracks gets the nearest frame's."""
  frames = np.concatenate([np.arange(part.start, part.stop) for part in parts])
  points = np.concatenate([part.landmarks for part in parts])
  nearest = np.abs(np.arange(count)[:, None] - frames).argmin(1)
  return points[nearest]


def _parse() -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.data_prep.landmarks", __doc__)
  add = parser.add_argument
  add(
    "inputs",
    nargs="+",
    type=pathlib.Path,
    metavar="CLIP",
    help="folders or zips of frames, or videos",
  )
  add("--out", type=pathlib.Path, metavar="DIR", required=True, help="gets meta_info/CLIP.txt")
  add_detector_arguments(parser)
  args = parser.parse_args()
  check_detector_arguments(parser, args)
  return args


def add_detector_arguments(parser: cli.Parser) -> None:
  """Adds the options for how landmarks are found."""
  add = parser.add_argument
  add("--detector", choices=detector.NAMES, default="mtcnn", help="default: mtcnn, which ships")
  add("--detector-weights", metavar="FILE", help="the checkpoint of another detector")
  add("--sigma", type=float, default=5.0, metavar="S", help="smoothing in frames; default: 5")


def check_detector_arguments(parser: cli.Parser, args: argparse.Namespace) -> None:
  """Raises `UserError` for values that `add_detector_arguments` cannot take."""
  if not 0 <= args.sigma <= 1000:
    parser.error(f"--sigma {args.sigma:g}: must be 0 to 1000 frames")


if __name__ == "__main__":
  cli.run(main)
