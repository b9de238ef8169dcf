"""REDS as a TFDS data set, from the archives as released."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from data_prep.builders import reds
from data_prep.builders.clip_builder import ClipBuilder, ClipConfig
from data_prep.builders.releases import (
  ClipFiles,
  Frames,
  MissingError,
  check_complete,
  find_clips,
  locate,
  pair_streams,
)

FPS = 24.0  # the frames are every fifth of a recording at 120 frames a second
FRAMES = 100
CLIPS = {"train": 240, "val": 30, "test": 30}
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
      description="As x4, in the splits of the challenge; of test the truth is not public.",
      streams=_X4,
    ),
    ClipConfig(
      name="x1_official",
      description="As x1, in the splits of the challenge; of test the truth is not public.",
      streams=_X1,
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = reds.INSTRUCTIONS

  def _info(self) -> tfds.core.DatasetInfo:
    return self.describe(_DESCRIPTION, _CITATION, reds.HOMEPAGE)

  def list_clips(self, root: pathlib.Path) -> Mapping[str, list[ClipFiles]]:
    official = self.builder_config.name.endswith("_official")
    subsets = {
      subset: self._find(root, subset) for subset in ("train", "val", "test")[: 2 + official]
    }
    _undo_move(subsets["train"], subsets["val"])
    for subset, streams in subsets.items():
      self._check(root, subset, streams)
    clips = {subset: self._pair(streams) for subset, streams in subsets.items()}
    if official:
      return {"train": clips["train"], "validation": clips["val"], "test": clips["test"]}
    return {
      "train": [clip for clip in clips["train"] if clip.name not in reds.REDS4]
      + [_renamed(clip) for clip in clips["val"]],
      "test": [clip for clip in clips["train"] if clip.name in reds.REDS4],
    }

  def _find(self, root: pathlib.Path, subset: str) -> dict[str, dict[str, Frames]]:
    """Frames by stream and clip."""
    found = {}
    for stream in self.builder_config.streams:
      if (subset, stream) == ("test", "sharp"):  # kept secret
        continue
      name = f"{subset}_{stream}"
      try:
        source = locate(root, name, f"{subset}/{name}", origin=reds.HOMEPAGE)
        found[stream] = find_clips(source, r"(?P<clip>\d{3})")
      except MissingError:
        if not self.partial:
          raise
        found[stream] = {}
    return found

  def _check(self, root: pathlib.Path, subset: str, found: Mapping[str, Mapping]) -> None:
    if not self.partial:
      expected = [f"{i:03d}" for i in range(CLIPS[subset])]
      for stream, clips in found.items():
        check_complete(root / f"{subset}_{stream}", clips, expected, reds.HOMEPAGE)

  def _pair(self, found: Mapping[str, Mapping[str, Frames]]) -> list[ClipFiles]:
    """The clips of a subset; one that lacks a stream is found bad when it is read."""
    large, *small = found
    ratio = 4 if large == "sharp" and "sharp_bicubic" in small else 1
    return [
      ClipFiles(
        name=name,
        fps=FPS,
        streams=streams,
        length=None if self.partial else FRAMES,
        ratios={(large, stream): ratio for stream in small},
      )
      for name, streams in pair_streams(found).items()
    ]


def _renamed(clip: ClipFiles) -> ClipFiles:
  return dataclasses.replace(clip, name=reds.training_name(int(clip.name)))


def _undo_move(train: dict[str, dict[str, Frames]], val: dict[str, dict[str, Frames]]) -> None:
  """Gives the clips back the places they were released in, if the released script moved them."""
  for stream, clips in train.items():
    if set(val[stream]) != set(reds.REDS4) or set(reds.REDS4) & set(clips):
      continue
    moved = {name for name in clips if int(name) >= reds.FIRST_VAL}
    back = {f"{int(name) - reds.FIRST_VAL:03d}": clips.pop(name) for name in moved}
    clips.update(val[stream])
    val[stream] = back
