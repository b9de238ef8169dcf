"""REDS as a TFDS data set, from the archives as released."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from vsr_jax.data_prep.builders import reds
from vsr_jax.data_prep.builders.clip_builder import ClipBuilder, ClipConfig
from vsr_jax.data_prep.builders.reds import release
from vsr_jax.data_prep.builders.releases import ReleasedClip

_X4 = ("sharp", "sharp_bicubic", "blur_bicubic")
_X1 = ("sharp", "blur")

_DESCRIPTION = """\
REDS: 300 clips of 100 frames of 1280x720 at 24 frames a second, made from recordings at 120 frames
a second: sharp frames, their blurry exposures, and MATLAB's bicubic reductions of both by four.
"""

_CITATION = """\
@InProceedings{Nah_2019_CVPR_Workshops_REDS,
  author = {Nah, Seungjun and Baik, Sungyong and Hong, Seokil and Moon, Gyeongsik and Son, Sanghyun
            and Timofte, Radu and Lee, Kyoung Mu},
  title = {NTIRE 2019 Challenge on Video Deblurring and Super-Resolution: Dataset and Study},
  booktitle = {The IEEE Conference on Computer Vision and Pattern Recognition (CVPR) Workshops},
  month = {June},
  year = {2019}
}
"""


class Builder(ClipBuilder):
  """REDS; see `reds.INSTRUCTIONS`."""

  RELEASE_NOTES: ClassVar = {"1.0.0": "First version: one clip an example."}
  BUILDER_CONFIGS: ClassVar = [
    ClipConfig(
      name="x4",
      description="Blurry reductions and sharp frames: 266 clips to train on, REDS4 to test.",
      streams=_X4,
    ),
    ClipConfig(
      name="x1",
      description="Blurry and sharp frames of full size: 266 clips to train on, REDS4 to test.",
      streams=_X1,
    ),
    ClipConfig(
      name="x4_official",
      description="As x4, in the splits of the challenge; the truth of test is not public.",
      streams=_X4,
    ),
    ClipConfig(
      name="x1_official",
      description="As x1, in the splits of the challenge; the truth of test is not public.",
      streams=_X1,
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = reds.INSTRUCTIONS

  def _info(self) -> tfds.core.DatasetInfo:
    return self.describe(_DESCRIPTION, _CITATION, reds.HOMEPAGE)

  def list_clips(self, root: pathlib.Path) -> Mapping[str, list[ReleasedClip]]:
    official = self.builder_config.name.endswith("_official")
    streams = self.builder_config.streams
    return release.list_clips(root, streams, official=official, partial=self.partial)
