"""Command: shows a built data set: a sheet of frames of a few clips, and statistics.

  python -m vsr_jax.data_prep.show NAME [--data-dir data] [--output FILE.png] [--split SPLIT]
    [--clips N]

NAME is a set that data_prep.build made, such as reds/x4. The sheet has a row for each stream of
each clip shown, with frames from its beginning to its end, reductions enlarged without smoothing,
and landmarks drawn as dots. The clips are spread evenly over the split.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import pathlib
import statistics
from collections.abc import Sequence

import cv2
import numpy as np

from vsr_jax import cli, files
from vsr_jax.data_prep import built
from vsr_jax.data_prep.clip import Clip
from vsr_jax.data_prep.opening import OpenedSet, open_clips
from vsr_jax.drawing import write_text
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.images import encode_image

COLUMNS = 6
# In pixels: the width of a frame on the sheet, the space between frames, the height of the title
# of a clip.
WIDTH = 320
MARGIN = 4
TITLE = 22
COLOURS = ((255, 64, 64), (64, 255, 64), (64, 128, 255), (255, 255, 0), (255, 0, 255))


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("vsr_jax.data_prep.show", __doc__)
  parser.add_argument("name", metavar="NAME", help="such as reds/x4")
  parser.add_argument("--data-dir", default="data", type=pathlib.Path, metavar="DIR")
  parser.add_argument(
    "--output", type=pathlib.Path, metavar="FILE.png", help="default: reds_x4.png for reds/x4"
  )
  parser.add_argument("--split", help="the first unless given")
  parser.add_argument("--clips", type=int, default=3, metavar="N", help="shown on the sheet")
  args = parser.parse_args()
  if not 1 <= args.clips <= 100:
    parser.error(f"--clips {args.clips}: must be 1 to 100")
  if args.output is None:
    args.output = pathlib.Path(f"{args.name.replace('/', '_')}.png")
  if args.output.suffix.lower() != ".png":
    raise UserError(f"{args.output}: the sheet is a PNG; name a file that ends in .png")
  files.check_place(args.output)
  files.remove_left(args.output.parent, args.output.name)
  folder = built.find_folder(args.name, args.data_dir)
  names = built.splits(folder)
  for split in names:
    print_statistics(open_clips(folder, split=split, streams=None, warn=False), split)
  shown = args.split or names[0]
  found = open_clips(folder, split=shown, streams=None, warn=False).clips
  picked = sorted(set(np.linspace(0, len(found) - 1, args.clips).round().astype(int).tolist()))
  clips = [found[i] for i in picked]
  for clip in clips:
    print_clip(clip)
  write_whole(args.output, encode_image(sheet(clips)))
  print(f"{args.output}: {', '.join(clip.name for clip in clips)} of {shown}")


def print_statistics(opened: OpenedSet, split: str) -> None:
  """Prints statistics of a split from its index."""
  clips = opened.clips
  lengths = [clip.length for clip in clips]
  rates = sorted({clip.rate for clip in clips})
  print(f"{split}: {len(clips)} clips, {len(opened.left_out)} skipped, {opened.bytes / 1e9:.3f} GB")
  print(
    f"  frames: {sum(lengths)}; a clip {min(lengths)} to {max(lengths)}, "
    f"median {statistics.median(lengths):g}"
  )
  print("  frames a second: " + ", ".join(f"{rate:g}" if rate else "unknown" for rate in rates))
  for stream in clips[0].streams:
    sizes = {clip.sizes[stream] for clip in clips if stream in clip.sizes}
    text = ", ".join(f"{w}x{h}" for h, w in sorted(sizes)) or "none"
    print(f"  {stream}: {text}")


def print_clip(clip: Clip) -> None:
  """Prints statistics of a clip's frames: size, mean and standard deviation of grey levels."""
  print(f"{clip.name}: {clip.length} frames, {len(clip.landmarks)} with landmarks")
  for stream, frames in clip.streams.items():
    if len(frames):
      data = [frames[i] for i in _columns(clip)]
      images = clip.decode_all(stream, _columns(clip))
      print(
        f"  {stream}: {statistics.fmean(map(len, data)) / 1e3:.1f} kB a frame, "
        f"grey level {images.mean():.1f} +- {images.std():.1f}"
      )


def sheet(clips: Sequence[Clip]) -> np.ndarray:
  """Draws the contact sheet of clips: uint8 RGB [h w 3]."""
  return np.concatenate([_rows(clip) for clip in clips])


def _columns(clip: Clip) -> list[int]:
  return np.linspace(0, clip.length - 1, COLUMNS).round().astype(int).tolist()


def _rows(clip: Clip) -> np.ndarray:
  title = np.zeros((TITLE, COLUMNS * (WIDTH + MARGIN), 3), np.uint8)
  rate = f"{clip.rate:g} frames a second" if clip.rate else "rate unknown"
  write_text(title, f"{clip.name}: {clip.length} frames, {rate}")
  rows, columns = [title], _columns(clip)
  images = {
    stream: clip.decode_all(stream, columns)
    for stream, frames in clip.streams.items()
    if len(frames)
  }
  if not images:
    raise UserError(f"clip {clip.name} has no frames; build the data set again")
  full = max(image[0].shape[1] for image in images.values())  # its pixels are those of landmarks
  for stream, row in images.items():
    points = [clip.landmarks[i] * (WIDTH / full) if len(clip.landmarks) else () for i in columns]
    rows.append(np.concatenate([_tile(*tile) for tile in zip(row, points, strict=True)], axis=1))
    write_text(rows[-1], stream)
  return np.concatenate(rows)


def _tile(image: np.ndarray, points: Sequence[np.ndarray]) -> np.ndarray:
  """Scales a frame to `WIDTH`, draws landmarks, and adds a margin to the right and below."""
  height, width, _ = image.shape
  size = (WIDTH, round(height * WIDTH / width))
  smooth = cv2.INTER_AREA if width > WIDTH else cv2.INTER_NEAREST
  image = cv2.resize(image, size, interpolation=smooth)
  for (x, y), colour in zip(points, COLOURS, strict=False):
    cv2.circle(image, (round(float(x)), round(float(y))), 3, colour, -1, cv2.LINE_AA)
  return cv2.copyMakeBorder(image, 0, MARGIN, 0, MARGIN, cv2.BORDER_CONSTANT)


if __name__ == "__main__":
  cli.run(main)
