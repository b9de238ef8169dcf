"""Command: shows a clip before and after it was restored: one beside the other, and pictures.

  python -m vsr_jax.compare BEFORE AFTER OUT [--frames A:B] [--deinterlace]

BEFORE and AFTER are clips or pictures; AFTER was made of frames A..B-1 of BEFORE. OUT, a folder,
gets side_by_side.mp4 (BEFORE at the left, with AFTER's sound) if they are clips; and before_0.jpg
and after_0.jpg of the first frame, and so on to those of the last one, at most nine pairs. BEFORE
is enlarged bicubically to AFTER's size.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import itertools
import pathlib

import numpy as np

from vsr_jax import cli, files, images, progress, video, video_cli
from vsr_jax.errors import UserError

PAIRS = 9  # pairs of pictures, at most
VIDEO = "side_by_side.mp4"
_PANEL = 960  # pixels a side of the video is wide, at most: browsers play 1920, not all play more
_PICTURE = 3840  # pixels a picture is wide, at most
_QUALITY = 20  # H.264's constant rate factor


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  out = pathlib.Path(args.out)
  files.make_folder(out)
  with (
    video.open_reader(
      args.before, *args.frames, deinterlace=args.deinterlace, max_pixels=args.max_pixels
    ) as before,
    video.open_reader(args.after, max_pixels=images.MOST_PIXELS) as after,
  ):
    count = compare(before, after, out)
  print(f"{out}: {count} frames")


def compare(before: video.Reader, after: video.Reader, out: pathlib.Path) -> int:
  """Writes the video and the pictures, see the module's docstring.

  Args:
    before: the frames as they were.
    after: the same frames restored, larger or as large.
    out: an existing folder.

  Returns:
    The number of frames.

  Raises:
    UserError: there are more frames of one than of the other, or files cannot be written.
  """
  info, count = after.info, 0
  total = info.frame_count or 1
  shown = {frame: pair for pair, frame in enumerate(_spread(total))}
  panel = _fitted(info.height, info.width, _PANEL)
  panel = panel[0] + panel[0] % 2, panel[1] + panel[1] % 2  # players want even sizes
  with contextlib.ExitStack() as stack:
    writer = None
    if not info.is_folder:
      size = panel[0], 2 * panel[1]
      writer = stack.enter_context(
        video.open_writer(str(out / VIDEO), *size, info.frame_rate, source=info, quality=_QUALITY)
      )
    bar = stack.enter_context(progress.bar("comparing", total))
    for old, new in itertools.zip_longest(before, after):
      if old is None or new is None:
        raise UserError(
          f"{info.path}: has not as many frames as what it was made of; give the same --frames"
        )
      enlarged = images.resized(old.image, *new.image.shape[:2])
      if writer:
        sides = [images.resized(image, *panel) for image in (enlarged, new.image)]
        writer.write(np.hstack(sides), new.time, new.duration)
      if count in shown:
        for name, image in (("before", enlarged), ("after", new.image)):
          height, width, _ = image.shape
          fitted = images.resized(image, *_fitted(height, width, _PICTURE))
          path = out / f"{name}_{shown[count]}.jpg"
          files.write_whole(path, images.encode_image(fitted, ".jpg"))
      count += 1
      bar.update()
  return count


def _spread(total: int) -> list[int]:
  """The numbers of at most `PAIRS` of so many frames: the first, the last, and some between."""
  return sorted({round(x) for x in np.linspace(0, total - 1, PAIRS)})


def _fitted(height: int, width: int, most: int) -> tuple[int, int]:
  """The size with at most so many columns, of the same shape."""
  if width <= most:
    return height, width
  return max(1, round(height * most / width)), most


def _parse() -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.compare", __doc__)
  add = parser.add_argument
  add("before", metavar="BEFORE", help="the clip or picture that was restored")
  add("after", metavar="AFTER", help="what it became")
  add("out", metavar="OUT", help="the folder to write to")
  add("--frames", type=video_cli.frame_range, metavar="A:B", default=(0, None))
  add("--deinterlace", action="store_true", help="as for the restoring")
  add("--max-pixels", type=int, metavar="N", default=images.MAX_PIXELS, help=argparse.SUPPRESS)
  return parser.parse_args()


if __name__ == "__main__":
  cli.run(main)
