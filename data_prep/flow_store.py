"""Flow labels on disk: those that `data_prep.flow_labels` makes, and the released ones.

  FOLDER/labels.json         how they were made, and the fields of `FlowRecords` by clip
  FOLDER/CLIP.array_record   one record per frame: float16 [neighbours h w 2], to its neighbours

The labels of clip set DIR lie in DIR/flow, those of a built data set's split in flow/SPLIT of its
folder. Only labels.json tells which labels exist; it is written last, so that a label that it
lists is complete.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from vsr_jax import json_files
from vsr_jax.data_prep import array_record
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.guards import TooLarge, read_bytes, remove_within
from vsr_jax.json_files import anything, fields, integer, mapping, number, plain_name, text

FOLDER = "flow"
INDEX = "labels.json"
ITEM = np.dtype("<f2")
_REMAKE = "remove the folder and make the labels again by python -m vsr_jax.data_prep.flow_labels"
_LABELS = fields(
  {
    "size": integer(1),
    "frames": integer(1, 10**7),
    "neighbours": integer(2, 1000),
    "height": integer(1, 2**16),
    "width": integer(1, 2**16),
    "error": number(0, 2**16),
  }
)
_SCHEMA = fields(
  {
    "origin": mapping(text, anything),
    "clips": mapping(plain_name, fields({"file": plain_name, "labels": _LABELS})),
  }
)
_NPY_HEADER = 1 << 16  # bytes at most


class Labels(Protocol):
  """The flow labels of one clip."""

  def serve(self, frames: int, num_frames: int, height: int, width: int) -> bool:
    """Whether there are labels for all windows of T frames of a clip of that length and size."""

  def read(self, centre: int, num_frames: int) -> np.ndarray:
    """Reads the labels of one window, from its centre frame to each frame.

    Returns:
      float32 [t h w 2], (dx, dy) in low-resolution pixels; zeros at the centre.

    Raises:
      UserError: a label cannot be read.
    """


@dataclasses.dataclass(frozen=True)
class FlowRecords:
  """The labels of a clip that `data_prep.flow_labels` made.

  Attributes:
    path: the file.
    size: the file's bytes.
    frames: number of records, one per frame of the clip.
    neighbours: labels per record, T - 1 for the longest window.
    height: h, in low-resolution pixels.
    width: w, in low-resolution pixels.
    error: the largest change by rounding to float16, in pixels.
  """

  path: str
  size: int
  frames: int
  neighbours: int
  height: int
  width: int
  error: float

  def serve(self, frames: int, num_frames: int, height: int, width: int) -> bool:
    if (self.frames, self.height, self.width) != (frames, height, width):
      return False
    try:
      whole = os.path.getsize(self.path) == self.size
    except FileNotFoundError:
      return False
    return whole and self.neighbours >= num_frames - 1

  def read(self, centre: int, num_frames: int) -> np.ndarray:
    n, middle = num_frames // 2, self.neighbours // 2  # the labels may be for longer windows
    shape = self.neighbours, self.height, self.width, 2
    try:
      data = array_record.read_verified(self.path, centre, math.prod(shape) * ITEM.itemsize)
    except UserError as e:
      raise UserError(
        f"{e}: remove that file, then run python -m vsr_jax.data_prep.flow_labels"
      ) from e
    labels = np.frombuffer(data, ITEM).reshape(shape)
    if not np.isfinite(labels).all():
      raise UserError(f"{self.path}: flow that is not finite; {_REMAKE}")
    flow = np.zeros((num_frames, self.height, self.width, 2), np.float32)
    flow[:n] = labels[middle - n : middle]
    flow[n + 1 :] = labels[middle : middle + n]
    return flow


@dataclasses.dataclass(frozen=True)
class ReleasedFlow:
  """Labels in the layout FMA-Net released: `<centre>_<neighbour>.npy`, float32 [h w 2].

  Attributes:
    folder: the folder of the clip's labels.
    names: file names of the clip's frames, without suffix.
    height: h, in low-resolution pixels.
    width: w, in low-resolution pixels.
  """

  folder: pathlib.Path
  names: tuple[str, ...]
  height: int
  width: int

  def serve(self, frames: int, num_frames: int, height: int, width: int) -> bool:
    n = num_frames // 2
    return (len(self.names), self.height, self.width) == (frames, height, width) and all(
      self._path(centre, centre + offset).exists()
      for centre in range(n, frames - n)
      for offset in offsets(num_frames)
    )

  def read(self, centre: int, num_frames: int) -> np.ndarray:
    flow = np.zeros((num_frames, self.height, self.width, 2), np.float32)
    for offset in offsets(num_frames):
      path = self._path(centre, centre + offset)
      try:
        flow[num_frames // 2 + offset] = _read_npy(path, (self.height, self.width, 2))
      except (OSError, TooLarge, ValueError) as e:
        raise UserError(f"{path}: cannot read this flow label ({e}); get it again") from e
    return flow

  def _path(self, centre: int, neighbour: int) -> pathlib.Path:
    return self.folder / f"{self.names[centre]}_{self.names[neighbour]}.npy"


def _read_npy(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Reads a .npy file; `ValueError` unless it holds finite float numbers of that shape."""
  data = read_bytes(path, math.prod(shape) * 8 + _NPY_HEADER)
  file = io.BytesIO(data)
  try:
    version = np.lib.format.read_magic(file)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    found, by_columns, dtype = read[version[0]](file)
  except Exception as e:  # NumPy parses the header as Python code, so anything can be raised
    raise ValueError("not an array of NumPy's") from e
  if found != shape or by_columns or dtype.kind != "f":
    raise ValueError(f"{dtype} {list(found)} instead of float32 {list(shape)}")
  values = data[file.tell() :]
  if len(values) != math.prod(shape) * dtype.itemsize:
    raise ValueError("cut short, or longer than it says")
  array = np.frombuffer(values, dtype).reshape(shape)
  if not np.isfinite(array).all():
    raise ValueError("has numbers that are not finite")
  return array


