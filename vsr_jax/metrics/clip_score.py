"""PSNR, SSIM and tOF of a clip, frame by frame: FMA-Net's metrics."""

from __future__ import annotations

import numpy as np

from vsr_jax.metrics.motion import motion, motion_distance
from vsr_jax.metrics.pictures import rgb_psnr, ssim
from vsr_jax.metrics.sums import PSNR, SSIM, TOF, Score, Sums

METRICS = (PSNR, SSIM, TOF)


def describe(frames: str) -> str:
  """The note below a table of these metrics; `frames` tells which are scored."""
  return (
    f"RGB PSNR in dB, SSIM, tOF in pixels: means over {frames}; 4 pixels along the edges are left "
    "out of PSNR and SSIM."
  )


class ClipScore:
  """Scores one clip frame by frame, holding no more than the previous frame.

  Attributes:
    score: of the frames so far.
  """

  def __init__(self, with_motion: bool = True):
    """Begins a clip; `with_motion`: tOF is measured, too."""
    self.score = Score()
    self._with_motion = with_motion
    self._previous: tuple[np.ndarray, np.ndarray] | None = None

  def add(
    self,
    truth: np.ndarray,
    output: np.ndarray,
    truth_motion: np.ndarray | None = None,
    part: str | None = None,
  ) -> Score:
    """Takes the clip's next frame.

    Args:
      truth: [h w 3] uint8, RGB; not to be changed afterwards, since the next call reads it again.
      output: likewise.
      truth_motion: `motion` from the previous truth to this one, where several
        outputs are scored against it; None to find it here.
      part: the part of the score that the frame belongs to, besides the whole; see `Score.parts`.

    Returns:
      What this frame and its pair with the previous one added to `score`.

    Raises:
      ValueError: the frames do not match, or are too small for a metric.
    """
    values = {"psnr": [rgb_psnr(truth, output)], "ssim": [ssim(truth, output)], "tof": []}
    if self._previous is not None and self._with_motion:
      previous_truth, previous_output = self._previous
      if truth_motion is None:
        truth_motion = motion(previous_truth, truth)
      values["tof"] = [motion_distance(truth_motion, motion(previous_output, output))]
    sums = {name: Sums.of(found) for name, found in values.items()}
    added = Score(1, sums, {} if part is None else {part: Score(1, sums)})
    self._previous = truth, output
    self.score += added
    return added
