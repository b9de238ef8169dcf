"""The networks and batches that KEEP's training is timed with."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import keep_stages, workload


def test_stages_of_keep_are_compared_on_the_fixtures_networks():
  images, clips = keep_stages.task("vqgan"), keep_stages.task("fusion")
  assert images.batch["gt"].shape == (2, 64, 64, 3)
  assert images.state["generator.blocks.0.weight"].shape == (128, 32, 3, 3)
  assert not images.opponent["main.3.running_mean"].any()
  assert clips.batch["gt"].shape == (1, 4, 128, 128, 3)
  low = clips.batch["lq"]
  assert low.shape == (1, 4, 32, 32, 3)
  assert low[0, 2, 1, 1, 0] == np.rint(clips.batch["gt"][0, 2, 4:8, 4:8, 0].mean())
  assert "cfa.8.norm1.weight" in clips.state
  shapes = {key: list(x.shape) for key, x in clips.opponent.items()}
  manifest = json.loads((workload.PARITY / "keep_units.manifest.json").read_text())
  start = "discriminator3d."
  want = {key.removeprefix(start): x for key, x in manifest.items() if key.startswith(start)}
  assert shapes.keys() == want.keys()
  narrow = keep_stages.video_discriminator_shapes(8)
  assert {key: list(shape) for key, shape in narrow.items()} == want
