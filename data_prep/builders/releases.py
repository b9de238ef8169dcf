"""Data sets as downloaded: clips whose frames are in zips or folders."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping

import numpy as np

from vsr_jax.data_prep import meta_info
from vsr_jax.data_prep.folders import BadClip, FileStream, read_file
from vsr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ReleasedClip:
  """A clip of a release: where its files are and what is known of it beforehand.

  Attributes:
    name: unique within its split.
    rate: frames per second; 0 if the data set does not state it.
    streams: frames by stream, those that `derived` names among them.
    length: number of frames that it should have; None if unknown.
    size: (height, width) that frames of a stream should have, by stream, where it is known.
    ratios: whole factor by which the first stream of a pair is larger than the second.
    derived: streams to be made from others by MATLAB's bicubic reduction, by a whole factor.
    kept: streams to be written; empty for all. The others are only sources of derived ones.
    landmarks: the text file, in a zip or folder, with the five points by frame.
  """

  name: str
  rate: float
  streams: Mapping[str, FileStream]
  length: int | None = None
  size: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  ratios: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)
  derived: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
  kept: tuple[str, ...] = ()
  landmarks: tuple[pathlib.Path, str] | None = None


@dataclasses.dataclass(frozen=True)
class TextLandmarks:
  """Landmarks in a text file, float32 [5 2] per frame; the file is read when they are asked for.

  Attributes:
    source: the zip or folder that holds the file.
    path: the file within it.
    names: file names of the clip's frames.
  """

  source: pathlib.Path
  path: str
  names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int | slice) -> np.ndarray:
    try:
      return _parsed(self)[1][index]
    except BadClip as e:
      raise UserError(f"{e}; get or make the file again") from e


def pair_streams(found: Mapping[str, Mapping[str, FileStream]]) -> dict[str, dict[str, FileStream]]:
  """Turns clips by stream into streams by clip, sorted by name.

  A stream that a clip lacks becomes one without frames, which `reading.read_clip` reports.
  """
  names = sorted({name for clips in found.values() for name in clips})
  none = {stream: FileStream(pathlib.Path(stream), "", ()) for stream in found}
  return {
    name: {stream: clips.get(name, none[stream]) for stream, clips in found.items()}
    for name in names
  }


def check_complete(
  source: pathlib.Path, found: Collection[str], expected: Collection[str], origin: str
) -> None:
  """Raises UserError if clips are missing, as they are from a half-extracted archive."""
  if missing := sorted(set(expected) - set(found)):
    some = " ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
    raise UserError(
      f"{source}: {len(missing)} of {len(expected)} clips are missing ({some}); extract the "
      f"archive again, get it from {origin}, or use what is there with --partial"
    )


def read_landmarks(landmarks: TextLandmarks) -> tuple[float, np.ndarray]:
  """Reads a landmarks file, without a cache.

  Returns:
    Frames per second, 0 if the file does not state them, and float32 [n 5 2].

  Raises:
    BadClip: the file is missing or damaged, or lacks a frame.
  """
  path = landmarks.source / landmarks.path
  try:
    meta = meta_info.parse_clip(read_file(landmarks.source, landmarks.path).decode(), path)
  except UnicodeDecodeError as e:
    raise BadClip(f"{path} is not a text ({e})") from e
  except UserError as e:
    raise BadClip(str(e)) from e
  if missing := [name for name in landmarks.names if name not in meta.landmarks]:
    raise BadClip(f"{path} has no landmarks of frame {missing[0]}")
  return meta.fps, np.stack([meta.landmarks[name] for name in landmarks.names])


_parsed = functools.lru_cache(maxsize=4)(read_landmarks)  # once for all frames of a clip
