"""GoPro (GOPRO_Large) as released: which folders hold which clips."""

from __future__ import annotations

import pathlib

from vsr_jax.data_prep.builders.gopro import HOMEPAGE
from vsr_jax.data_prep.builders.releases import ReleasedClip, pair_streams
from vsr_jax.data_prep.folders import MissingError, find_streams, locate
from vsr_jax.errors import UserError

NAME = "GOPRO_Large"
RECORDED_RATE = 240
CLIPS = {"train": 22, "test": 11}


def is_there(root: pathlib.Path) -> bool:
  """Whether a folder holds the archive, or what was extracted from it."""
  try:
    return bool(locate(root, NAME, origin=HOMEPAGE))
  except MissingError:
    return False


def list_clips(root: pathlib.Path, blur: str, *, partial: bool) -> dict[str, list[ReleasedClip]]:
  """Lists the clips of each split, sorted by name, with the streams sharp and blur.

  Args:
    root: the folder of downloads.
    blur: the folder of the blurry frames: "blur", or "blur_gamma", averaged in linear light.
    partial: whether an incomplete download is accepted.

  Raises:
    UserError: something is missing.
  """
  source = locate(root, NAME, origin=HOMEPAGE)
  found = {}
  for split, count in CLIPS.items():
    streams = {
      stream: find_streams(source, rf"{split}/(?P<clip>GOPR\d+_\d+_\w+)/{folder}")
      for stream, folder in {"sharp": "sharp", "blur": blur}.items()
    }
    for stream, clips in streams.items():
      if len(clips) < count and not partial:
        raise UserError(
          f"{source}: {len(clips)} of {count} {split} clips have frames of {stream}; extract "
          f"the archive again, get it from {HOMEPAGE}, or use what is there with --partial"
        )
    found[split] = [
      ReleasedClip(
        name=name,
        rate=RECORDED_RATE / int(name.split("_")[1]),  # GOPR0372_07_00: every 7th frame
        streams=pair,
        ratios={("sharp", "blur"): 1},
      )
      for name, pair in pair_streams(streams).items()
    ]
  return found


def open_split(root: pathlib.Path, split: str) -> list[ReleasedClip]:
  """Lists the existing clips of a split, "train" or "test"."""
  found = list_clips(root, "blur", partial=True)
  if split not in found:
    raise UserError(f"{root}: has no split {split}, only {' and '.join(found)}")
  return found[split]
