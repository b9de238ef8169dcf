"""Command: makes clips of talking heads from aligned portraits, by simulated motion.

  python -m vsr_jax.data_prep.animate STILLS OUT [--split train] [--frames 24] [--size 128]
    [--amplitude 1] [--seed 0] [--count N] [--takes 1] [--names FILE] [--strip FILE.png]

STILLS is a folder of square portraits aligned to FFHQ's landmarks with an index.csv, whose columns
`file` and `split` say which portrait belongs to which split; a person should be in one split only.
OUT becomes a clip set of aligned faces, sharp frames and landmarks, that `open_clips` opens.

The motion is made up (`head_motion.py`): heads turn, nod and shift, jaws, mouths, brows and lids
move, the camera is not still and the light changes. It is a function of the seed and the file's
name alone. Every frame is resampled once from the portrait; what lies beyond its border is
mirrored. A clip that exists with the same settings is kept.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import csv
import math
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from vsr_jax import cli, files, guards, images, progress
from vsr_jax.data_prep import aligned_clips, head_motion, show
from vsr_jax.data_prep.aligned_clips import Origin
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.head_motion import Motion
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.faces import detector
from vsr_jax.files import write_whole

INDEX = "index.csv"
RATE = 25.0  # frames per second
SHOWN = 6  # clips on the strip
_LARGEST_INDEX = 16 << 20  # bytes
_SIDES = (64, 2048)  # of a still, in pixels
# How far landmarks that are found may lie from the template on average, as a part of the side:
# those of aligned portraits stay below 0.03.
_FARTHEST = 0.06


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  if args.strip:
    files.check_place(args.strip)
  settings = {"frames": args.frames, "size": args.size, "amplitude": args.amplitude}
  settings |= {"seed": args.seed, "rate": RATE}
  stills = read_index(args.stills, args.split)
  if args.names:
    stills = named(stills, args.names)
  stills = spread(stills, args.count)
  make_set(stills, args.out, settings, takes=args.takes)
  if args.strip:
    clips = open_clips(args.out, streams=(SHARP,)).clips
    write_whole(args.strip, images.encode_image(show.sheet(spread(clips, SHOWN))))
    print(f"{args.strip}: frames of {min(SHOWN, len(clips))} clips, with landmarks")


def _parse() -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.data_prep.animate", __doc__)
  add = parser.add_argument
  add("stills", metavar="STILLS", type=pathlib.Path, help="portraits and index.csv")
  add("out", metavar="OUT", type=pathlib.Path, help="the clip set to write or add to")
  add("--split", default="train", help="default: train")
  add_size_arguments(parser)
  add("--amplitude", type=float, default=1.0, metavar="A", help="of the motion, 0 to 2; default: 1")
  add("--count", type=int, metavar="N", help="use N portraits, spread evenly; default: all")
  add("--takes", type=int, default=1, metavar="N", help="clips of each portrait; default: 1")
  add("--names", type=pathlib.Path, metavar="FILE", help="use the portraits that this text lists")
  add("--strip", type=pathlib.Path, metavar="FILE.png", help="a picture of some clips")
  args = parser.parse_args()
  check_size_arguments(parser, args)
  for name in ("takes", "count"):
    _check_range(parser, args, name, 1, 10_000)
  if not 0 <= args.amplitude <= 2:
    parser.error(f"--amplitude {args.amplitude:g}: must be 0 to 2")
  if args.strip and args.strip.suffix.lower() != ".png":
    parser.error(f"{args.strip}: the strip is a .png")
  return args


def add_size_arguments(parser: cli.Parser) -> None:
  """Adds the options for the number and size of frames, and the seed."""
  add = parser.add_argument
  add("--frames", type=int, default=24, metavar="N", help="of a clip, 25 a second; default: 24")
  add("--size", type=int, default=128, metavar="N", help="side of a frame; default: 128")
  add("--seed", type=int, default=0, metavar="N")


def check_size_arguments(parser: cli.Parser, args: argparse.Namespace) -> None:
  """Raises `UserError` for values that `add_size_arguments` cannot take."""
  _check_range(parser, args, "frames", 1, 10_000)
  _check_range(parser, args, "size", 16, 1024)
  _check_range(parser, args, "seed", 0, 2**32 - 1)


def _check_range(
  parser: cli.Parser, args: argparse.Namespace, name: str, low: int, high: int
) -> None:
  value = getattr(args, name)
  if value is not None and not low <= value <= high:
    parser.error(f"--{name} {value}: must be {low} to {high}")


def read_index(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Reads which portraits of a folder belong to a split.

  Args:
    folder: holds the portraits and index.csv.
    split: its name, such as "train".

  Returns:
    Their paths, in the index's order.

  Raises:
    UserError: there is no index, it is damaged, or has no such split.
  """
  path = folder / INDEX
  if not path.is_file():
    raise UserError(f"{path}: missing; it says, in columns file and split, what the portraits are")
  reader = csv.DictReader(guards.read_text(path, _LARGEST_INDEX).splitlines(), strict=True)
  found: dict[str, str] = {}
  try:
    if missing := {"file", "split"} - set(reader.fieldnames or ()):
      raise UserError(f"{path}: has no column {sorted(missing)[0]}; add it")
    for row in reader:
      name, its_split = row["file"], row["split"]
      if not name or not its_split or not guards.is_name(name):
        raise UserError(f"{path}:{reader.line_num}: not a file's name and a split; mend the line")
      if name in found:
        raise UserError(f"{path}:{reader.line_num}: {name} comes twice; remove one of the lines")
      found[name] = its_split
  except csv.Error as e:
    raise UserError(f"{path}:{reader.line_num}: not CSV ({e}); mend the line") from e
  stills = [folder / name for name, its_split in found.items() if its_split == split]
  if not stills:
    splits = ", ".join(sorted(set(found.values()))) or "none"
    raise UserError(f"{path}: has no split {split}, only {splits}")
  return stills


