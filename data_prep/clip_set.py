"""Clip sets: folders of frames with an index, as `data_prep.prepare` writes them.

  DIR/clips.json                    index: name, frames, size, rate and origin per clip
  DIR/sharp/CLIP/%08d.png           the truth, [s*h s*w]
  DIR/sharp_bicubic/CLIP/%08d.png   its bicubic reduction, [h w]
  DIR/blur_bicubic/CLIP/%08d.png    the input: the reduction of the blurry frame, [h w]
  DIR/flow                          flow labels, see `flow_store.py`
  DIR/meta_info/CLIP.txt            five landmarks by frame, see `meta_info.py`

A set of aligned faces (`aligned_clips.py`) has sharp frames and landmarks only.

The index is written last: a clip that it does not list is not there.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from vsr_jax import json_files
from vsr_jax.data_prep.folders import LARGEST_SIDE, FileStream
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.json_files import (
  anything,
  array,
  fields,
  integer,
  mapping,
  number,
  plain_name,
  text,
  truth,
)

INDEX = "clips.json"
_ORIGIN = fields({"name": plain_name, "path": text, "settings": mapping(text, anything)})
_PREPARED_CLIP = fields(
  {"name": plain_name, "frames": integer(1, 10**7)},
  {
    "rate": number(0, 1e6),
    "height": integer(1, LARGEST_SIDE),
    "width": integer(1, LARGEST_SIDE),
    "origin": _ORIGIN,
    "warning": text,
    "aligned": truth,
  },
)
_CLIP_SET = fields({"clips": array(_PREPARED_CLIP)})  # a built set's index differs


def read_index(root: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the entries of a clip set's index, sorted by name.

  Raises:
    UserError: the file cannot be read or is not an index.
  """
  path = root / INDEX
  try:
    entries = json_files.read(path, _CLIP_SET)["clips"]
    counts = collections.Counter(entry["name"] for entry in entries)
    if twice := [name for name, count in counts.items() if count > 1]:
      raise json_files.BadJson(f"clip {twice[0]} comes twice")
  except json_files.BadJson as e:
    raise UserError(f"{path}: not the index of a clip set ({e}); prepare the set again") from e
  return sorted(entries, key=lambda entry: entry["name"])


def read_finished(root: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the entries of existing clips, none if there is no index; each has to state its origin.

  Raises:
    UserError: the index is damaged, or lacks the origin of a clip.
  """
  finished = read_index(root) if (root / INDEX).exists() else []
  if strange := [entry["name"] for entry in finished if "origin" not in entry]:
    raise UserError(f"{root}: clip {strange[0]} has no origin in its index; use another --out")
  return finished


def check_origin(root: pathlib.Path, clip: str, new: dict[str, Any], old: dict[str, Any]) -> None:
  """Checks that a clip is replaced only by one of the same source; settings may differ.

  Args:
    root: the set's folder.
    clip: name of the existing clip.
    new: the origin of the clip to be made: name, path, settings.
    old: the origin of the existing one.

  Raises:
    UserError: it would replace a clip of another source.
  """
  if new["name"] in (clip, old["name"]) and new["path"] != str(pathlib.Path(old["path"]).resolve()):
    raise UserError(
      f"{new['path']}: {root} has a clip {clip} already, made from {old['path']}; rename one or "
      "use another --out"
    )


def write_index(root: pathlib.Path, entries: list[dict[str, Any]]) -> None:
  """Replaces a clip set's index in one step."""
  write_whole(root / INDEX, json.dumps({"clips": entries}, indent=1) + "\n")


def find_streams(root: pathlib.Path, name: str, streams: Sequence[str]) -> dict[str, FileStream]:
  """Finds the frames of a clip by stream; no file is read.

  Raises:
    UserError: the folder of a stream is missing.
  """
  found = {}
  for stream in streams:
    folder = root / stream / name
    if not folder.is_dir():
      raise UserError(f"{folder}: missing; extract or prepare clip {name} completely")
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".png")
    found[stream] = FileStream(folder, "", tuple(names))
  return found
