"""Clips of a data set built by `data_prep.build`, read at random; needs no TensorFlow.

  source = open_records("reds/x4", "data", "train")
  image = source[5].decode("sharp", 17)

The files are array_record files in TFDS's layout, so that `tfds.data_source` reads them too, whole
clips at a time; here only the frames asked for are read.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np

from vsr_jax import json_files
from vsr_jax.data_prep import array_record, flow_store
from vsr_jax.data_prep.array_record import Span
from vsr_jax.data_prep.clip import Clip
from vsr_jax.errors import UserError
from vsr_jax.guards import is_name
from vsr_jax.json_files import BadJson, array, fields, integer, mapping, number, plain_name, text

FORMAT = "array_record"
INFO = "dataset_info.json"  # TFDS's file, by which the folder of a built data set is recognised
_POINTS = 10  # numbers per frame that landmarks have, more than any other feature
_FARTHEST = 1e6  # pixels: the largest coordinate of a landmark
INDEX = "clips.json"  # beside the shards, by split: `clips` in the records' order, `skipped`


def _check_count_text(value: Any, where: str) -> None:
  """Schema: a count as text, of at most 6 digits: protocol buffers' JSON writes int64 so."""
  text(value, where, longest=6)
  if not (value.isascii() and value.isdecimal()):
    raise BadJson(f"{where} is no number")


_SIZE = array(integer(1, 2**16), 2, 2)  # height, width
BUILT_CLIP = fields(
  {
    "name": plain_name,
    "frames": integer(1, 10**7),
    "fps": number(0, 1e6),
    "sizes": mapping(plain_name, _SIZE),
    "bytes": integer(),
  },
  {"landmarks_crc32": integer(0, 2**32 - 1)},
)
SKIPPED_CLIP = fields({"name": text, "reason": text})
_BUILT_SPLIT = fields(
  {
    "clips": array(BUILT_CLIP, 1),
    "skipped": array(SKIPPED_CLIP),
    "streams": array(plain_name, 1, 100),
  }
)
_BUILT_SET = mapping(plain_name, _BUILT_SPLIT)  # which the index of a clip set does not match
_INFO = fields(
  {
    "name": plain_name,
    "splits": array(
      fields({"name": plain_name, "shardLengths": array(_check_count_text, 1)}, more=True), 1, 100
    ),
  },
  more=True,
)


class Record(NamedTuple):
  """The spans of a clip's frames by stream, and its landmarks, float32 [n 5 2] or [0 5 2]."""

  streams: Mapping[str, list[Span]]
  landmarks: np.ndarray


class Records:
  """The clips of one split: a random-access source in Grain's sense.

  Attributes:
    clips: the index's entry of each clip, in order: name, frames (their number), fps, sizes
      ((height, width) by stream), bytes (of the record). No record is read for it.
    skipped: name and reason of each clip that was left out when the set was built.
    streams: the names of the streams.
    folder: the data set's folder.
    flow_folder: the folder of the split's flow labels.
  """

  def __init__(self, folder: pathlib.Path, split: str):
    self.folder = folder
    self.flow_folder = folder / flow_store.FOLDER / split
    info, index = _read_json(folder / INFO, _INFO), _read_json(folder / INDEX, _BUILT_SET)
    splits = {entry["name"]: entry for entry in info["splits"]}
    if split not in splits or split not in index:
      raise UserError(f"{folder}: has no split {split}, only {', '.join(sorted(splits))}")
    self.clips: list[dict] = index[split]["clips"]
    self.skipped: list[dict] = index[split]["skipped"]
    self.streams = tuple(index[split]["streams"])
    lengths = [int(length) for length in splits[split]["shardLengths"]]
    if sum(lengths) != len(self.clips):
      raise UserError(f"{folder / INDEX}: belongs to another data set; build it again")
    self._places = [
      (str(folder / shard_name(info["name"], split, i, len(lengths))), k)
      for i, length in enumerate(lengths)
      for k in range(length)
    ]

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: SupportsIndex) -> Clip:
    """Returns a clip; its record is read when a frame or its landmarks are asked for."""
    i = range(len(self))[index]
    entry = self.clips[i]
    sizes = {s: tuple(entry["sizes"][s]) for s in self.streams if s in entry["sizes"]}
    lengths = {s: entry["frames"] if s in sizes else 0 for s in self.streams}
    return Clip(
      name=entry["name"],
      length=entry["frames"],
      streams={s: RecordStream(self, i, s, length) for s, length in lengths.items()},
      rate=entry["fps"],
      sizes=sizes,
      landmarks=RecordLandmarks(self, i),
      flow=self.labels.get(entry["name"]),
    )

  def read(self, index: int) -> Record:
    """Reads a clip's record except its frames.

    Raises:
      UserError: the record is damaged, or does not match the index.
    """
    path, position = self._places[index]
    entry = self.clips[index]
    record = array_record.record(path, position)
    features = array_record.parse_example(record, most=_POINTS * entry["frames"])
    try:
      return _checked(features, entry, self.streams)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
      raise UserError(
        f"{path}: record {position} is not the clip {entry['name']}; build the data set again"
      ) from e

  @functools.cached_property
  def labels(self) -> dict[str, flow_store.FlowRecords]:
    """Flow labels by clip, those that `data_prep.flow_labels` had made when this was opened."""
    return flow_store.open_labels(self.flow_folder)

  def __repr__(self) -> str:
    # Grain compares this text when it restores an iterator.
    first = pathlib.Path(self._places[0][0])
    return f"Records({first.parent.as_posix()!r}, {first.name.partition('.')[0]!r})"


