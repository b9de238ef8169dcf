"""What KEEP's training steps are compared on: weights, batches and values of the three stages.

NumPy only, for both sides. Sizes are those of the fixtures keep_stage1, keep_stage2 and
keep_stage3 (tests/parity); the video discriminator has the released width.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import workload
from tests.parity import weights

STAGES = ("vqgan", "prediction", "fusion")
FRAMES = 4  # of a clip
IMAGES = 2  # of stage I's batch
SCALE = 4
# Of the batches, which were chosen so that no code lies so near a tie that rounding decides it: one
# other code moves the losses by up to 8e-3 within five steps.
SEEDS = {"vqgan": 5, "prediction": 1234, "fusion": 2}

# As released; LPIPS is left out on both sides, whose weights may not be there.
RATES = {  # of the networks and of the discriminator
  "vqgan": {"networks": 7e-5, "discriminator": 7e-5},
  "prediction": {"networks": 2e-4},
  "fusion": {"networks": 2e-5, "discriminator": 1e-5},
}
BETAS = (0.9, 0.99)
WEIGHTS = {
  "vqgan": {"pixel": 1.0, "perceptual": 0.0, "codebook": 1.0, "adversarial": 0.8},
  "prediction": {"code": 1.0, "cross_entropy": 0.5},
  "fusion": {"pixel": 0.1, "perceptual": 0.0, "temporal": 0.1, "adversarial": 0.01},
}
WIDTHS = {"vqgan": 32, "fusion": 32}  # of the discriminators
# Sides of the features with CFT and CFA at the full size, and in the small model of 128x128.
SIDES = {"16": "4", "32": "8"}


@dataclasses.dataclass(frozen=True)
class Task:
  """A stage's networks in the released names, and a batch.

  Attributes:
    config: arguments of the released constructor of the networks that are trained.
    state: their tensors, generated from the keys alone.
    opponent: those of the discriminator; {} without one.
    batch: as `data_prep.face_pipeline` yields it, uint8 RGB.
  """

  config: Mapping[str, Any]
  state: Mapping[str, np.ndarray]
  opponent: Mapping[str, np.ndarray]
  batch: Mapping[str, np.ndarray]


def task(stage: str) -> Task:
  """What one of `STAGES` is trained on."""
  return _images_task() if stage == "vqgan" else _clips_task(stage)


def _images_task() -> Task:
  shapes = json.loads((workload.PARITY / "keep_stage1.manifest.json").read_text())
  state, opponent = (
    workload.state_of(shapes, f"keep_stage1.{part}.") for part in ("vqgan", "discriminator")
  )
  for key, value in opponent.items():  # statistics as they start, as in the fixture
    if key.endswith(("running_mean", "running_var")):
      value[:] = float(key.endswith("running_var"))
  config = {"img_size": 64, "nf": 32, "ch_mult": [1, 2, 4], "emb_dim": 32}
  config |= {"codebook_size": 128, "attn_resolutions": [16]}
  images = weights.inputs((IMAGES, 3, 64, 64), SEEDS["vqgan"])
  batch = {"gt": np.rint(255 * np.moveaxis(images, 1, -1)).astype(np.uint8)}
  return Task(config, state, opponent, batch)


def _clips_task(stage: str) -> Task:
  unit = {"prediction": "keep_stage2", "fusion": "keep_stage3"}[stage]
  released = workload.keep_released("tiny", unit)
  config, opponent = dict(released.config), {}
  if stage == "fusion":
    sides = list(SIDES)
    config |= {"cft_list": sides, "cfa_list": sides, "cfa_dim": 32, "temp_reg_list": ["32"]}
    opponent = weights.state_dict(video_discriminator_shapes(WIDTHS[stage]), workload.KEEP_SEED)
  good = np.stack(list(workload.keep_clip(FRAMES, config["img_size"], SEEDS[stage])))[None]
  b, t, h, w, c = good.shape
  blocks = good.reshape(b, t, h // SCALE, SCALE, w // SCALE, SCALE, c)
  low = np.rint(blocks.mean((3, 5))).astype(np.uint8)
  return Task(config, released.state, opponent, {"gt": good, "lq": low})


def video_discriminator_shapes(width: int) -> dict[str, tuple[int, ...]]:
  """Key -> shape of the released video discriminator."""
  shapes: dict[str, tuple[int, ...]] = {}
  channels = [3, *(multiple * width for multiple in (1, 2, 4, 4, 4))]
  for i, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
    name = f"layers.{2 * i}.weight"
    shapes[f"{name}_orig"] = (outputs, inputs, 3, 5, 5)
    shapes[f"{name}_u"], shapes[f"{name}_v"] = (outputs,), (inputs * 75,)
  last = 4 * width
  return shapes | {"layers.10.weight": (last, last, 3, 5, 5), "layers.10.bias": (last,)}
