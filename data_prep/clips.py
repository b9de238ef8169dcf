"""Clips on disk: what a training or evaluation clip consists of, and the layouts that hold them.

A clip set, as `data_prep.prepare` writes it:

  DIR/clips.json                    index: name, frames, size, rate and origin of each clip
  DIR/sharp/CLIP/%08d.png           the truth, [s*h s*w]
  DIR/sharp_bicubic/CLIP/%08d.png   its bicubic reduction, [h w]
  DIR/blur_bicubic/CLIP/%08d.png    the input: the reduction of the blurry frame, [h w]
  DIR/flow                          flow labels, see `flow_store.py`

The index is written last: a clip that it does not list is not there. REDS is read
as released, each archive extracted into a folder of its own (`reds.py` has the rules).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from data_prep import flow_store
from data_prep.builders import reds
from data_prep.flow_store import Labels, ReleasedFlow
from vsr_jax import image_headers, images, json_files
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.json_files import anything, array, fields, integer, mapping, number, plain_name, text

INDEX = "clips.json"
SHARP, SHARP_BICUBIC, BLUR_BICUBIC = STREAMS = ("sharp", "sharp_bicubic", "blur_bicubic")
_FIELDS = {BLUR_BICUBIC: "blurry", SHARP: "sharp", SHARP_BICUBIC: "sharp_lr"}
_LARGEST_SIDE = 2**16
_ORIGIN = fields({"name": plain_name, "path": text, "settings": mapping(text, anything)})
_ENTRY = fields(
  {"name": plain_name, "frames": integer(1, 10**7)},
  {
    "rate": number(0, 1e6),
    "height": integer(1, _LARGEST_SIDE),
    "width": integer(1, _LARGEST_SIDE),
    "origin": _ORIGIN,
    "warning": text,
  },
)
_SCHEMA = fields({"clips": array(_ENTRY)})
_PNG_END = b"IEND\xaeB`\x82"


class Frame(Protocol):
  """An encoded frame: a file's path, or one of a record; its text names it in errors."""

  def read_bytes(self) -> bytes: ...  # of the PNG or JPEG


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip; frame i of every stream belongs together.

  Attributes:
    name: unique within the list it comes from.
    blurry: the input's frames, [h w 3] in display order.
    sharp: the truth's frames, [scale*h scale*w 3]; empty if not asked for.
    sharp_lr: the sharp low-resolution frames; empty if not asked for.
    flow: its flow labels; None when there are none.
    height: h.
    width: w.
    scale: of `sharp` against `blurry`; 0 if `sharp` was not asked for.
  """

  name: str
  blurry: Sequence[Frame]
  sharp: Sequence[Frame]
  sharp_lr: Sequence[Frame]
  flow: Labels | None
  height: int
  width: int
  scale: int

  @property
  def size(self) -> tuple[int, int]:
    """(h, w)."""
    return self.height, self.width

  @property
  def sharp_size(self) -> tuple[int, int]:
    """(s*h, s*w)."""
    return self.scale * self.height, self.scale * self.width


class _CorruptFrame(Exception):
  """A frame's file is damaged; the text names it."""


