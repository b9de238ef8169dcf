"""VFHQ as released: which zips and folders hold which clips, for training and for the test."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping

from vsr_jax.data_prep import meta_info
from vsr_jax.data_prep.builders.releases import ReleasedClip, check_complete, pair_streams
from vsr_jax.data_prep.builders.vfhq import HOMEPAGE, KEEP_HOMEPAGE, MILD
from vsr_jax.data_prep.folders import FileStream, MissingError, add_stream, find_streams, locate
from vsr_jax.errors import UserError

TRAIN = ("VFHQ-512-new", "VFHQ-512")
TEST = "VFHQ-Test"
TEST_CLIPS = 50
SIZES = {"sharp": (512, 512), "low_quality": (128, 128)}

_CLIP = r"(?P<clip>Clip\+[^/]+)"


def is_there(root: pathlib.Path) -> bool:
  """Whether a folder holds the training clips or the test's, as zips or extracted."""
  return bool(_training_places(root)) or any(
    (root / name).exists() for name in (f"{TEST}.zip", TEST)
  )


def list_clips(root: pathlib.Path, split: str, *, partial: bool) -> list[ReleasedClip]:
  """Lists the clips of a split, sorted by name, with their landmarks.

  Args:
    root: the folder of downloads.
    split: "train", the clips of 512x512, with the stream sharp; "test", with low_quality, too.
    partial: whether an incomplete download is accepted.

  Raises:
    UserError: something is missing.
  """
  found, folder, lengths_file = _find(root, split, partial)
  lengths = meta_info.read_global(lengths_file) if lengths_file.is_file() else {}
  if lengths and not partial:
    for stream, named in found.items():
      check_complete(lengths_file, named, lengths, f"{HOMEPAGE} ({stream})")
  points = folder / meta_info.FOLDER
  if not points.is_dir():
    raise MissingError(
      f"{points}: missing, the folder of the landmarks by clip; get it from {KEEP_HOMEPAGE} or "
      f"make it by python -m vsr_jax.data_prep.landmarks FOLDER_OR_ZIPS --out {folder}"
    )
  clips = _pair(found, points, lengths)
  if outside := [clip.name for clip in clips if lengths and clip.name not in lengths]:
    logging.warning(
      "%d clips are not in %s and are left out: %s",
      *(len(outside), lengths_file, ", ".join(outside)),
    )
  return [clip for clip in clips if clip.name not in outside]


def open_split(root: pathlib.Path, split: str) -> list[ReleasedClip]:
  """Lists the existing clips of a split, "train" or "test", with the landmarks that exist."""
  if split not in ("train", "test"):
    raise UserError(f"{root}: has no split {split}, only train and test")
  found, folder, _ = _find(root, split, partial=True)
  return _pair(found, folder / meta_info.FOLDER, {})


def _find(
  root: pathlib.Path, split: str, partial: bool
) -> tuple[dict[str, dict[str, FileStream]], pathlib.Path, pathlib.Path]:
  """Frames by clip by stream, the folder of meta_info, and the list of clips."""
  if split == "train":
    return {"sharp": _find_training_clips(root)}, root, root / meta_info.GLOBAL
  test = locate(root, TEST, origin=HOMEPAGE)
  low = locate(root, MILD, f"{TEST}/Blind-LR/{MILD}", origin=KEEP_HOMEPAGE)
  found = {
    "sharp": find_streams(test, f"Interval1_512x512_LANCZOS4/{_CLIP}"),
    "low_quality": find_streams(low, _CLIP),
  }
  for stream, source in {"sharp": test, "low_quality": low}.items():
    if len(found[stream]) < TEST_CLIPS and not partial:
      raise UserError(
        f"{source}: {len(found[stream])} of {TEST_CLIPS} clips of {stream}; extract the archive "
        f"again, get it from {HOMEPAGE}, or use what is there with --partial"
      )
  return found, root / TEST, root / TEST / "GT" / meta_info.GLOBAL


def _pair(
  found: Mapping[str, Mapping[str, FileStream]], points: pathlib.Path, lengths: Mapping[str, int]
) -> list[ReleasedClip]:
  return [
    ReleasedClip(
      name=name,
      rate=0,
      streams=streams,
      length=lengths.get(name),
      size={stream: SIZES[stream] for stream in streams},
      landmarks=(points, f"{name}.txt"),
    )
    for name, streams in pair_streams(found).items()
  ]


def _training_places(root: pathlib.Path) -> list[pathlib.Path]:
  zips = {
    path for name in TRAIN for path in (*root.glob(f"{name}*.zip"), *root.glob(f"{name}/*.zip"))
  }
  return [*sorted(zips), *(root / name for name in TRAIN if (root / name).exists())]


def _find_training_clips(root: pathlib.Path) -> dict[str, FileStream]:
  """Finds the training clips in zips and folders."""
  found: dict[str, FileStream] = {}
  places = _training_places(root)
  for source in places:
    for name, clip in find_streams(source, _CLIP).items():
      add_stream(found, name, clip)
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
