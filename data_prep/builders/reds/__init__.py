"""REDS where it lies: which folders hold the training clips and REDS4.

The training split of video super-resolution is 266 clips: REDS's 240 training
clips without 000, 011, 015 and 020, which are the test set REDS4, and its 30
validation clips, here named 240..269. Known layouts: the archives extracted, each
into a folder of its own (`train_sharp/train/train_sharp/000`) or all into one
(`train/train_sharp/000`), and the former after FMA-Net's script has moved REDS4
into the folders of the validation clips and those among the training clips. The same split, as a
TFDS data set, is made by `reds_dataset_builder.py`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from vsr_jax.errors import UserError

HOMEPAGE = "https://seungjunnah.github.io/Datasets/reds.html"
INSTRUCTIONS = f"""\
From {HOMEPAGE} (section REDS, not "REDS 120fps", whose frames are others) put into the folder,
as zips or each extracted there:
  x4: train_sharp.zip train_sharp_bicubic.zip train_blur_bicubic.zip
      val_sharp.zip val_sharp_bicubic.zip val_blur_bicubic.zip
  x1: train_sharp.zip train_blur.zip val_sharp.zip val_blur.zip
  x4_official: those of x4, test_sharp_bicubic.zip test_blur_bicubic.zip
  x1_official: those of x1, test_blur.zip
Within them lie train/train_sharp/000/00000000.png, train/train_blur_bicubic/X4/000/00000000.png and
so on. A zip's own checksums are verified. SHA-256 that are public (the mirror snah/REDS of Hugging
Face; not checked here):
  train_sharp.zip 620294c1c3f23ed26c5ea228633770469c0b28e57d31eb41dc77deb401c6681b
  train_blur.zip  415c360c0d71d2d89af099b3c64e76bca7e1d8317750f8e056e02ebaab957bb8
"""
REDS4 = ("000", "011", "015", "020")
FIRST_VAL = 240  # the name of validation clip 000 in the training split


def training_name(val_clip: int) -> str:
  """The name of a validation clip in the training split."""
  return f"{FIRST_VAL + val_clip:03d}"


def list_folders(
  root: pathlib.Path, split: str, streams: Sequence[str]
) -> list[tuple[str, dict[str, pathlib.Path], pathlib.Path | None]]:
  """Finds a split's clips by the folders of `blur_bicubic`.

  Args:
    root: the folder that holds the extracted archives.
    split: "train" or "test".
    streams: `sharp`, `sharp_bicubic`, `blur_bicubic`: which folders to name.

  Returns:
    (name, folder of each stream, folder of the released flow labels or None) by
    clip, sorted by name; only the folders of `blur_bicubic` are known to exist.

  Raises:
    UserError: there is nothing laid out like REDS, or the split is incomplete.
    ValueError: there is no such split.
  """
  if split not in ("train", "test"):
    raise ValueError(f"split must be train or test, not {split!r}")
  names = {
    subset: _clip_names(_stream(root, subset, "blur_bicubic")) for subset in ("train", "val")
  }
  if not any(names.values()):
    raise UserError(f"{root}: neither a clip set (clips.json) nor REDS (train_blur_bicubic/...)")
  moved = not set(REDS4) & set(names["train"]) and set(REDS4) == set(names["val"])
  test_subset = "val" if moved else "train"
  if split == "test":
    chosen = [(name, test_subset, name) for name in REDS4]
    if missing := [name for name in REDS4 if name not in names[test_subset]]:
      raise UserError(f"{root}: clips {' '.join(missing)} of REDS4 are missing; extract them")
  else:
    chosen = [(name, "train", name) for name in names["train"] if name not in REDS4]
    if not moved:
      chosen += [(training_name(i), "val", name) for i, name in enumerate(names["val"])]
  result = []
  for name, subset, folder in sorted(chosen):
    folders = {stream: _stream(root, subset, stream) / folder for stream in streams}
    flow = _stream(root, subset, "flow_bicubic") / folder
    result.append((name, folders, flow if flow.is_dir() else None))
  return result


def _stream(root: pathlib.Path, subset: str, stream: str) -> pathlib.Path:
  """Folder of a stream's clips: the first layout that exists, else the released one."""
  name = f"{subset}_{stream}"
  places = [root / name / subset / name, root / subset / name]
  if stream != "sharp":
    places = [place / "X4" for place in places]
  return next((place for place in places if place.is_dir()), places[0])


def _clip_names(folder: pathlib.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
