"""Command: restores the packaged clip with the packaged weights and shows what came out.

  python -m fmanet_jax.demo [--out demo_output] [--checkpoint DIR]

Writes restored.mp4, side_by_side.mp4 (bicubic | restored), side_by_side.png (bicubic | restored |
truth, and a detail of each below) and the scores of all frames, metrics.json and metrics.md.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from fmanet_jax import streaming
from vsr_jax import cli, demo, files, runtime, video
from vsr_jax.errors import UserError
from vsr_jax.evaluation import BICUBIC
from vsr_jax.frames import Frame
from vsr_jax.metrics import ClipScore, clip_score, motion
from vsr_jax.ops.resize import resize_bicubic
from vsr_jax.score_table import ScoreTable

CLIP = pathlib.Path(__file__).parent / "assets" / "demo_clip"
NAME = "FMA-Net"
ZOOM = 4  # how many times details are enlarged


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = demo.parse_arguments("fmanet_jax.demo", __doc__)
  if args.checkpoint is None and not streaming.DEMO_WEIGHTS.is_dir():
    raise UserError(
      f"{streaming.DEMO_WEIGHTS}: the demonstration weights are missing; get the whole repository, "
      "or name other weights with --checkpoint"
    )
  files.check_folder(args.out)
  runtime.enable_compilation_cache()
  runtime.return_freed_memory()
  restorer = streaming.Restorer(*streaming.load(args.checkpoint))
  demo.prepare(args.out)
  setting = {"data": CLIP.name, "checkpoint": args.checkpoint, "left_out_at_each_end": 0}
  notes = [clip_score.describe("all frames")]
  table = ScoreTable([BICUBIC, NAME], clip_score.METRICS, setting, notes)
  scores = Scores()
  heights = (video.probe(str(CLIP / name)).height for name in ("input.mp4", "truth.mp4"))
  if restorer.scale * next(heights) != next(heights):
    raise UserError(
      f"{CLIP}: no clip to restore at scale {restorer.scale}; take another checkpoint"
    )
  with video.open_reader(str(CLIP / "input.mp4")) as blurry:
    picture = demo.show_clip(CLIP, restore(restorer, blurry), NAME, scores.add, args.out)
  table.scores["bigbuckbunny"] = {name: clip.score for name, clip in scores.clips.items()}
  demo.finish(args.out, demo.side_by_side(picture.images, ZOOM), table)


def restore(
  restorer: streaming.Restorer, blurry: video.Reader
) -> Iterator[tuple[np.ndarray, Frame]]:
  """The frames of a clip enlarged bicubically, and restored."""
  for frame in restorer.stream(blurry):
    assert frame.restored_from is not None  # set in every restored `Frame`
    yield resize_bicubic(frame.restored_from, restorer.scale), frame


class Scores:
  """Scores of both methods; the truth's motion is found once for both.

  Attributes:
    clips: by method.
  """

  def __init__(self) -> None:
    self.clips = {BICUBIC: ClipScore(), NAME: ClipScore()}
    self._previous: np.ndarray | None = None

  def add(self, truth: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
    """Takes the next frame, uint8 RGB [h w 3]."""
    truth_motion = None if self._previous is None else motion(self._previous, truth)
    for name, output in outputs.items():
      self.clips[name].add(truth, output, truth_motion)
    self._previous = truth


if __name__ == "__main__":
  cli.run(main)
