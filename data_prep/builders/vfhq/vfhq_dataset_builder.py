"""VFHQ as a TFDS data set: the 512x512 clips to train on, and the test set with its inputs."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import tensorflow_datasets as tfds

from data_prep import meta_info
from data_prep.builders.clip_builder import ClipBuilder, ClipConfig
from data_prep.builders.releases import (
  ClipFiles,
  Frames,
  MissingError,
  add_clip,
  check_complete,
  find_clips,
  locate,
  pair_streams,
)
from data_prep.builders.vfhq import HOMEPAGE, INSTRUCTIONS, KEEP_HOMEPAGE, MILD
from vsr_jax.errors import UserError

TRAIN = ("VFHQ-512-new", "VFHQ-512")
TEST = "VFHQ-Test"
TEST_CLIPS = 50
SIDE, LOW_SIDE = 512, 128

_CLIP = r"(?P<clip>Clip\+[^/]+)"

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

  def list_clips(self, root: pathlib.Path) -> Mapping[str, list[ClipFiles]]:
    if self.builder_config.name == "512":
      found = {"sharp": _find_training_clips(root)}
      return {"train": self._pair(found, root, root / meta_info.GLOBAL)}
    test = locate(root, TEST, origin=HOMEPAGE)
    low = locate(root, MILD, f"{TEST}/Blind-LR/{MILD}", origin=KEEP_HOMEPAGE)
    found = {
      "sharp": find_clips(test, f"Interval1_512x512_LANCZOS4/{_CLIP}"),
      "low_quality": find_clips(low, _CLIP),
    }
    for stream, source in {"sharp": test, "low_quality": low}.items():
      if len(found[stream]) < TEST_CLIPS and not self.partial:
        raise UserError(
          f"{source}: {len(found[stream])} of {TEST_CLIPS} clips of {stream}; extract the archive "
          f"again, get it from {HOMEPAGE}, or use what is there with --partial"
        )
    return {"test": self._pair(found, root / TEST, root / TEST / "GT" / meta_info.GLOBAL)}

  def _pair(
    self, found: Mapping[str, Mapping[str, Frames]], root: pathlib.Path, lengths_file: pathlib.Path
  ) -> list[ClipFiles]:
    """The clips, checked against the list of all; the landmarks lie below `root`."""
    lengths = meta_info.read_global(lengths_file) if lengths_file.is_file() else {}
    clips = pair_streams(found)
    if lengths and not self.partial:
      for stream, named in found.items():
        check_complete(lengths_file, named, lengths, f"{HOMEPAGE} ({stream})")
    points = root / meta_info.FOLDER
    if not points.is_dir():
      raise MissingError(
        f"{points}: missing, the folder of the landmarks by clip; get it from {KEEP_HOMEPAGE} or "
        f"make it by python -m data_prep.landmarks FOLDER_OR_ZIPS --out {root}"
      )
    if outside := [name for name in clips if lengths and name not in lengths]:
      logging.warning(
        "%d clips are not in %s and are left out: %s",
        *(len(outside), lengths_file, ", ".join(outside)),
      )
    sizes = {"sharp": (SIDE, SIDE), "low_quality": (LOW_SIDE, LOW_SIDE)}
    return [
      ClipFiles(
        name=name,
        fps=0,
        streams=streams,
        length=lengths.get(name),
        size={stream: sizes[stream] for stream in streams},
        landmarks=(points, f"{name}.txt"),
      )
      for name, streams in clips.items()
      if not lengths or name in lengths
    ]


def _find_training_clips(root: pathlib.Path) -> dict[str, Frames]:
  """Clips of the zips and the folders alike."""
  found: dict[str, Frames] = {}
  zips = {
    path for name in TRAIN for path in (*root.glob(f"{name}*.zip"), *root.glob(f"{name}/*.zip"))
  }
  places = [*sorted(zips), *(root / name for name in TRAIN if (root / name).exists())]
  for source in places:
    for name, clip in find_clips(source, _CLIP).items():
      add_clip(found, name, clip)
  if not places:
    raise MissingError(
      f"{root}: neither a folder {TRAIN[0]} nor zips of that name; get VFHQ-512 from {HOMEPAGE}"
    )
  if not found:
    raise MissingError(
      f"{places[-1]}: holds no folders Clip+... with frames; extract it again, or get VFHQ-512 "
      f"from {HOMEPAGE}"
    )
  return found
