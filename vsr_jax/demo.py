"""What the demonstrations of both systems share: a packaged clip is restored, scored and shown.

A clip is a folder with input.mp4, what is to be restored, and truth.mp4, what it was made from.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import cv2
import numpy as np

from vsr_jax import cli, files, progress, score_table, video
from vsr_jax.evaluation import BICUBIC
from vsr_jax.frames import Frame
from vsr_jax.metrics import rgb_psnr
from vsr_jax.score_table import ScoreTable

QUALITY = 16  # H.264's constant rate factor

# Takes a frame of the truth and, by method, what is compared with it: uint8 RGB [h w 3].
Measure = Callable[[np.ndarray, Mapping[str, np.ndarray]], object]


@dataclasses.dataclass
class Picture:
  """The frame with the largest PSNR gain over bicubic: (bicubic, restored, truth), uint8."""

  gain: float = -np.inf  # dB of PSNR
  number: int = 0  # the frame's
  images: tuple[np.ndarray, ...] = ()


def parse_arguments(command: str, doc: str) -> argparse.Namespace:
  """Reads a demonstration's arguments: `out`, a folder, and `checkpoint`, a path or None.

  Args:
    command: its module.
    doc: the module's docstring.
  """
  parser = cli.Parser(command, doc)
  parser.add_argument(
    "--out", type=pathlib.Path, metavar="DIR", default="demo_output", help="default: demo_output"
  )
  parser.add_argument("--checkpoint", metavar="DIR", help="default: the packaged weights")
  return parser.parse_args()


def prepare(out: pathlib.Path) -> None:
  """Makes the folder of the results.

  Raises:
    UserError: files cannot be written there.
  """
  files.make_folder(out)
  video.check_output(str(out / "side_by_side.png"))
  files.remove_left(out)


def show_clip(
  clip: pathlib.Path,
  restored: Iterable[tuple[np.ndarray, Frame]],
  method: str,
  measure: Measure,
  out: pathlib.Path,
) -> Picture:
  """Writes a clip as it is restored, with its sound, and scores it.

  Args:
    clip: its folder.
    restored: for each frame of the input: itself at the size of the truth, enlarged bicubically,
      and the restored frame.
    method: the restored frames' name for `measure`.
    measure: told every frame of the truth with the input's and the restored one.
    out: the folder, which gets restored.mp4 and side_by_side.mp4 (bicubic | restored).

  Returns:
    The frame to show.
  """
  picture, source = Picture(), video.probe(str(clip / "input.mp4"))
  with contextlib.ExitStack() as stack:
    truth = stack.enter_context(video.open_reader(str(clip / "truth.mp4")))
    size, rate = (truth.info.height, truth.info.width), truth.info.frame_rate
    alone, beside = (
      stack.enter_context(
        video.open_writer(
          str(out / name), size[0], times * size[1], rate, source=source, quality=QUALITY
        )
      )
      for name, times in (("restored.mp4", 1), ("side_by_side.mp4", 2))
    )
    stack.enter_context(progress.Clock())
    bar = stack.enter_context(progress.bar("restoring", source.frame_count))
    pairs = zip(restored, truth, strict=True)
    for number, ((enlarged, frame), true_frame) in enumerate(pairs):
      true_image, output = true_frame.image, frame.image
      measure(true_image, {BICUBIC: enlarged, method: output})
      alone.write(output, frame.time, frame.duration)
      beside.write(np.hstack([enlarged, output]), frame.time, frame.duration)
      gain = rgb_psnr(true_image, output) - rgb_psnr(true_image, enlarged)
      if gain > picture.gain:
        picture = Picture(gain, number, (enlarged, output, true_image))
      bar.update()
  return picture


def finish(out: pathlib.Path, image: np.ndarray, table: ScoreTable) -> None:
  """Writes the picture, side_by_side.png, and the scores, and tells what there is.

  Args:
    out: the folder.
    image: from `side_by_side`.
    table: the scores, all of them.
  """
  write_image(out / "side_by_side.png", image)
  table.complete = True
  score_table.write(out, table)
  print(score_table.to_markdown(table))
  print(f"\nwritten to {out}: restored.mp4, side_by_side.mp4 (bicubic | restored),")
  print("side_by_side.png (bicubic | restored | truth), metrics.json and metrics.md")


def side_by_side(
  images: tuple[np.ndarray, ...], zoom: int, center: Sequence[float] | None = None
) -> np.ndarray:
  """Puts bicubic, restored and truth in a row; below them a detail of each, enlarged.

  Args:
    images: bicubic, restored and truth, uint8 RGB [h w 3].
    zoom: how many times the detail is enlarged.
    center: its middle, (x, y) in pixels; None: it is the part that is improved most.

  Returns:
    uint8 RGB [2 h 3 w 3].
  """
  h, w, _ = images[0].shape
  size = np.array([h // zoom, w // zoom])
  if center is None:
    top, left = _most_improved(images, size)
  else:
    wanted = np.array([center[1], center[0]]) - size / 2
    top, left = np.clip(np.rint(wanted).astype(int), 0, np.array([h, w]) - size)
  details = [image[top : top + size[0], left : left + size[1]] for image in images]
  details = [
    cv2.resize(detail, (w, h), interpolation=cv2.INTER_NEAREST_EXACT) for detail in details
  ]
  return np.vstack([np.hstack(images), np.hstack(details)])


def _most_improved(images: tuple[np.ndarray, ...], size: np.ndarray) -> tuple[int, int]:
  """Top and left of the part of this size in which the squared error falls most."""
  bicubic, restored, truth = (image.astype(np.float32) for image in images)
  gain = np.square(bicubic - truth).sum(-1) - np.square(restored - truth).sum(-1)
  h, w = gain.shape
  by_window = cv2.boxFilter(gain, -1, size[::-1].tolist(), anchor=(0, 0))
  by_window = by_window[: h - size[0], : w - size[1]]
  top, left = np.unravel_index(by_window.argmax(), by_window.shape)
  return int(top), int(left)


def write_image(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes a uint8 RGB image as PNG, atomically: to a temporary file that is then renamed."""
  height, width, _ = image.shape
  with video.open_writer(str(path), height, width, Fraction(1)) as writer:
    writer.write(image)
