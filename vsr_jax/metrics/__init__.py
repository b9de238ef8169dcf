"""Metrics of restored frames against the truth, as sums that merge and then compute.

`pictures` compares frames, `motion` and `warping` how they move, `faces` what networks see in
faces, and `sums` holds what was measured: each part of a clip, or each host, can sum on its own.
PSNR, SSIM and tOF are those of the released FMA-Net evaluation, on uint8 frames as they would be
read back from PNG files. docs/metrics.md has the formulas.
"""

from __future__ import annotations

from vsr_jax.metrics.clip_score import ClipScore as ClipScore
from vsr_jax.metrics.motion import motion as motion
from vsr_jax.metrics.motion import tof as tof
from vsr_jax.metrics.pictures import rgb_psnr as rgb_psnr
from vsr_jax.metrics.pictures import ssim as ssim
from vsr_jax.metrics.sums import Metric as Metric
from vsr_jax.metrics.sums import Score as Score
from vsr_jax.metrics.sums import Sums as Sums
