"""GoPro (GOPRO_Large) as a TFDS data set, from the archive as released."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from data_prep.builders.clip_builder import ClipBuilder, ClipConfig
from data_prep.builders.gopro import HOMEPAGE, INSTRUCTIONS
from data_prep.builders.releases import ClipFiles, Frames, find_clips, locate, pair_streams
from vsr_jax.errors import UserError

RECORDED_FPS = 240
CLIPS = {"train": 22, "test": 11}
SCALE = 4

_DESCRIPTION = """\
GoPro (GOPRO_Large): 33 clips of 1280x720, each frame sharp and as the mean of 7 to 13 frames of a
recording at 240 frames a second.
"""

_CITATION = """\
@InProceedings{Nah_2017_CVPR,
  author = {Nah, Seungjun and Kim, Tae Hyun and Lee, Kyoung Mu},
  title = {Deep Multi-Scale Convolutional Neural Network for Dynamic Scene Deblurring},
  booktitle = {The IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  month = {July},
  year = {2017}
}
"""

_X4 = ("sharp", "sharp_bicubic", "blur_bicubic")
_X1 = ("sharp", "blur")


class Builder(ClipBuilder):
  """GoPro; see `INSTRUCTIONS`."""

  RELEASE_NOTES: ClassVar = {"1.0.0": "First version: one clip an example."}
  CLIPS_PER_SHARD = 3
  BUILDER_CONFIGS: ClassVar = [
    ClipConfig(
      name="x4",
      description="Sharp frames, and the reductions of them and of the folder blur, by MATLAB's "
      "antialiased bicubic.",
      streams=_X4,
    ),
    ClipConfig(
      name="x4_gamma",
      description="As x4, of the folder blur_gamma, whose mean was taken over light.",
      streams=_X4,
    ),
    ClipConfig(
      name="x1", description="Sharp frames and those of the folder blur, full size.", streams=_X1
    ),
    ClipConfig(
      name="x1_gamma",
      description="Sharp frames and those of the folder blur_gamma, full size.",
      streams=_X1,
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS

  def _info(self) -> tfds.core.DatasetInfo:
    return self.describe(_DESCRIPTION, _CITATION, HOMEPAGE)

  def list_clips(self, root: pathlib.Path) -> Mapping[str, list[ClipFiles]]:
    source = locate(root, "GOPRO_Large", origin=HOMEPAGE)
    blur = "blur_gamma" if self.builder_config.name.endswith("_gamma") else "blur"
    found = {}
    for split, count in CLIPS.items():
      streams = {
        stream: find_clips(source, rf"{split}/(?P<clip>GOPR\d+_\d+_\w+)/{folder}")
        for stream, folder in {"sharp": "sharp", "blur": blur}.items()
      }
      for stream, clips in streams.items():
        if len(clips) < count and not self.partial:
          raise UserError(
            f"{source}: {len(clips)} of {count} {split} clips have frames of {stream}; extract "
            f"the archive again, get it from {HOMEPAGE}, or use what is there with --partial"
          )
      found[split] = [self._clip(name, pair) for name, pair in pair_streams(streams).items()]
    return found

  def _clip(self, name: str, streams: Mapping[str, Frames]) -> ClipFiles:
    derived = {f"{stream}_bicubic": (stream, SCALE) for stream in streams}
    return ClipFiles(
      name=name,
      fps=RECORDED_FPS / int(name.split("_")[1]),  # GOPR0372_07_00: every 7th frame
      streams=streams,
      ratios={("sharp", "blur"): 1},
      derived=derived if "blur_bicubic" in self.builder_config.streams else {},
      kept=self.builder_config.streams,
    )
