"""GoPro (GOPRO_Large) as a TFDS data set, from the archive as released."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from vsr_jax.data_prep.builders.clip_builder import ClipBuilder, ClipConfig
from vsr_jax.data_prep.builders.gopro import HOMEPAGE, INSTRUCTIONS, release
from vsr_jax.data_prep.builders.releases import ReleasedClip

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
      description="As x4, with the folder blur_gamma, whose mean was taken over light.",
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

  def list_clips(self, root: pathlib.Path) -> Mapping[str, list[ReleasedClip]]:
    blur = "blur_gamma" if self.builder_config.name.endswith("_gamma") else "blur"
    found = release.list_clips(root, blur, partial=self.partial)
    return {split: [self._kept(clip) for clip in clips] for split, clips in found.items()}

  def _kept(self, clip: ReleasedClip) -> ReleasedClip:
    """The clip with the streams to derive from its own, and those to write."""
    kept, derived = self.builder_config.streams, {}
    if "blur_bicubic" in kept:
      derived = {f"{stream}_bicubic": (stream, SCALE) for stream in clip.streams}
    return dataclasses.replace(clip, derived=derived, kept=kept)