def offsets(num_frames: int) -> list[int]:
  """Offsets of the neighbours from the centre, as stored: -N..-1, 1..N for T = 2N + 1."""
  n = num_frames // 2
  return [i for i in range(-n, n + 1) if i != 0]


def open_labels(folder: pathlib.Path) -> dict[str, FlowRecords]:
  """Opens the labels in a folder, by clip; an empty dict if there is no such folder.

  Raises:
    UserError: the index is damaged.
  """
  return {
    name: FlowRecords(path=str(folder / entry["file"]), **entry["labels"])
    for name, entry in _read_index(folder)["clips"].items()
  }


def check_origin(folder: pathlib.Path, origin: Mapping[str, Any]) -> None:
  """Records in a folder's index how its labels are made, so that no others are mixed with them.

  Raises:
    UserError: the folder has labels that were made in another way.
  """
  index = _read_index(folder)
  if index["clips"] and index["origin"] != origin:
    raise UserError(
      f"{folder}: has labels made otherwise ({index['origin']}); remove the folder first"
    )
  _write_index(folder, {**index, "origin": dict(origin)})


def write_labels(
  folder: pathlib.Path, name: str, labels: Iterable[np.ndarray], num_frames: int
) -> FlowRecords:
  """Writes a clip's labels, in place of older ones.

  Args:
    folder: where labels are kept; it must exist.
    name: the clip's name.
    labels: for each frame float32 [T-1 h w 2], at `offsets`, in pixels; at least one frame.
    num_frames: T.

  Raises:
    UserError: a label is not finite, or too large for float16.
    OSError: the labels cannot be written; older ones are unchanged.
  """
  path = folder / _file_name(name)
  frames, error = 0, 0.0
  with array_record.writing(str(path)) as write:
    for label in labels:
      with np.errstate(over="ignore"):
        rounded = label.astype(ITEM)
      if not np.isfinite(rounded).all():
        raise UserError(
          f"clip {name}: the flow of frame {frames} is not finite or above {np.finfo(ITEM).max:g} "
          "pixels; look at the frame and at the weights"
        )
      error = max(error, float(np.abs(rounded - label, dtype=np.float32).max()))
      write(rounded.tobytes())
      frames += 1
  neighbours, height, width, _ = label.shape
  assert neighbours == num_frames - 1
  size = path.stat().st_size
  made = FlowRecords(str(path), size, frames, neighbours, height, width, error)
  entry = dataclasses.asdict(made)
  del entry["path"]
  index = _read_index(folder)
  index["clips"][name] = {"file": path.name, "labels": entry}
  _write_index(folder, index)
  return made


def drop_labels(folder: pathlib.Path, name: str) -> None:
  """Removes a clip's labels, if it has any."""
  index = _read_index(folder)
  if index["clips"].pop(name, None):
    _write_index(folder, index)
    remove_within(folder.parent, folder / _file_name(name))


def _file_name(clip: str) -> str:
  return f"{clip}.array_record"


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / INDEX
  try:
    index = json_files.load(path, _SCHEMA, remedy=_REMAKE)
  except FileNotFoundError:
    return {"origin": {}, "clips": {}}
  for clip, entry in index["clips"].items():
    if entry["file"] != _file_name(clip):  # no other file may be read or removed
      raise UserError(f"{path}: the labels of clip {clip} are in {entry['file']}; {_REMAKE}")
  return index


def _write_index(folder: pathlib.Path, index: Mapping[str, Any]) -> None:
  write_whole(folder / INDEX, json.dumps(index, indent=1) + "\n")