def find_clips(
  root: str | pathlib.Path,
  *,
  split: str = "train",
  streams: Sequence[str] = STREAMS,
  num_frames: int = 1,
  need_flow: bool = False,
) -> list[Clip]:
  """Lists the clips below a folder, sorted by name.

  Headers and ends of all frame files are read; a clip with a damaged frame, and
  one shorter than `num_frames`, is left out with a warning that names it. What is
  damaged in between shows where flow is needed: such a clip has no labels.

  Args:
    root: a clip set, or REDS as released or as moved about by the released script.
    split: "train" or "test" of REDS (the 266 training clips, REDS4); a clip set is
      one split and ignores it.
    streams: which of `STREAMS` are needed; `blur_bicubic` always is.
    num_frames: T, the length of a window.
    need_flow: whether every clip must have flow labels for windows of T frames.

  Raises:
    UserError: no such folder or layout, a stream is missing, streams of unequal
      length, sizes that do not belong together, missing flow, or no clip left.
  """
  root = pathlib.Path(root)
  streams = tuple(dict.fromkeys((BLUR_BICUBIC, *streams)))
  clips, skipped = [], []
  found = _list_folders(root, split, streams)
  labels = flow_store.open_labels(root / flow_store.FOLDER)
  for name, folders, released_flow in found:
    try:
      clip = _open_clip(name, folders, labels.get(name), released_flow)
    except _CorruptFrame as e:
      skipped.append(f"{name} ({e})")
      continue
    if len(clip.blurry) < num_frames:
      skipped.append(f"{name} (has {len(clip.blurry)} frames, a window {num_frames})")
      continue
    if need_flow and not has_flow(clip, num_frames):
      try:
        check_frames(clip)
      except UserError as e:  # which kept it from being labelled
        skipped.append(f"{name} ({e})")
        continue
      check_flow(root, clip, num_frames)
    clips.append(clip)
  if skipped:
    logging.warning("%s: %d clips skipped: %s", root, len(skipped), "; ".join(skipped))
  if not clips:
    raise UserError(f"{root}: no usable clip of at least {num_frames} frames")
  scales = {clip.scale for clip in clips}
  if len(scales) > 1:
    raise UserError(f"{root}: clips of different scales {sorted(scales)}; make sets of one scale")
  return clips


def has_flow(clip: Clip, num_frames: int) -> bool:
  """Whether flow labels for every window of `num_frames` frames are there; one needs none."""
  return num_frames == 1 or (
    clip.flow is not None and clip.flow.serve(len(clip.blurry), num_frames, clip.height, clip.width)
  )


def check_flow(root: pathlib.Path, clip: Clip, num_frames: int) -> None:
  """Raises `UserError` unless a clip of that folder has flow labels for windows of T frames."""
  if not has_flow(clip, num_frames):
    raise UserError(
      f"{root}: clip {clip.name} has no flow labels for windows of {num_frames} frames; "
      f"run python -m data_prep.flow_labels {root} --frames {num_frames} --weights RAFT.pth"
    )


def _list_folders(
  root: pathlib.Path, split: str, streams: Sequence[str]
) -> list[tuple[str, dict[str, pathlib.Path], pathlib.Path | None]]:
  """Name, folder of each stream, and folder of released flow labels of each clip."""
  if not root.is_dir():
    raise UserError(f"{root}: no such folder of clips")
  if (root / INDEX).exists():
    found = [
      (entry["name"], {stream: root / stream / entry["name"] for stream in streams}, None)
      for entry in read_index(root)
    ]
  else:
    found = reds.list_folders(root, split, streams)
  for name, folders, _ in found:
    for folder in folders.values():
      if not folder.is_dir():
        raise UserError(f"{folder}: missing; extract or prepare clip {name} completely")
  return found


def _open_clip(
  name: str,
  folders: dict[str, pathlib.Path],
  labels: Labels | None,
  released_flow: pathlib.Path | None,
) -> Clip:
  files = {
    stream: sorted(path for path in folder.iterdir() if path.suffix == ".png")
    for stream, folder in folders.items()
  }
  names = {stream: [path.name for path in paths] for stream, paths in files.items()}
  for stream, stream_names in names.items():
    if stream_names != names[BLUR_BICUBIC]:
      raise UserError(
        f"{folders[stream]}: {len(stream_names)} frames, but {folders[BLUR_BICUBIC]} has "
        f"{len(names[BLUR_BICUBIC])} or other names; extract or prepare the clip again"
      )
  sizes = {stream: _common_size(paths) for stream, paths in files.items() if paths}
  if not sizes:
    raise _CorruptFrame("has no frames")
  height, width = sizes[BLUR_BICUBIC]
  scale = sizes[SHARP][0] // height if SHARP in sizes else 0
  wanted = {SHARP: (scale * height, scale * width)}
  for stream, size in sizes.items():
    if size != wanted.get(stream, (height, width)):
      raise UserError(
        f"{folders[stream]}: frames of {size[1]}x{size[0]} do not belong to "
        f"low-resolution ones of {width}x{height}"
      )
  frames = {field: tuple(files.get(stream, ())) for stream, field in _FIELDS.items()}
  if labels is None and released_flow is not None:
    stems = tuple(path.stem for path in files[BLUR_BICUBIC])
    labels = ReleasedFlow(released_flow, stems, height, width)
  return Clip(name, **frames, flow=labels, height=height, width=width, scale=scale)