@functools.lru_cache(maxsize=4)
def _read(records: Records, clip: int) -> Record:
  """`Records.read`, cached: it takes milliseconds, and a window asks for several frames."""
  return records.read(clip)


@dataclasses.dataclass(frozen=True)
class RecordStream(Sequence[bytes]):
  """The encoded frames of one stream of a clip; one is read when it is asked for.

  Attributes:
    records: the split that has the clip.
    clip: its index there.
    stream: the stream's name.
    length: number of frames.
  """

  records: Records
  clip: int
  stream: str
  length: int

  def __len__(self) -> int:
    return self.length

  @overload
  def __getitem__(self, index: int) -> bytes: ...
  @overload
  def __getitem__(self, index: slice) -> list[bytes]: ...
  def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
    picked = range(self.length)[index]  # IndexError without reading
    spans = _read(self.records, self.clip).streams[self.stream]
    return spans[picked].read() if isinstance(picked, int) else [spans[i].read() for i in picked]


@dataclasses.dataclass(frozen=True)
class RecordLandmarks:
  """The landmarks of a clip, by frame float32 [5 2], read when they are asked for.

  Attributes:
    records: the split that has the clip.
    clip: its index there.
  """

  records: Records
  clip: int

  def __len__(self) -> int:
    return len(_read(self.records, self.clip).landmarks)

  def __getitem__(self, index: int | slice) -> np.ndarray:
    return _read(self.records, self.clip).landmarks[index]


def _checked(
  features: Mapping[str, Any], entry: Mapping[str, Any], streams: Sequence[str]
) -> Record:
  """Makes a `Record` of an example; raises one of several errors if the index does not match it."""
  if not all(isinstance(features[stream], list) for stream in streams):
    raise TypeError
  name, points = features["name"][0].read().decode(), features["landmarks"].reshape(-1, 5, 2)
  n = entry["frames"]
  lengths = [n if stream in entry["sizes"] else 0 for stream in streams]
  checksum = zlib.crc32(np.ascontiguousarray(points).data)
  if not (
    (name, int(features["num_frames"][0])) == (entry["name"], n)
    and float(features["fps"][0]) == np.float32(entry["fps"])
    and [len(features[stream]) for stream in streams] == lengths
    and points.dtype == np.float32
    and len(points) in (0, n)
    and (np.abs(points) < _FARTHEST).all()
    and entry.get("landmarks_crc32", checksum) == checksum
  ):
    raise ValueError
  return Record({stream: features[stream] for stream in streams}, points)


def open_records(name: str, data_dir: str | pathlib.Path, split: str) -> Records:
  """Opens a split of a built data set.

  Args:
    name: data set and variant, such as "reds/x4"; the variant may be left out if there is only one.
    data_dir: the folder in which it was built.
    split: its name, such as "train".

  Raises:
    UserError: there is no such set or split, or it is incomplete.
  """
  return Records(find_folder(name, data_dir), split)


def find_folder(name: str, data_dir: str | pathlib.Path) -> pathlib.Path:
  """Finds the folder of the newest version of a built data set; arguments as `open_records`."""
  root = pathlib.Path(data_dir)
  if not all(map(is_name, name.split("/"))) or name.count("/") > 1:
    raise UserError(f"{name!r}: not the name of a data set; give one such as reds/x4")
  found = {}
  pattern = f"{name}/*" if "/" in name else f"{name}/*/*"
  for path in root.glob(f"{pattern}/{INFO}"):
    if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name):
      version = tuple(map(int, path.parent.name.split(".")))
      found.setdefault(path.parent.parent.name, {})[version] = path.parent
  if not found:
    raise UserError(f"{root}: no data set {name}; make it by python -m vsr_jax.data_prep.build")
  if len(found) > 1:
    variants = ", ".join(f"{name}/{variant}" for variant in sorted(found))
    raise UserError(f"{root}: several variants of {name}; name one: {variants}")
  (versions,) = found.values()
  return versions[max(versions)]


def splits(folder: pathlib.Path) -> list[str]:
  """The names of the splits of a built data set whose folder is from `find_folder`."""
  return [entry["name"] for entry in _read_json(folder / INFO, _INFO)["splits"]]


def shard_name(dataset: str, split: str, shard: int, shards: int) -> str:
  """The file name of one shard of a split, as TFDS has it."""
  return f"{dataset}-{split}.{FORMAT}-{shard:05d}-of-{shards:05d}"


def _read_json(path: pathlib.Path, schema: json_files.Schema) -> dict:
  try:
    return json_files.load(path, schema, remedy="build the data set again")
  except FileNotFoundError:
    raise UserError(
      f"{path}: missing; the data set is not one of python -m vsr_jax.data_prep.build"
    ) from None
