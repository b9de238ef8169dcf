"""Clips of a data set built by `data_prep.build`, read at random; needs no TensorFlow.

  source = open_records("reds/x4", "data", "train")
  clip = source[5]
  image = decode(clip.frames["sharp"][17])

The files are array_record files in TFDS's layout, so that `tfds.data_source` reads them too, whole
clips at a time; here only the frames asked for are read.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import numpy as np

from data_prep import flow_store, record_files
from data_prep.record_files import Span
from vsr_jax.errors import UserError
from vsr_jax.images import decode_image

FORMAT = "array_record"
INFO = "dataset_info.json"  # TFDS's, which tells a built data set's folder
INDEX = "clips.json"  # beside the shards, by split: `clips` in the records' order, `skipped`


class Frames(Sequence[bytes]):
  """A stream's encoded frames, PNG or JPEG; one is read when it is asked for."""

  def __init__(self, spans: Sequence[Span]):
    self._spans = spans

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [span.read() for span in self._spans[index]]
    return self._spans[index].read()


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip; frame i of every stream belongs together.

  Attributes:
    name: unique within its split.
    fps: frames a second; 0 if unknown.
    num_frames: n.
    landmarks: float32 [n 5 2]: eyes, nose and mouth's corners, (x, y) in pixels of the sharp
      frames; [0 5 2] where there are none.
    frames: encoded frames by stream; a stream may be empty, such as the truth of a test set.
  """

  name: str
  fps: float
  num_frames: int
  landmarks: np.ndarray
  frames: Mapping[str, Sequence[bytes]]


class Records:
  """The clips of one split: a random-access source in Grain's sense.

  Attributes:
    clips: by clip, in order, what its index says: name, frames (their number), fps, sizes
      ((height, width) by stream), bytes. No record is read for it.
    skipped: name and reason of each clip that was left out when the set was built.
    streams: the names of the streams.
    folder: of the data set.
    flow_folder: where its flow labels are kept.
  """

  def __init__(self, folder: pathlib.Path, split: str):
    self.folder = folder
    self.flow_folder = folder / flow_store.FOLDER / split
    info, index = _read_json(folder / INFO), _read_json(folder / INDEX)
    splits = {entry["name"]: entry for entry in info["splits"]}
    if split not in splits:
      raise UserError(f"{folder}: has no split {split}, only {', '.join(sorted(splits))}")
    self.clips: list[dict] = index[split]["clips"]
    self.skipped: list[dict] = index[split]["skipped"]
    self.streams = tuple(index[split]["streams"])
    lengths = [int(length) for length in splits[split]["shardLengths"]]
    self._places = [
      (str(folder / shard_name(info["name"], split, i, len(lengths))), k)
      for i, length in enumerate(lengths)
      for k in range(length)
    ]
    if len(self._places) != len(self.clips):
      raise UserError(f"{folder / INDEX}: of another data set; build it again")

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: SupportsIndex) -> Clip:
    path, position = self._places[index]
    features = record_files.parse_example(record_files.record(path, position))
    frames = {stream: Frames(features[stream]) for stream in self.streams}
    return Clip(
      name=features["name"][0].read().decode(),
      fps=float(features["fps"][0]),
      num_frames=int(features["num_frames"][0]),
      landmarks=features["landmarks"].reshape(-1, 5, 2),
      frames=frames,
    )

  def flow(self) -> dict[str, flow_store.FlowRecords]:
    """Flow labels by clip, those that `data_prep.flow_labels` made for this split so far."""
    return flow_store.open_labels(self.flow_folder)

  def __repr__(self) -> str:
    # Grain compares it when it restores an iterator.
    first = pathlib.Path(self._places[0][0])
    return f"Records({first.parent.as_posix()!r}, {first.name.partition('.')[0]!r})"


def open_records(name: str, data_dir: str | pathlib.Path, split: str) -> Records:
  """Opens a split of a built data set.

  Args:
    name: data set and variant, such as "reds/x4"; the variant may be left out if one is there.
    data_dir: the folder it was built in.
    split: such as "train".

  Raises:
    UserError: there is no such set or split, or it is not whole.
  """
  return Records(find_folder(name, data_dir), split)


def find_folder(name: str, data_dir: str | pathlib.Path) -> pathlib.Path:
  """The folder of the newest version of a built data set; see `open_records`."""
  root = pathlib.Path(data_dir)
  found = {}
  pattern = f"{name}/*" if "/" in name else f"{name}/*/*"
  for path in root.glob(f"{pattern}/{INFO}"):
    if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name):
      version = tuple(map(int, path.parent.name.split(".")))
      found.setdefault(path.parent.parent.name, {})[version] = path.parent
  if not found:
    raise UserError(f"{root}: no data set {name}; make it by python -m data_prep.build")
  if len(found) > 1:
    variants = ", ".join(f"{name}/{variant}" for variant in sorted(found))
    raise UserError(f"{root}: several variants of {name}; name one: {variants}")
  (versions,) = found.values()
  return versions[max(versions)]


def splits(folder: pathlib.Path) -> list[str]:
  """The names of a built data set's splits, from `find_folder`."""
  return [entry["name"] for entry in _read_json(folder / INFO)["splits"]]


def decode(data: bytes) -> np.ndarray:
  """Decodes a frame: uint8 [h w 3], RGB.

  Raises:
    UserError: it is damaged, or see `decode_image`.
  """
  return decode_image(data, "a frame", damaged="cannot be decoded; build the data set again")


def shard_name(dataset: str, split: str, shard: int, shards: int) -> str:
  """The name of a split's file, as TFDS has it."""
  return f"{dataset}-{split}.{FORMAT}-{shard:05d}-of-{shards:05d}"


def _read_json(path: pathlib.Path) -> dict:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(
      f"{path}: missing; the data set is not one of python -m data_prep.build"
    ) from None
  except ValueError as e:
    raise UserError(f"{path}: damaged ({e}); build the data set again") from e
