"""Reads the pickles inside PyTorch's files as data, without running code.

A pickle is a program for a machine with a stack. Python's own machine can call anything and asks
for as much memory as the program wants; this one knows the few operations that `torch.save` writes,
builds only plain values and descriptions of tensors, and limits the number of operations.
"""

from __future__ import annotations

import io
import math
import pickletools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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

# KEEP's 1,500 tensors take 60,000 operations and 0.3 MB; with the optimizer's three times as many.
MAX_BYTES = 2**24  # of a pickle
_MAX_OPERATIONS = 500_000
_MAX_TENSORS = 20_000
_MAX_DIMENSIONS = 16
_MAX_NAME = 300  # characters of a dict's key
# Several tensors may be views of one storage, but a crafted file could make their copies huge: all
# tensors together take at most so many times the bytes of the storages, and so many bytes more.
_MAX_SHARING, _SMALL = 4, 2**20

_ADMITTED = {
  ("collections", "OrderedDict"),
  ("torch", "Size"),
  ("torch", "device"),
  ("torch._utils", "_rebuild_tensor_v2"),
  ("torch._utils", "_rebuild_parameter"),
  *(("torch", name) for name in DTYPES),
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = {
  *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


class CodeError(ValueError):
  """The pickle names something that is neither a tensor nor a plain container."""


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


class _Name:
  """A class or function that the pickle names: nothing that Python could call."""

  def __init__(self, module: Any, name: Any):
    if (module, name) not in _ADMITTED:
      raise CodeError(shorten(f"{module}.{name}"))
    self.name = name


def shorten(text: str, limit: int = 60) -> str:
  """Makes untrusted text fit for an error: printable, cut after `limit` characters."""
  text = text[: limit + 1]
  text = text if text.isprintable() else ascii(text)[1:-1]
  return text if len(text) <= limit else f"{text[:limit]}..."


def read(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
  """Reads the pickle at the stream's position, and leaves the position after it.

  Args:
    stream: the pickle, within at most `MAX_BYTES` bytes, and whatever follows it.

  Returns:
    The value, made of dicts, lists, tuples, numbers, strings and `Tensor`s, in which containers can
    even contain themselves; and the storages by key.

  Raises:
    CodeError: the pickle names something that is not admitted; the text is that name.
    ValueError, or any other exception that meaningless bytes lead to: the pickle is damaged, or
      asks for more than a weight file needs.
  """
  machine = _Machine()
  for opcode, argument, _ in pickletools.genops(stream):
    machine.spend(1)
    machine.do(opcode.name, argument)
  tensors = sum(math.prod(x.shape) * x.storage.dtype.itemsize for x in machine.tensors)
  storages = sum(storage.nbytes for storage in machine.storages.values())
  if tensors > _MAX_SHARING * storages + _SMALL:
    raise ValueError(f"tensors of {tensors} bytes in storages of {storages}")
  return machine.stack.pop(), machine.storages


class _Machine:
  def __init__(self):
    self.stack: list[Any] = []
    self.storages: dict[str, Storage] = {}
    self.tensors: list[Tensor] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    self._spent = 0

  def spend(self, operations: int) -> None:
    self._spent += operations
    if self._spent > _MAX_OPERATIONS:
      raise ValueError(f"more than {_MAX_OPERATIONS} operations")

  def do(self, operation: str, argument: Any) -> None:
    stack = self.stack
    if operation in _ARGUMENTS:
      stack.append(argument)
    elif operation in _CONSTANTS:
      stack.append(_CONSTANTS[operation])
    else:
      match operation:
        case "BINPUT" | "LONG_BINPUT":
          self._memo[argument] = stack[-1]
        case "MEMOIZE":
          self._memo[len(self._memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET":
          stack.append(self._memo[argument])
        case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2; pickletools decodes them as Latin-1
          stack.append(argument.encode("latin-1").decode())
        case "MARK":
          self._marks.append(len(stack))
        case "TUPLE":
          stack.append(tuple(self._since_mark()))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
          count = int(operation[-1])
          stack[-count:] = [tuple(stack[-count:])]
        case "EMPTY_LIST":
          stack.append([])
        case "EMPTY_DICT":
          stack.append({})
        case "APPEND" | "APPENDS":
          values = self._since_mark() if operation == "APPENDS" else [stack.pop()]
          _checked_type(stack[-1], list).extend(values)
        case "SETITEM" | "SETITEMS":
          if operation == "SETITEM":
            self._marks.append(len(stack) - 2)
          values = self._since_mark()
          for key, value in zip(values[::2], values[1::2], strict=True):
            _put(_checked_type(stack[-1], dict), key, value)
        case "BUILD":  # an OrderedDict's attributes, such as the versions of its modules
          stack.pop()
          _checked_type(stack[-1], dict)
        case "GLOBAL":
          stack.append(_Name(*argument.split(" ", 1)))
        case "STACK_GLOBAL":
          name, module = stack.pop(), stack.pop()
          stack.append(_Name(_checked_type(module, str), _checked_type(name, str)))
        case "REDUCE":
          arguments = _checked_type(stack.pop(), tuple)
          stack.append(self._call(_checked_type(stack.pop(), _Name).name, arguments))
        case "BINPERSID":
          stack.append(self._storage(_checked_type(stack.pop(), tuple)))
        case "PROTO" | "FRAME" | "STOP":
          pass
        case _:
          raise ValueError(f"operation {operation}")

  def _since_mark(self) -> list[Any]:
    start = self._marks.pop()
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def _call(self, name: str, arguments: tuple) -> Any:
    match name:
      case "OrderedDict":
        made: dict[Any, Any] = {}
        pairs = _checked_type(arguments[0], list) if arguments else []  # Python 2 gives them here
        self.spend(len(pairs))
        for key, value in pairs:
          _put(made, key, value)
        return made
      case "Size":
        return _checked_type(arguments[0], tuple)
      case "device":
        kind, *number = arguments[:2]
        return ":".join([_checked_type(kind, str), *(str(_checked_size(n)) for n in number)])
      case "_rebuild_tensor_v2":
        return self._tensor(*arguments[:4])
      case "_rebuild_parameter":
        return _checked_type(arguments[0], Tensor)
    raise ValueError(f"{name} is called")

  def _storage(self, pid: tuple) -> Storage:
    if not 5 <= len(pid) <= 6 or pid[0] != "storage" or pid[5:] not in ((), (None,)):
      raise ValueError("unknown reference")  # the sixth: views, in files older than PyTorch 0.4
    dtype = DTYPES[_checked_type(pid[1], _Name).name]
    storage = Storage(dtype, _checked_type(pid[2], str), _checked_size(pid[4]))
    if self.storages.setdefault(storage.key, storage) != storage:
      raise ValueError(f"storage {shorten(storage.key)} has two types or lengths")
    return storage

  def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    storage, offset = _checked_type(storage, Storage), _checked_size(offset)
    shape, strides = _checked_type(shape, tuple), _checked_type(strides, tuple)
    if len(shape) > _MAX_DIMENSIONS or len(shape) != len(strides):
      raise ValueError(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
    shape, strides = tuple(map(_checked_size, shape)), tuple(map(_checked_size, strides))
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


def _checked_type(value: Any, wanted: type) -> Any:
  if type(value) is not wanted:
    raise ValueError(f"{type(value).__name__} in the place of {wanted.__name__}")
  return value


def _checked_size(value: Any) -> int:
  """Checks a size, an offset or a stride: an integer from 0 to 2^48 - 1."""
  if not 0 <= _checked_type(value, int) < 2**48:
    raise ValueError("a size that cannot be")
  return value


def _put(target: dict, key: Any, value: Any) -> None:
  if type(key) is str:
    if len(key) > _MAX_NAME or not key.isprintable():
      raise ValueError(f"the name {shorten(key)}")
  elif type(key) is not int or not -(2**63) <= key < 2**63:  # others could be made to have one hash
    raise ValueError(f"a {type(key).__name__} as a name")
  if key in target:
    raise ValueError(f"{key} twice")
  target[key] = value
