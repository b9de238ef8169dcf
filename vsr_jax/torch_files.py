"""Reads PyTorch's weight files (.pt, .pth) as NumPy arrays, without PyTorch.

PyTorch as the package index serves it brings several gigabytes of CUDA
libraries along, much for reading a file of 4 MB. A weight file is a pickle, and
a pickle can run any code: only tensors and plain containers are admitted here
(see `torch_pickle`), and no more is read or allocated than the file itself holds.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vsr_jax import guards, paths, torch_pickle
from vsr_jax.errors import UserError
from vsr_jax.pickle_machine import CodeError
from vsr_jax.torch_pickle import Storage, Tensor

# The first pickle of a file written before PyTorch 1.6, or on request since.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_MAX_DEPTH = 50  # of nested containers
_MAX_DIRECTORY = 2**22  # bytes of a zip's list of contents: some 40,000 names


def load(path: str | Path) -> dict[str, Any]:
  """Reads a file written by `torch.save`, in the zip format or the older one.

  Args:
    path: the file; it must hold a dict.

  Returns:
    The dict, with dicts, lists, numbers and strings as they are and every tensor
    as a read-only array of its dtype (bfloat16 as ml_dtypes has it). Names are printable
    strings, or numbers.

  Raises:
    UserError: the file is missing, truncated, no PyTorch file, or holds anything
      but tensors and plain values. Nothing of it has been run then.
  """
  with guards.reading(path, "PyTorch file", "a .pt or .pth file"), open_regular(path) as file:
    zipped = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    try:
      contents = _read_zip(path, file) if zipped else _read_legacy(path, file)
    except CodeError as e:
      raise UserError(
        f"{path} holds code that is not a plain tensor file's ({e}), refused; "
        "save only the state dict"
      ) from None
  if not isinstance(contents, dict):
    raise UserError(f"{path} holds a {type(contents).__name__}; give a file with a state dict")
  return contents


def open_regular(path: str | Path) -> BinaryIO:
  """Opens a file for reading, without waiting for a writer where it is a pipe.

  One in a bucket (gs://) is copied to a temporary file, which ends with its use.

  Raises:
    OSError: there is no such file, or it cannot be read.
    UserError: it is a pipe or a device, which cannot be read at any position; or its bucket cannot
      be used.
  """
  if paths.in_bucket(path):
    return paths.open_copy(paths.place(path))
  mode = os.stat(path).st_mode
  if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
    raise UserError(f"{path} is a pipe or a device; give a file")
  return open(path, "rb")


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
  """Opens a zip file for reading whose list of contents is no longer than a weight file needs.

  Raises:
    ValueError: the list is longer.
    zipfile.BadZipFile: it is no zip file.
  """
  bounded = _Bounded(file)
  archive = zipfile.ZipFile(bounded)
  bounded.limit = sys.maxsize
  return archive


def unwrap(
  contents: Mapping[str, Any], wrappers: Sequence[str] = ("state_dict",), source: str = "file"
) -> dict[str, np.ndarray]:
  """Finds the state dict in what `load` returned.

  Args:
    contents: a bare state dict, or a dict that holds it under one of `wrappers`.
    wrappers: the names to look for, the preferred first.
    source: the file, for the error.

  Returns:
    Tensor by key, without the "module." that data-parallel training puts before every key.

  Raises:
    UserError: the state dict is empty or holds something else than tensors.
  """
  name = next((n for n in wrappers if isinstance(contents.get(n), Mapping)), None)
  state = contents if name is None else contents[name]
  strangers = [
    str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, np.ndarray))
  ]
  if strangers or not state:
    raise UserError(
      f"{source} is no state dict: holds {', '.join(strangers[:5]) or 'nothing'}; "
      f"give one with tensors, bare or under {' or '.join(wrappers)}"
    )
  prefixed = all(key.startswith("module.") for key in state)
  return {key.removeprefix("module.") if prefixed else key: v for key, v in state.items()}


def _read_zip(path: str | Path, file: BinaryIO) -> Any:
  with open_zip(file) as archive:
    names = archive.namelist()
    pickles = [n for n in names if n.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise UserError(f"{path} is a zip file, but not PyTorch's; give a .pt or .pth file")
    if len(set(names)) < len(names):
      raise ValueError("several entries of one name")
    # A crafted file could have entries that share their bytes.
    if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
      raise ValueError("its entries are larger than the file")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in names:
      _check_order(path, _entry(archive, f"{folder}byteorder", 16) == b"little")
    tree, storages = torch_pickle.read(
      io.BytesIO(_entry(archive, pickles[0], torch_pickle.MAX_BYTES))
    )
    data: dict[str, bytes] = {}
    for storage in storages.values():
      name = f"{folder}data/{storage.key}"
      _check_length(storage, archive.getinfo(name).file_size)
      data[storage.key] = _entry(archive, name, storage.nbytes)
  return _Arrays(data).fill(tree)


class _Bounded:
  """A file for `zipfile`, which reads the list of contents at once: larger reads are refused."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.tell, self.seek, self.seekable = file.tell, file.seek, file.seekable
    self.limit = _MAX_DIRECTORY

  def read(self, size: int = -1) -> bytes:
    if size > self.limit:
      raise ValueError("too long a list of contents")
    return self._file.read(size)


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
  """Reads a zip's uncompressed entry of at most `limit` bytes."""
  entry = archive.getinfo(name)
  if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
    raise ValueError("its contents are compressed, which PyTorch does not do")
  if entry.file_size > limit:
    raise ValueError(f"{guards.shorten(name)} has more than {limit} bytes")
  return archive.read(entry)


def _read_legacy(path: str | Path, file: BinaryIO) -> Any:
  """Reads the older format: pickles of a magic number, version, machine, object, storage keys."""
  stream = io.BytesIO(file.read(torch_pickle.MAX_BYTES))
  if torch_pickle.read(stream)[0] != LEGACY_MAGIC:
    raise UserError(f"{path} is no PyTorch file; give a .pt or .pth file")
  torch_pickle.read(stream)  # the version, 1001 since there are releases
  machine, _ = torch_pickle.read(stream)
  _check_order(path, machine["little_endian"])
  tree, storages = torch_pickle.read(stream)
  keys, _ = torch_pickle.read(stream)
  position, size = stream.tell(), os.fstat(file.fileno()).st_size
  data: dict[str, bytes] = {}
  for key in keys:
    file.seek(position)
    storage = storages.pop(key)  # a key that comes twice raises
    _check_length(storage, int.from_bytes(file.read(8), "little") * storage.dtype.itemsize)
    position += 8 + storage.nbytes
    if position > size:
      raise ValueError("it ends too soon")
    data[key] = file.read(storage.nbytes)
  return _Arrays(data).fill(tree)


def _check_order(path: str | Path, little: bool) -> None:
  if not little:
    raise UserError(f"{path} is big-endian; save it again on a little-endian machine")


def _check_length(storage: Storage, there: int) -> None:
  if there != storage.nbytes:
    key = guards.shorten(storage.key)
    raise ValueError(f"storage {key} has {there} bytes of {storage.nbytes}")


class _Arrays:
  """Replaces the tensors in a tree by arrays; shared objects are done once and stay shared."""

  def __init__(self, data: Mapping[str, bytes]):
    self._data = data
    self._done: dict[int, Any] = {}

  def fill(self, tree: Any, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
      raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    if id(tree) in self._done:
      return self._done[id(tree)]
    made: np.ndarray | dict[Any, Any] | list[Any] | tuple[Any, ...]
    if isinstance(tree, Tensor):
      storage = tree.storage
      size = storage.dtype.itemsize
      strides = [step * size for step in tree.strides]
      data = self._data[storage.key]
      made = np.ndarray(tree.shape, storage.dtype, data, tree.offset * size, strides)
    elif isinstance(tree, dict):
      made = {key: self.fill(value, depth + 1) for key, value in tree.items()}
    elif isinstance(tree, list | tuple):
      made = type(tree)([self.fill(value, depth + 1) for value in tree])
    elif tree is None or isinstance(tree, str | bytes | int | float):
      return tree
    else:
      raise ValueError(f"a {type(tree).__name__} among its values")
    self._done[id(tree)] = made
    return made
