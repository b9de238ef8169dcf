"""The papers' numbers of their ablations, by the names of rows in `configs/*/ablations.py`.

FMA-Net: Tables 3 and 4 of the paper, and Table 1 for the small model, on REDS4; PSNR in dB, tOF in
pixels. KEEP: the ablation and the main table, on the mildly degraded VFHQ-Test. What a paper does
not give is not here.
"""

from __future__ import annotations

from typing import NamedTuple

from vsr_jax.metrics.magnitude import RANGES

RESTORED, RECONSTRUCTION = "restored", "reconstruction"  # frames of Net^R, or of Net^D


class Quantity(NamedTuple):
  """A number that an evaluation has of a row.

  Attributes:
    metric: its name in metrics.json.
    frames: `RESTORED`, or `RECONSTRUCTION` for the blurred frames that Net^D makes of the truth.
    motion: a range of `magnitude.RANGES`; None for all frames.
  """

  metric: str
  frames: str = RESTORED
  motion: str | None = None


class Cost(NamedTuple):
  """Parameters in millions, and seconds a frame of 180x320 that is restored."""

  parameters: float
  seconds: float


# PSNR / tOF by motion and in total, of Net^D's frames and of Net^R's: Table 3.
_TABLE_3 = {
  "k10_conventional": (
    ((44.97, 0.055), (39.81, 0.245), (32.04, 0.871), (43.14, 0.128)),
    ((27.85, 1.713), (27.51, 3.922), (24.69, 6.857), (27.69, 2.489)),
  ),
  "k10": (
    ((45.38, 0.049), (42.18, 0.165), (37.72, 0.474), (44.25, 0.092)),
    ((28.64, 1.436), (28.46, 3.469), (25.54, 6.558), (28.52, 2.157)),
  ),
  "k20_conventional": (
    ((45.94, 0.047), (42.02, 0.193), (35.50, 0.689), (44.53, 0.104)),
    ((28.10, 1.566), (27.54, 3.835), (24.24, 6.989), (27.86, 2.365)),
  ),
  "fma_net": (
    ((46.57, 0.041), (43.49, 0.151), (38.23, 0.430), (45.46, 0.082)),
    ((28.91, 1.289), (28.91, 3.057), (26.17, 5.841), (28.83, 1.918)),
  ),
  "k30_conventional": (
    ((46.25, 0.042), (42.95, 0.161), (37.53, 0.464), (45.07, 0.087)),
    ((28.30, 1.589), (28.10, 3.589), (25.58, 6.258), (28.19, 2.292)),
  ),
  "k30": (
    ((46.89, 0.037), (44.12, 0.133), (39.30, 0.349), (45.90, 0.072)),
    ((28.91, 1.283), (28.98, 3.013), (26.37, 5.666), (28.89, 1.897)),
  ),
}

# PSNR, SSIM and tOF: Table 4, and Table 1 for m2, which is most probably the paper's FMA-Net_s.
_TABLE_4 = {
  "n1": (28.24, 0.8151, 2.224),
  "n5": (28.60, 0.8258, 2.054),
  "no_raft_no_ta": (28.68, 0.8274, 2.003),
  "no_ta": (28.73, 0.8288, 1.956),
  "end_to_end": (28.39, 0.8190, 2.152),
  "self_attention_sft": (28.50, 0.8244, 2.039),
  "sft": (28.58, 0.8262, 1.938),
  "self_attention": (28.80, 0.8298, 1.956),
  "fma_net": (28.83, 0.8315, 1.918),
  "m2": (28.46, 0.8212, 2.08),
}

COSTS = {
  "n1": Cost(9.15, 0.424),
  "n5": Cost(9.29, 0.429),
  "no_raft_no_ta": Cost(9.61, 0.434),
  "self_attention_sft": Cost(9.20, 0.415),
  "sft": Cost(9.20, 0.416),
  "self_attention": Cost(9.61, 0.434),
  "fma_net": Cost(9.61, 0.434),
  "m2": Cost(7.4, 0.231),
}

_KEEP = {
  "keep": {
    "psnr": 27.9994,
    "ssim": 0.8267,
    "lpips": 0.1619,
    "ids": 0.7960,
    "akd": 8.82,
    "sigma_ids": 0.036866,
    "sigma_akd": 3.2538,
  },
  "no_kfn": {"lpips": 0.1721, "ids": 0.7773, "akd": 9.20},
  "no_cfa": {"lpips": 0.1621, "ids": 0.7970, "akd": 8.90},
  "pwcnet": {"lpips": 0.1623, "ids": 0.7957, "akd": 8.78},
}

# Rows of the papers' tables, in their order: by k_d without and with flow; then Table 4's.
TABLE_3_ROWS = tuple(_TABLE_3)
TABLE_3_PAIRS = (
  ("k10", "k10_conventional"),
  ("fma_net", "k20_conventional"),
  ("k30", "k30_conventional"),
)
TABLE_4_ROWS = tuple(name for name in _TABLE_4 if name != "m2")


def number(system: str, row: str, quantity: Quantity) -> float | None:
  """The paper's number of a row of "fmanet" or "keep"; None if it gives none."""
  if system == "keep":
    known = _KEEP.get(row, {})
    return known.get(quantity.metric) if quantity[1:] == (RESTORED, None) else None
  if row in _TABLE_4 and quantity[1:] == (RESTORED, None):
    psnr, ssim, tof = _TABLE_4[row]
    return {"psnr": psnr, "ssim": ssim, "tof": tof}.get(quantity.metric)
  if row not in _TABLE_3 or quantity.metric not in ("psnr", "tof"):
    return None
  by_motion = _TABLE_3[row][quantity.frames == RESTORED]
  place = [*RANGES, None].index(quantity.motion)
  return by_motion[place][quantity.metric == "tof"]