def named(stills: Sequence[pathlib.Path], list_file: pathlib.Path) -> list[pathlib.Path]:
  """Those portraits that a text file lists, one name a line, without or with suffix.

  Raises:
    UserError: the file cannot be read, is empty, or lists another name.
  """
  if not list_file.is_file():
    raise UserError(f"{list_file}: no such list of names")
  wanted = guards.read_text(list_file, _LARGEST_INDEX).split()
  by_name = {name: still for still in stills for name in (still.name, still.stem)}
  if strange := [name for name in wanted if name not in by_name]:
    raise UserError(f"{list_file}: {strange[0]} is no portrait of this split; remove the line")
  if not wanted:
    raise UserError(f"{list_file}: lists no name")
  return [by_name[name] for name in dict.fromkeys(wanted)]


def spread(items: Sequence, count: int | None) -> list:
  """At most `count` of some items, spread evenly; all for None."""
  if count is None or count >= len(items):
    return list(items)
  return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def make_set(
  stills: Sequence[pathlib.Path], out: pathlib.Path, settings: dict[str, Any], *, takes: int = 1
) -> None:
  """Makes the clips of portraits that a set does not have yet.

  Args:
    stills: the portraits; a clip is named like its file, with its number if there are several.
    out: the clip set.
    settings: frames, size, amplitude, seed and rate, as the command's arguments.
    takes: number of clips of each portrait.

  Raises:
    UserError: a portrait cannot be used, or see `aligned_clips`.
  """
  origins = []
  for still in stills:
    for take in range(takes):
      name = f"{still.stem}_take{take}" if takes > 1 else still.stem
      origins.append(Origin(name, str(still.resolve()), {**settings, "take": take}))
  detect = detector.make_detector()
  with aligned_clips.writing(out) as entries:
    todo = aligned_clips.missing(out, entries, origins)
    with progress.bar("animating", len(todo), unit="clip") as bar:
      for origin in todo:
        image = read_still(pathlib.Path(origin.path))
        motion = draw_motion(image, detect, origin)
        frames = render(image, motion, settings["size"])
        points = head_motion.moved_landmarks(motion) * settings["size"] - 0.5
        aligned_clips.add(out, entries, origin, frames, points, settings["rate"])
        bar.update()
    count = sum(entry["frames"] for entry in entries)
  print(f"{out}: {len(entries)} clips, {count} frames; {len(origins) - len(todo)} were there")


