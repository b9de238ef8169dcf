"""VFHQ as a TFDS data set: the 512x512 clips to train on, and the test set with its inputs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from vsr_jax.data_prep.builders.clip_builder import ClipBuilder, ClipConfig
from vsr_jax.data_prep.builders.releases import ReleasedClip
from vsr_jax.data_prep.builders.vfhq import HOMEPAGE, INSTRUCTIONS, release

_DESCRIPTION = """\
VFHQ: clips of faces in interviews, 512x512, with five landmarks a frame: the eyes, the nose's tip
and the mouth's corners. The test set is 50 other clips with a low-quality version of each.
"""

_CITATION = """\
@InProceedings{xie2022vfhq,
  author = {Liangbin Xie and Xintao Wang and Honglun Zhang and Chao Dong and Ying Shan},
  title = {VFHQ: A High-Quality Dataset and Benchmark for Video Face Super-Resolution},
  booktitle = {The IEEE Conference on Computer Vision and Pattern Recognition Workshops (CVPRW)},
  year = {2022}
}
"""


class Builder(ClipBuilder):
  """VFHQ; see `INSTRUCTIONS`."""

  RELEASE_NOTES: ClassVar = {"1.0.0": "First version: one clip an example."}
  CLIPS_PER_SHARD = 12
  BUILDER_CONFIGS: ClassVar = [
    ClipConfig(
      name="512",
      description="The clips to train on, with landmarks; one split, train.",
      streams=("sharp",),
    ),
    ClipConfig(
      name="test_mild",
      description="The 50 clips of the test with the mild set of low quality (blur 5-10, noise "
      "0-10, CRF 18-25; 128x128), with landmarks; one split, test.",
      streams=("sharp", "low_quality"),
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS

  def _info(self) -> tfds.core.DatasetInfo:
    return self.describe(_DESCRIPTION, _CITATION, HOMEPAGE)

  def list_clips(self, root: pathlib.Path) -> Mapping[str, list[ReleasedClip]]:
    split = {"512": "train", "test_mild": "test"}[self.builder_config.name]
    return {split: release.list_clips(root, split, partial=self.partial)}
