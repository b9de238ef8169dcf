"""Clips of a built data set (`data_prep.built`) for the pipeline that also reads folders.

clips = open_clips("data/reds/x4/1.0.0", num_frames=3, need_flow=True)
dataset = pipeline.make_dataset(clips, num_frames=3, batch_size=8, seed=0)
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from data_prep.built import INFO, Records
from data_prep.clips import (
  BLUR_BICUBIC,
  SHARP,
  SHARP_BICUBIC,
  STREAMS,
  Clip,
  check_flow,
  find_clips,
)
from data_prep.flow_store import Labels
from vsr_jax.errors import UserError


class IndexedSource(Protocol):
  """Clips by random access, with an index.

  Attributes:
    clips: by clip `name`, `frames` (their number) and `sizes`, (height, width) by stream.
  """

  clips: Sequence[Mapping[str, Any]]

  def __getitem__(self, index: int) -> Any: ...  # has `frames`, encoded, by stream

  def flow(self) -> Mapping[str, Labels]: ...  # by clip, where there are any


@dataclasses.dataclass(frozen=True)
class RecordedFrame:
  """A frame of a record, to be read as if it were a file."""

  stream: RecordedStream
  index: int

  def read_bytes(self) -> bytes:
    """The encoded frame."""
    return self.stream.open()[self.index]

  def __str__(self) -> str:
    return f"clip {self.stream.name}, frame {self.index} of {self.stream.stream}"


@dataclasses.dataclass
class RecordedStream(Sequence[RecordedFrame]):
  """One stream of a clip.

  Attributes:
    source: that has the clip.
    clip: its index there.
    name: its name.
    stream: the stream's name.
    length: number of frames.
  """

  source: IndexedSource
  clip: int
  name: str
  stream: str
  length: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index):
    if isinstance(index, slice):
      return tuple(RecordedFrame(self, i) for i in range(*index.indices(self.length)))
    return RecordedFrame(self, range(self.length)[index])

  def open(self) -> Sequence[bytes]:
    """The encoded frames."""
    return _open(self.source, self.clip).frames[self.stream]


@functools.lru_cache(maxsize=4)
def _open(source: IndexedSource, clip: int) -> Any:
  """Finding the frames of a record takes milliseconds: once for all frames of a window."""
  return source[clip]


def recorded_clips(source: IndexedSource, streams: Sequence[str] = STREAMS) -> list[Clip]:
  """The clips of a source, in its order; no record is read.

  Args:
    source: with an index.
    streams: which of `clips.STREAMS` are needed; `blur_bicubic` always is.

  Raises:
    UserError: a stream is missing, or clips of different scales.
  """
  result, flows = [], source.flow()
  for i, entry in enumerate(source.clips):
    name, sizes = entry["name"], entry["sizes"]
    if missing := [s for s in (BLUR_BICUBIC, *streams) if s not in sizes]:
      raise UserError(f"clip {name} has no stream {missing[0]}, only {', '.join(sizes)}")
    fields = {s: RecordedStream(source, i, name, s, entry["frames"]) for s in sizes}
    height, width = sizes[BLUR_BICUBIC]
    result.append(
      Clip(
        name,
        blurry=fields[BLUR_BICUBIC],
        sharp=fields[SHARP] if SHARP in streams else (),
        sharp_lr=fields[SHARP_BICUBIC] if SHARP_BICUBIC in streams else (),
        flow=flows.get(name),
        height=height,
        width=width,
        scale=sizes[SHARP][0] // height if SHARP in streams else 0,
      )
    )
  if len(scales := {clip.scale for clip in result}) > 1:
    raise UserError(f"clips of different scales {sorted(scales)}; use sets of one scale")
  return result


def open_clips(
  root: str | pathlib.Path,
  *,
  split: str = "train",
  streams: Sequence[str] = STREAMS,
  num_frames: int = 1,
  need_flow: bool = False,
) -> list[Clip]:
  """The clips of a built data set's folder, or of any that `clips.find_clips` reads.

  Args:
    root: such as data/reds/x4/1.0.0, a clip set, or REDS as released.
    split: see `find_clips`.
    streams: see `find_clips`.
    num_frames: T; shorter clips are left out with a warning.
    need_flow: whether every clip must have flow labels for windows of T frames.

  Raises:
    UserError: as `find_clips` and `recorded_clips`; flow labels are missing, or no clip is left.
  """
  root = pathlib.Path(root)
  if not (root / INFO).is_file():
    if versions := sorted(path.parent for path in root.glob(f"*/{INFO}")):
      raise UserError(f"{root}: name a version, such as {versions[-1]}")
    options = {"streams": streams, "num_frames": num_frames, "need_flow": need_flow}
    return find_clips(root, split=split, **options)
  every = recorded_clips(Records(root, split), streams)
  found = [clip for clip in every if len(clip.blurry) >= num_frames]
  if short := [clip.name for clip in every if len(clip.blurry) < num_frames]:
    logging.warning("%s: %d clips skipped, too short: %s", root, len(short), ", ".join(short))
  if not found:
    raise UserError(f"{root}: no clip of {num_frames} frames or more; use another data set")
  if need_flow:
    for clip in found:
      check_flow(root, clip, num_frames)
  return found
