"""Writes PyTorch's zip format without PyTorch: files of a released layout for the tests."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vsr_jax.torch_pickle import DTYPES

_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
_ORDERED_DICT = b"ccollections\nOrderedDict\n"


def save_state_dict(path: str | Path, contents: Mapping[str, Any]) -> None:
  """Writes what `torch.load(path, weights_only=True)` reads.

  Args:
    path: the file to write.
    contents: arrays and plain values, in nested dicts where wanted.
  """
  storages: list[bytes] = []
  stream = pickle.PROTO + b"\x02" + _value(contents, storages) + pickle.STOP
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", stream)
    archive.writestr("archive/byteorder", "little")
    for i, data in enumerate(storages):
      archive.writestr(f"archive/data/{i}", data)
    archive.writestr("archive/version", "3\n")


def _value(value: Any, storages: list[bytes]) -> bytes:
  if isinstance(value, Mapping):
    items = b"".join(_value(k, storages) + _value(v, storages) for k, v in value.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
  if isinstance(value, np.ndarray):
    return _tensor(value, storages)
  return pickle.dumps(value, 2)[2:-1]  # without the opcodes that begin and end a pickle


def _tensor(array: np.ndarray, storages: list[bytes]) -> bytes:
  name = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
  key = str(len(storages))
  storages.append(array.tobytes())
  storage = (
    pickle.MARK
    + _value("storage", storages)
    + f"ctorch\n{name}\n".encode()
    + b"".join(_value(v, storages) for v in (key, "cpu", array.size))
    + pickle.TUPLE
    + pickle.BINPERSID
  )
  strides = tuple(int(np.prod(array.shape[i + 1 :], dtype=int)) for i in range(array.ndim))
  arguments = b"".join(_value(v, storages) for v in (0, array.shape, strides, False))
  hooks = _ORDERED_DICT + pickle.EMPTY_TUPLE + pickle.REDUCE
  return _TENSOR + pickle.MARK + storage + arguments + hooks + pickle.TUPLE + pickle.REDUCE
