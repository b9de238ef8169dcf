"""Reads the pickles inside PyTorch's files as data, without running code: see `pickle_machine`.

They hold plain values and descriptions of tensors, whose numbers stand elsewhere in the file.
"""

from __future__ import annotations

import io
import math
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from vsr_jax.guards import shorten
from vsr_jax.pickle_machine import Machine, Name, checked_size, checked_type

DTYPES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(jnp.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}

MAX_BYTES = 2**24  # of a pickle
_MAX_TENSORS = 20_000
_MAX_DIMENSIONS = 16
# Several tensors may be views of one storage, but a crafted file could make their copies huge: all
# tensors together take at most so many times the bytes of the storages, and so many bytes more.
_MAX_SHARING, _SMALL = 4, 2**20


class Storage(NamedTuple):
  """Describes a flat array in the file, which is not read yet."""

  dtype: np.dtype
  key: str
  length: int  # in elements

  @property
  def nbytes(self) -> int:
    return self.length * self.dtype.itemsize


class Tensor(NamedTuple):
  """Describes a tensor, a view within its storage; offset and strides count elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
  """Reads the pickle at the stream's position, and leaves the position after it.

  Args:
    stream: the pickle, within at most `MAX_BYTES` bytes, and whatever follows it.

  Returns:
    The value, see `Machine.run`, with `Tensor`s; and the storages by key.

  Raises:
    CodeError: the pickle names something that is not admitted; the text is that name.
    ValueError, or any other exception that meaningless bytes lead to: the pickle is damaged, or
      asks for more than a weight file needs.
  """
  machine = _TorchMachine()
  value = machine.run(stream)
  tensors = sum(math.prod(x.shape) * x.storage.dtype.itemsize for x in machine.tensors)
  storages = sum(storage.nbytes for storage in machine.storages.values())
  if tensors > _MAX_SHARING * storages + _SMALL:
    raise ValueError(f"tensors of {tensors} bytes in storages of {storages}")
  return value, machine.storages


class _TorchMachine(Machine):
  admitted: ClassVar[set[tuple[str, str]]] = {
    *Machine.admitted,
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", name) for name in DTYPES),
  }

  def __init__(self):
    super().__init__()
    self.storages: dict[str, Storage] = {}
    self.tensors: list[Tensor] = []

  def call(self, name: str, arguments: tuple) -> Any:
    match name:
      case "Size":
        return checked_type(arguments[0], tuple)
      case "device":
        kind, *number = arguments[:2]
        return ":".join([checked_type(kind, str), *(str(checked_size(n)) for n in number)])
      case "_rebuild_tensor_v2":
        return self._tensor(*arguments[:4])
      case "_rebuild_parameter":
        return checked_type(arguments[0], Tensor)
    return super().call(name, arguments)

  def refer(self, reference: tuple) -> Storage:
    pid = reference
    if not 5 <= len(pid) <= 6 or pid[0] != "storage" or pid[5:] not in ((), (None,)):
      raise ValueError("unknown reference")  # the sixth: views, in files older than PyTorch 0.4
    dtype = DTYPES[checked_type(pid[1], Name).name]
    storage = Storage(dtype, checked_type(pid[2], str), checked_size(pid[4]))
    if self.storages.setdefault(storage.key, storage) != storage:
      raise ValueError(f"storage {shorten(storage.key)} has two types or lengths")
    return storage

  def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    storage, offset = checked_type(storage, Storage), checked_size(offset)
    shape, strides = checked_type(shape, tuple), checked_type(strides, tuple)
    if len(shape) > _MAX_DIMENSIONS or len(shape) != len(strides):
      raise ValueError(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
    shape, strides = tuple(map(checked_size, shape)), tuple(map(checked_size, strides))
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # In an expanded tensor the same elements come again and again.
    if size > storage.length or (size and last >= storage.length):
      raise ValueError(f"a tensor that is larger than its storage of {storage.length} elements")
    tensor = Tensor(storage, offset if size else 0, shape, strides)
    self.tensors.append(tensor)
    if len(self.tensors) > _MAX_TENSORS:
      raise ValueError(f"more than {_MAX_TENSORS} tensors")
    return tensor