def _common_size(paths: Sequence[pathlib.Path]) -> tuple[int, int]:
  """(height, width) that all PNGs share, from their headers."""
  sizes = {_png_size(path) for path in paths}
  if len(sizes) > 1:
    raise _CorruptFrame(f"{paths[0].parent.name}: frames of different sizes")
  return sizes.pop()


def _png_size(path: pathlib.Path) -> tuple[int, int]:
  if not path.is_file():  # opening a pipe would not end
    raise _CorruptFrame(f"{path} is no file")
  with path.open("rb") as f:
    head = f.read(24)  # of a PNG's header what tells its size
    f.seek(max(0, os.fstat(f.fileno()).st_size - len(_PNG_END)))
    end = f.read()
  header = image_headers.read_header(head)
  if header is None or header.kind != "PNG" or end != _PNG_END:
    raise _CorruptFrame(f"{path} is cut short or no PNG")
  if max(header.height, header.width) > _LARGEST_SIDE:
    raise _CorruptFrame(f"{path} has {header.width}x{header.height} pixels")
  return header.height, header.width


def check_frames(clip: Clip) -> None:
  """Raises `UserError` for a clip's first frame that cannot be decoded."""
  for frame in (*clip.sharp_lr, *clip.blurry):
    read_frame(frame, clip.size)
  for frame in clip.sharp:
    read_frame(frame, clip.sharp_size)


def read_frame(frame: Frame, size: tuple[int, int] | None = None) -> np.ndarray:
  """Decodes a frame: uint8 [h w 3], RGB.

  Args:
    frame: of a clip.
    size: (h, w) that it should have; None if any will do.

  Raises:
    UserError: it is missing, damaged, or of another size.
  """
  try:
    data = frame.read_bytes()
  except OSError:
    data = b""
  damaged = "cannot be decoded; extract or prepare the clip again"
  image = images.decode_image(data, frame, damaged=damaged)
  if size is not None and image.shape[:2] != size:
    raise UserError(
      f"{frame}: has {image.shape[1]}x{image.shape[0]} pixels, not the {size[1]}x{size[0]} of its "
      "clip; extract or prepare the clip again"
    )
  return image


def read_index(root: pathlib.Path) -> list[dict[str, Any]]:
  """Entries of a clip set's index, sorted by name.

  Raises:
    UserError: the file cannot be read or is not an index.
  """
  path = root / INDEX
  try:
    entries = json_files.read(path, _SCHEMA)["clips"]
    counts = collections.Counter(entry["name"] for entry in entries)
    if twice := [name for name, count in counts.items() if count > 1]:
      raise json_files.BadJson(f"clip {twice[0]} comes twice")
  except json_files.BadJson as e:
    raise UserError(f"{path}: not the index of a clip set ({e}); prepare the set again") from e
  return sorted(entries, key=lambda entry: entry["name"])


def write_index(root: pathlib.Path, entries: list[dict[str, Any]]) -> None:
  """Replaces a clip set's index in one step."""
  write_whole(root / INDEX, json.dumps({"clips": entries}, indent=1) + "\n")
