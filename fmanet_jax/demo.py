"""Command: restores the packaged clip with the packaged weights and shows what came out.

  python -m fmanet_jax.demo [--out demo_output] [--checkpoint DIR]

Writes restored.mp4, side_by_side.mp4 (bicubic | restored), side_by_side.png (bicubic | restored |
truth, and a detail of each below) and the scores of all frames, metrics.json and metrics.md.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import contextlib
import dataclasses
import pathlib
from fractions import Fraction

import cv2
import numpy as np

from fmanet_jax import streaming
from vsr_jax import cli, evaluation, files, progress, runtime, score_table, video
from vsr_jax.errors import UserError
from vsr_jax.metrics import ClipScore, clip_score, motion, rgb_psnr
from vsr_jax.ops.resize import resize_bicubic
from vsr_jax.score_table import ScoreTable

CLIP = pathlib.Path(__file__).parent / "assets" / "demo_clip"
ZOOM = 4  # how many times details are enlarged


@dataclasses.dataclass
class Picture:
  """The frame with the largest PSNR gain over bicubic: (bicubic, restored, truth), uint8."""

  gain: float = -np.inf  # dB of PSNR
  images: tuple[np.ndarray, ...] = ()


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("fmanet_jax.demo", __doc__)
  parser.add_argument(
    "--out", type=pathlib.Path, metavar="DIR", default="demo_output", help="default: demo_output"
  )
  parser.add_argument("--checkpoint", metavar="DIR", help="default: the packaged weights")
  args = parser.parse_args()
  if args.checkpoint is None and not streaming.DEMO_WEIGHTS.is_dir():
    raise UserError(
      f"{streaming.DEMO_WEIGHTS}: the demonstration weights are missing; get the whole repository, "
      "or name other weights with --checkpoint"
    )
  files.check_folder(args.out)
  runtime.enable_compilation_cache()
  runtime.return_freed_memory()
  restorer = streaming.Restorer(*streaming.load(args.checkpoint))
  files.make_folder(args.out)
  video.check_output(str(args.out / "side_by_side.png"))
  files.remove_left(args.out)
  setting = {"data": CLIP.name, "checkpoint": args.checkpoint, "left_out_at_each_end": 0}
  methods, notes = [evaluation.BICUBIC, "FMA-Net"], [clip_score.describe("all frames")]
  table = ScoreTable(methods, clip_score.METRICS, setting, notes)
  picture = restore_clip(restorer, args.out, table)
  write_image(args.out / "side_by_side.png", side_by_side(picture.images))
  table.complete = True
  score_table.write(args.out, table)
  print(score_table.to_markdown(table))
  print(f"\nwritten to {args.out}: restored.mp4, side_by_side.mp4 (bicubic | restored),")
  print("side_by_side.png (bicubic | restored | truth), metrics.json and metrics.md")


def restore_clip(restorer: streaming.Restorer, out: pathlib.Path, table: ScoreTable) -> Picture:
  """Restores and scores the clip, writes both videos and finds the frame to show."""
  scale = restorer.model.arch.scale
  bicubic, restored, picture = ClipScore(), ClipScore(), Picture()
  with contextlib.ExitStack() as stack:
    blurry, truths = (
      stack.enter_context(video.open_reader(str(CLIP / name)))
      for name in ("input.mp4", "truth.mp4")
    )
    info = truths.info
    if info.height != scale * blurry.info.height:
      raise UserError(f"{CLIP}: no clip to restore at scale {scale}; take another checkpoint")
    alone, beside = (
      stack.enter_context(
        video.open_writer(str(out / name), info.height, width, info.frame_rate, quality=16)
      )
      for name, width in (("restored.mp4", info.width), ("side_by_side.mp4", 2 * info.width))
    )
    stack.enter_context(progress.Clock())
    bar = stack.enter_context(progress.bar("restoring", blurry.info.frame_count))
    previous = None
    for frame, true_frame in zip(restorer.stream(blurry), truths, strict=True):
      assert frame.restored_from is not None  # set in every restored `Frame`
      enlarged, truth = resize_bicubic(frame.restored_from, scale), true_frame.image
      output = frame.image
      truth_motion = None if previous is None else motion(previous, truth)
      bicubic.add(truth, enlarged, truth_motion)
      restored.add(truth, output, truth_motion)
      alone.write(output)
      beside.write(np.hstack([enlarged, output]))
      gain = rgb_psnr(truth, output) - rgb_psnr(truth, enlarged)
      if gain > picture.gain:
        picture = Picture(gain, (enlarged, output, truth))
      previous = truth
      bar.update()
  scores = zip(table.methods, (bicubic.score, restored.score), strict=True)
  table.scores["bigbuckbunny"] = dict(scores)
  return picture


def side_by_side(images: tuple[np.ndarray, ...]) -> np.ndarray:
  """Bicubic, restored and truth [h w 3] in a row; below them the most improved part, enlarged."""
  bicubic, restored, truth = (image.astype(np.float32) for image in images)
  gain = np.square(bicubic - truth).sum(-1) - np.square(restored - truth).sum(-1)
  h, w = gain.shape
  size = h // ZOOM, w // ZOOM
  by_window = cv2.boxFilter(gain, -1, size[::-1], anchor=(0, 0))[: h - size[0], : w - size[1]]
  top, left = np.unravel_index(by_window.argmax(), by_window.shape)
  details = [image[top : top + size[0], left : left + size[1]] for image in images]
  details = [
    cv2.resize(detail, (w, h), interpolation=cv2.INTER_NEAREST_EXACT) for detail in details
  ]
  return np.vstack([np.hstack(images), np.hstack(details)])


def write_image(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes a uint8 RGB image as PNG, atomically: to a temporary file that is then renamed."""
  height, width, _ = image.shape
  with video.open_writer(str(path), height, width, Fraction(1)) as writer:
    writer.write(image)


if __name__ == "__main__":
  cli.run(main)
