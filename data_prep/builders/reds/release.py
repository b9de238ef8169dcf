"""REDS as released: which archives or folders hold which clips, for training, test and REDS4.

The training split of video super-resolution is 266 clips: REDS's 240 training clips without 000,
011, 015 and 020, which are the test set REDS4, and its 30 validation clips, here named 240..269.
Known layouts: the archives as zips, or extracted, each into a folder of its own
(`train_sharp/train/train_sharp/000`) or all into one (`train/train_sharp/000`), and the extracted
ones after FMA-Net's script has moved REDS4 into the folders of the validation clips and those among
the training clips.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Sequence

from vsr_jax.data_prep.builders.reds import HOMEPAGE
from vsr_jax.data_prep.builders.releases import ReleasedClip, check_complete, pair_streams
from vsr_jax.data_prep.folders import FileStream, MissingError, find_streams, locate
from vsr_jax.errors import UserError

REDS4 = ("000", "011", "015", "020")
FIRST_VAL = 240  # the name of validation clip 000 in the training split
RATE = 24.0  # every fifth frame of a recording at 120 frames per second
FRAMES = 100
CLIPS = {"train": 240, "val": 30, "test": 30}
STREAMS = ("sharp", "sharp_bicubic", "blur_bicubic", "blur")
SECRET = ("test", "sharp")  # the truth of the challenge's test set

# Frames by clip, by stream, of one subset.
_Subset = dict[str, dict[str, FileStream]]


def is_there(root: pathlib.Path) -> bool:
  """Whether a folder holds an archive of REDS, or what was extracted from one."""
  return bool(_streams_there(root))


def list_clips(
  root: pathlib.Path, streams: Sequence[str], *, official: bool, partial: bool
) -> dict[str, list[ReleasedClip]]:
  """Lists the clips of each split, sorted by name.

  Args:
    root: the folder of downloads.
    streams: which of `STREAMS`, the largest frames first.
    official: whether the splits are the challenge's: train, validation and test; otherwise train
      and test, the 266 training clips and REDS4.
    partial: whether an incomplete download is accepted.

  Raises:
    UserError: something is missing.
  """
  subsets = {
    subset: _find(root, subset, streams, partial) for subset in list(CLIPS)[: 2 + official]
  }
  _undo_move(subsets["train"], subsets["val"])
  if not partial:
    for subset, found in subsets.items():
      expected = [f"{i:03d}" for i in range(CLIPS[subset])]
      for stream, frames in found.items():
        check_complete(root / f"{subset}_{stream}", frames, expected, HOMEPAGE)
  clips = {subset: _pair(found, partial) for subset, found in subsets.items()}
  if official:
    return {"train": clips["train"], "validation": clips["val"], "test": clips["test"]}
  return {
    "train": [clip for clip in clips["train"] if clip.name not in REDS4]
    + [_renamed(clip) for clip in clips["val"]],
    "test": [clip for clip in clips["train"] if clip.name in REDS4],
  }


def open_split(root: pathlib.Path, split: str, streams: Sequence[str] | None) -> list[ReleasedClip]:
  """Lists the existing clips of a split, "train" or "test"; see `list_clips`.

  Args:
    root: the folder of downloads.
    split: its name.
    streams: which of `STREAMS` are needed; None for those that are there.

  Raises:
    UserError: there is no such split, or a clip of REDS4 is missing from it.
  """
  if split not in ("train", "test"):
    raise UserError(f"{root}: has no split {split}, only train and test")
  if unknown := sorted(set(streams or ()) - set(STREAMS)):
    raise UserError(f"{root}: REDS has no stream {unknown[0]}, only {', '.join(STREAMS)}")
  wanted = [s for s in STREAMS if s in (_streams_there(root) if streams is None else streams)]
  clips = list_clips(root, wanted, official=False, partial=True)[split]
  names = [clip.name for clip in clips]
  if split == "test" and (missing := [name for name in REDS4 if name not in names]):
    raise UserError(f"{root}: clips {' '.join(missing)} of REDS4 are missing; extract them")
  return clips


def find_flow(root: pathlib.Path, clip: ReleasedClip) -> pathlib.Path | None:
  """Finds the folder of the released flow labels of a clip from `open_split`; None without.

  The labels' folders are laid out as those of the frames.
  """
  frames = next(frames for frames in clip.streams.values() if len(frames))
  place = (frames.source / frames.folder).relative_to(root).as_posix()
  subset, name = re.split("[_/.]", place)[0], place.rpartition("/")[2]  # train_..., train/...
  archive = f"{subset}_flow_bicubic"
  for folder in (root / archive / subset / archive, root / subset / archive):
    if (folder / "X4" / name).is_dir():
      return folder / "X4" / name
  return None


def _streams_there(root: pathlib.Path) -> list[str]:
  found = []
  for stream in STREAMS:
    for subset in ("train", "val"):
      with contextlib.suppress(MissingError):
        _locate(root, subset, stream)
        found.append(stream)
  return list(dict.fromkeys(found))


def _locate(root: pathlib.Path, subset: str, stream: str) -> pathlib.Path:
  name = f"{subset}_{stream}"
  return locate(root, name, f"{subset}/{name}", origin=HOMEPAGE)


def _find(root: pathlib.Path, subset: str, streams: Sequence[str], partial: bool) -> _Subset:
  found = {}
  for stream in streams:
    if (subset, stream) == SECRET:
      continue
    try:
      found[stream] = find_streams(_locate(root, subset, stream), r"(?P<clip>\d{3})")
    except MissingError:
      if not partial:
        raise
      found[stream] = {}
  return found


def _pair(found: _Subset, partial: bool) -> list[ReleasedClip]:
  """Makes the clips of a subset; one that lacks a stream is reported when it is read."""
  large, *small = found
  ratio = 4 if large == "sharp" and "sharp_bicubic" in small else 1
  return [
    ReleasedClip(
      name=name,
      rate=RATE,
      streams=streams,
      length=None if partial else FRAMES,
      ratios={(large, stream): ratio for stream in small},
    )
    for name, streams in pair_streams(found).items()
  ]


def _renamed(clip: ReleasedClip) -> ReleasedClip:
  return dataclasses.replace(clip, name=f"{FIRST_VAL + int(clip.name):03d}")


def _undo_move(train: _Subset, val: _Subset) -> None:
  """Gives the clips back the places they were released in, if the released script moved them."""
  for stream, clips in train.items():
    if set(val[stream]) != set(REDS4) or set(REDS4) & set(clips):
      continue
    moved = {name for name in clips if int(name) >= FIRST_VAL}
    back = {f"{int(name) - FIRST_VAL:03d}": clips.pop(name) for name in moved}
    clips.update(val[stream])
    val[stream] = back