def read_still(path: pathlib.Path) -> np.ndarray:
  """Reads an aligned portrait, uint8 RGB [n n 3].

  Raises:
    UserError: the file is missing, damaged, not square, or of a size that is not supported.
  """
  if not path.is_file():
    raise UserError(f"{path}: missing, though the index lists it; get it again")
  image = images.read_image(path)
  height, width = image.shape[:2]
  if height != width or not _SIDES[0] <= height <= _SIDES[1]:
    raise UserError(
      f"{path}: {width}x{height} is no aligned portrait, which is square, of {_SIDES[0]} to "
      f"{_SIDES[1]} pixels"
    )
  return image


def draw_motion(still: np.ndarray, detect: detector.Detector, origin: Origin) -> Motion:
  """Draws the motion of a clip from the seed, the still's file name and the take."""
  settings = origin.settings
  key = [settings["seed"], zlib.crc32(pathlib.Path(origin.path).name.encode()), settings["take"]]
  return head_motion.draw(
    np.random.default_rng(key),
    find_landmarks(still, detect),
    settings["frames"],
    rate=settings["rate"],
    amplitude=settings["amplitude"],
  )


def find_landmarks(still: np.ndarray, detect: detector.Detector) -> np.ndarray:
  """Finds the landmarks of an aligned portrait; those of the template where none are like them.

  Args:
    still: uint8 RGB [n n 3].
    detect: finds faces.

  Returns:
    float64 [5 2], as parts of the side.
  """
  expected = head_motion.template()
  found = (detect(still).landmarks.astype(np.float64) + 0.5) / len(still)
  away = np.linalg.norm(found - expected, axis=-1).mean(1)
  if not len(away) or away.min() > _FARTHEST:
    return expected
  return found[away.argmin()]


def render(still: np.ndarray, motion: Motion, size: int) -> Iterator[np.ndarray]:
  """Renders the frames of a clip; see `render_part`.

  Args:
    still: uint8 RGB [n n 3].
    motion: of t frames.
    size: side of a frame, in pixels.

  Yields:
    t frames, uint8 RGB [size size 3].
  """
  return render_part(still, (0, 0, len(still)), motion, (size, size), (0, 0, size))


def render_part(
  picture: np.ndarray,
  still: tuple[int, int, int],
  motion: Motion,
  shape: tuple[int, int],
  place: tuple[int, int, int],
) -> Iterator[np.ndarray]:
  """Renders the frames of a clip, each from the picture itself.

  Points are sampled at least as densely as the picture's pixels, by cubic interpolation (positions
  are rounded to 1/32 of its pixel), and averaged over each pixel of the frame.

  Args:
    picture: uint8 RGB [h w 3], which holds the still; beyond its border it is mirrored.
    still: left, top and side of the aligned still in the picture, in pixels.
    motion: of t frames.
    shape: height and width of a frame, in pixels.
    place: left, top and side of the aligned still in a frame without motion, in pixels.

  Yields:
    t frames, uint8 RGB [*shape 3].
  """
  factor = math.ceil(still[2] / place[2])
  height, width = shape
  lines = [
    ((np.arange(factor * length) + 0.5) / factor - start) / place[2]
    for length, start in zip((width, height), place, strict=False)
  ]
  points = np.stack(np.meshgrid(*lines), -1).astype(np.float32)
  coarse = points.reshape(height, factor, width, factor, 2).mean((1, 3))
  corner = np.array(still[:2], np.float32) - 0.5
  colours = picture.astype(np.float32)
  for t in range(len(motion)):
    places = still[2] * head_motion.source_points(motion, t, points) + corner
    image = cv2.remap(colours, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    image *= head_motion.light(motion, t, coarse)
    yield np.clip(np.rint(image), 0, 255).astype(np.uint8)


if __name__ == "__main__":
  cli.run(main)
