"""Opens a set of clips in any layout; only this module tells the layouts apart.

  opened = open_clips("data/reds/x4/1.0.0", num_frames=3, need_flow=True)
  dataset = blur_pipeline.make_dataset(opened.clips, num_frames=3, batch_size=8, seed=0)

A path may be one of these, tried in this order:

  a built set   the folder of a version that `data_prep.build` made, such as data/reds/x4/1.0.0
  a clip set    what `prepare`, `animate` or `align` of data_prep wrote, see `clip_set.py`
  a release     the downloads of REDS, GoPro or VFHQ, see the `release.py` of each builder
  plain frames  a folder of images, a zip, or a folder of such folders and zips: the stream sharp
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vsr_jax import paths
from vsr_jax.data_prep import built, clip_set, flow_store, meta_info
from vsr_jax.data_prep.builders.gopro import release as gopro
from vsr_jax.data_prep.builders.reds import release as reds
from vsr_jax.data_prep.builders.releases import ReleasedClip, TextLandmarks
from vsr_jax.data_prep.builders.vfhq import release as vfhq
from vsr_jax.data_prep.clip import (
  BLUR_BICUBIC,
  SHARP,
  SHARP_BICUBIC,
  STREAMS,
  Clip,
  Landmarks,
  check_frames,
)
from vsr_jax.data_prep.flow_store import Labels, ReleasedFlow
from vsr_jax.data_prep.folders import BadClip, FileStream, common_size, find_plain_streams
from vsr_jax.errors import UserError

_REDUCED = (SHARP_BICUBIC, BLUR_BICUBIC)  # streams of low resolution


@dataclasses.dataclass(frozen=True)
class OpenedSet:
  """The clips of one split of a set.

  Attributes:
    clips: those that can be used, sorted by name or in the order of a built set.
    left_out: by the name of each other clip, why it cannot be used.
    flow_folder: the folder of these clips' flow labels, which need not exist.
    verified: whether all frames were found to be undamaged when the set was built.
    bytes: size of all clips of a built set; 0 for other sets.
  """

  clips: list[Clip]
  left_out: dict[str, str]
  flow_folder: pathlib.Path
  verified: bool = False
  bytes: int = 0


def open_clips(
  path: str | pathlib.Path,
  *,
  split: str = "train",
  streams: Sequence[str] | None = STREAMS,
  num_frames: int = 1,
  need_flow: bool = False,
  warn: bool = True,
) -> OpenedSet:
  """Opens the clips of a set; the module's docstring lists the layouts.

  In a clip set, REDS and GoPro the headers and ends of all frame files are read. A clip with a
  damaged frame, and one shorter than `num_frames`, is left out. Damage between header and end is
  found only where flow is needed, since such a clip has no labels.

  Args:
    path: the set's path; one in a bucket (gs://) is copied to a temporary folder, once a process.
    split: for a release "train" or "test", which is REDS4 for REDS; for a built set one that it
      has; other sets are one split and ignore it.
    streams: which streams are needed; None for those that are there.
    num_frames: T, the frames of a window.
    need_flow: whether every clip must have flow labels for windows of T frames.
    warn: whether a warning is logged that names the clips left out.

  Raises:
    UserError: no such set or split, a stream is missing, streams of unequal length, sizes or
      scales that do not belong together, missing flow, or no clip left.
  """
  with paths.kept_nearby(paths.place(path), f"copying {path}") as near:
    return _open_clips(near, split, streams, num_frames, need_flow, warn)


def _open_clips(
  path: pathlib.Path,
  split: str,
  streams: Sequence[str] | None,
  num_frames: int,
  need_flow: bool,
  warn: bool,
) -> OpenedSet:
  opened = _open(path, split, streams)
  clips, left_out = [], dict(opened.left_out)
  for clip in opened.clips:
    for stream in streams or ():
      clip.stream(stream)  # raises if it is missing
    if reason := _fault(path, clip, num_frames, need_flow, opened.verified):
      left_out[clip.name] = reason
    else:
      clips.append(clip if streams is None else _reduced(clip, streams))
  if left_out and warn:
    told = "; ".join(f"{name} ({reason})" for name, reason in left_out.items())
    logging.warning("%s: %d clips skipped: %s", path, len(left_out), told)
  if not clips:
    raise UserError(f"{path}: no usable clip of at least {num_frames} frames")
  if len(scales := {clip.scale for clip in clips}) > 1:
    raise UserError(f"{path}: clips of different scales {sorted(scales)}; use sets of one scale")
  return dataclasses.replace(opened, clips=clips, left_out=left_out)


def choose_clips(
  path: str | pathlib.Path,
  *,
  split: str,
  streams: Sequence[str] | None,
  num_frames: int = 1,
  names: str | None = None,
  frames: int | None = None,
) -> tuple[list[Clip], dict[str, str]]:
  """Opens the clips that are to be evaluated.

  Args:
    path: see `open_clips`, as for the next three.
    split: the split.
    streams: the streams that are needed.
    num_frames: the fewest frames of a clip.
    names: names of the clips, separated by commas; None for all.
    frames: how many of a clip's first frames are left in it; None for all.

  Returns:
    The clips; and by the name of each other clip asked for, why it cannot be used.

  Raises:
    UserError: see `open_clips`; or there is no clip of a name, or none that can be used.
  """
  if frames is not None and frames < num_frames:
    raise UserError(f"--frames {frames}: at least {num_frames} are needed to score one")
  opened = open_clips(path, split=split, streams=streams, num_frames=num_frames)
  # Damaged clips are left out; a table of REDS4 without one of them has to say so.
  listed = sorted([*(clip.name for clip in opened.clips), *opened.left_out])
  wanted = names.split(",") if names is not None else listed
  if unknown := [name for name in wanted if name not in listed]:
    raise UserError(f"{path}: no clip {' '.join(unknown)}; there are {' '.join(listed)}")
  chosen = [
    dataclasses.replace(clip, length=min(clip.length, frames or clip.length))
    for clip in opened.clips
    if clip.name in wanted
  ]
  if not chosen:
    raise UserError(f"{path}: {' '.join(wanted)} cannot be read; prepare or extract it again")
  return chosen, {name: reason for name, reason in opened.left_out.items() if name in wanted}


def _reduced(clip: Clip, streams: Sequence[str]) -> Clip:
  """The clip with these streams only."""
  kept = {stream: clip.streams[stream] for stream in streams}
  sizes = {stream: clip.sizes[stream] for stream in streams if stream in clip.sizes}
  return dataclasses.replace(clip, streams=kept, sizes=sizes)


def has_flow(clip: Clip, num_frames: int) -> bool:
  """Whether flow labels for every window of `num_frames` frames exist; one frame needs none."""
  if num_frames == 1:
    return True
  size = clip.sizes.get(BLUR_BICUBIC)
  return bool(size and clip.flow and clip.flow.serve(clip.length, num_frames, *size))


def _fault(
  path: pathlib.Path, clip: Clip, num_frames: int, need_flow: bool, verified: bool
) -> str | None:
  """Why a clip cannot be used; None if it can."""
  if clip.length < num_frames:
    return f"has {clip.length} frames, a window {num_frames}"
  if not need_flow or has_flow(clip, num_frames):
    return None
  try:
    if not verified:
      check_frames(clip)
  except UserError as e:  # the reason why it has no labels
    return str(e)
  raise UserError(
    f"{path}: clip {clip.name} has no flow labels for windows of {num_frames} frames; "
    f"run python -m vsr_jax.data_prep.flow_labels {path} --frames {num_frames}"
  )


def _open(path: pathlib.Path, split: str, streams: Sequence[str] | None) -> OpenedSet:
  """Finds which layout a path has, and opens all undamaged clips."""
  if (path / built.INFO).is_file():
    records = built.Records(path, split)
    left_out = {clip["name"]: clip["reason"] for clip in records.skipped}
    size = sum(clip["bytes"] for clip in records.clips)
    clips = [records[i] for i in range(len(records))]
    return OpenedSet(clips, left_out, records.flow_folder, verified=True, bytes=size)
  if versions := sorted(info.parent for info in path.glob(f"*/{built.INFO}")):
    raise UserError(f"{path}: name a version, such as {versions[-1]}")
  if not path.is_dir() and not (path.suffix == ".zip" and path.is_file()):
    raise UserError(f"{path}: no such folder of clips")
  labels = flow_store.open_labels(path / flow_store.FOLDER) if path.is_dir() else {}
  clips, left_out = [], {}
  for found in _list(path, split, streams):
    try:
      clips.append(_open_files(found, labels.get(found.name)))
    except BadClip as e:
      left_out[found.name] = str(e)
  return OpenedSet(clips, left_out, path / flow_store.FOLDER)


class _Found(NamedTuple):
  """A clip in files of which only the names were read; sizes of None are read from headers."""

  name: str
  streams: Mapping[str, FileStream]
  rate: float = 0.0
  sizes: Mapping[str, tuple[int, int]] | None = None
  landmarks: Landmarks = ()
  released_flow: pathlib.Path | None = None
  aligned: bool = False


def _list(path: pathlib.Path, split: str, streams: Sequence[str] | None) -> list[_Found]:
  if (path / clip_set.INDEX).exists():
    return [_found_in_clip_set(path, entry, streams) for entry in clip_set.read_index(path)]
  if reds.is_there(path):
    return [
      _Found(clip.name, clip.streams, clip.rate, released_flow=reds.find_flow(path, clip))
      for clip in reds.open_split(path, split, streams)
    ]
  if gopro.is_there(path):
    return [
      _Found(clip.name, _asked_streams(clip, streams), clip.rate)
      for clip in gopro.open_split(path, split)
    ]
  if vfhq.is_there(path):
    return [
      _Found(clip.name, _asked_streams(clip, streams), clip.rate, clip.size, _landmarks(clip))
      for clip in vfhq.open_split(path, split)
    ]
  plain = find_plain_streams(path)
  missing = [stream for stream in streams or () if stream != SHARP]
  if not plain or missing:
    found = "no frames and no clips"
    if plain:
      found = f"only plain frames, which have no stream {missing[0]}"
    raise UserError(
      f"{path}: holds {found}: it is neither a clip set (clips.json), a built set "
      "(dataset_info.json), nor REDS (train_blur_bicubic/...), GoPro or VFHQ"
    )
  return [_Found(name, {SHARP: frames}, sizes={}) for name, frames in plain.items()]


def _found_in_clip_set(
  path: pathlib.Path, entry: Mapping[str, Any], streams: Sequence[str] | None
) -> _Found:
  name, aligned = entry["name"], entry.get("aligned", False)
  found = clip_set.find_streams(path, name, streams or ((SHARP,) if aligned else STREAMS))
  text = f"{meta_info.FOLDER}/{name}.txt"
  points: Landmarks = ()
  if SHARP in found and (path / text).is_file():
    points = TextLandmarks(path, text, found[SHARP].names)
  return _Found(name, found, entry.get("rate", 0.0), landmarks=points, aligned=aligned)


def _asked_streams(clip: ReleasedClip, streams: Sequence[str] | None) -> Mapping[str, FileStream]:
  """The streams asked for if the release has them; else all, so that the error can list them."""
  if streams is None or not set(streams) <= clip.streams.keys():
    return clip.streams
  return {stream: clip.streams[stream] for stream in streams}


def _landmarks(clip: ReleasedClip) -> Landmarks:
  """Landmarks of a clip of faces; empty if their file does not exist yet."""
  if clip.landmarks is None or not pathlib.Path(*clip.landmarks).is_file():
    return ()
  return TextLandmarks(*clip.landmarks, clip.streams[SHARP].names)


def _open_files(found: _Found, labels: Labels | None) -> Clip:
  """Opens a clip, whose streams have to belong together; `BadClip` for damaged frames."""
  longest = max(reversed(list(found.streams.values())), key=len)
  stems = [pathlib.PurePath(name).stem for name in longest.names]
  for stream, frames in found.streams.items():
    if len(longest) and not len(frames):
      raise UserError(f"clip {found.name} has no frames of {stream}; extract or prepare it again")
    if [pathlib.PurePath(name).stem for name in frames.names] != stems:
      raise UserError(
        f"{frames}: {len(frames)} frames, but {longest} has {len(longest)} or other names; "
        f"extract or prepare clip {found.name} again"
      )
  sizes = found.sizes
  if sizes is None:
    sizes = {stream: common_size(frames) for stream, frames in found.streams.items()}
    _check_sizes(found.streams, sizes)
  if labels is None and found.released_flow and BLUR_BICUBIC in sizes:
    labels = ReleasedFlow(found.released_flow, tuple(stems), *sizes[BLUR_BICUBIC])
  points, aligned = found.landmarks, found.aligned
  return Clip(found.name, len(longest), found.streams, found.rate, sizes, points, labels, aligned)


def _check_sizes(streams: Mapping[str, FileStream], sizes: Mapping[str, tuple[int, int]]) -> None:
  """Checks that reduced streams have one size, and full-size ones a whole multiple of it."""
  small = next((sizes[s] for s in reversed(_REDUCED) if s in sizes), None)
  height, width = small or next(iter(sizes.values()))
  scale = next((size[0] // height for s, size in sizes.items() if s not in _REDUCED), 1)
  for stream, size in sizes.items():
    times = 1 if stream in _REDUCED else scale
    if size != (times * height, times * width):
      raise UserError(
        f"{streams[stream]}: frames of {size[1]}x{size[0]} do not belong to low-resolution ones of "
        f"{width}x{height}"
      )
