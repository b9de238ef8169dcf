"""Reads pickles of dicts of NumPy arrays, as JAX projects publish weights, without running code."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vsr_jax import guards
from vsr_jax.errors import UserError
from vsr_jax.pickle_machine import CodeError, Machine, checked_size, checked_type

_NUMBERS = ("f2", "f4", "f8", "i4", "i8")
_MAX_ITEMS = 10_000  # arrays and dicts
_MAX_DIMENSIONS = 16


def loads(data: bytes, source: str | Path) -> dict[str, np.ndarray]:
  """Reads a pickle of nested dicts of arrays.

  Args:
    data: the pickle, whose length the caller has limited.
    source: the file that it comes from, for errors.

  Returns:
    Array by key, the keys of nested dicts joined by "/". The arrays are read-only views of the
    pickle's bytes.

  Raises:
    UserError: the pickle is damaged, or holds anything but such dicts. Nothing has been run then.
  """
  with guards.reading(source, "pickle of arrays", "one"):
    try:
      value = _ArrayMachine().run(io.BytesIO(data))
    except CodeError as e:
      raise UserError(f"{source} holds code that is no array's ({e}), refused") from None
    return _flatten(checked_type(value, dict))


class _Dtype:
  def __init__(self, name: Any):
    if name not in _NUMBERS:
      raise ValueError(f"numbers of type {guards.shorten(str(name))}")
    self.dtype = np.dtype(f"<{name}")


class _Array:
  """What becomes an array when its state is set."""

  array: np.ndarray | None = None


class _ArrayMachine(Machine):
  admitted: ClassVar[set[tuple[str, str]]] = {
    *Machine.admitted,
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),  # since NumPy 2
  }

  def call(self, name: str, arguments: tuple) -> Any:
    match name:
      case "dtype":
        return _Dtype(arguments[0])
      case "_reconstruct":  # (ndarray, (0,), b"b"): an empty array
        return _Array()
    return super().call(name, arguments)

  def set_state(self, target: Any, state: Any) -> None:
    if type(target) is _Dtype:
      if checked_type(state, tuple)[1] != "<":
        raise ValueError("big-endian numbers")
    elif type(target) is _Array:
      _, shape, dtype, by_columns, data = checked_type(state, tuple)
      shape = tuple(map(checked_size, checked_type(shape, tuple)))
      kind, data = checked_type(dtype, _Dtype).dtype, checked_type(data, bytes)
      if len(shape) > _MAX_DIMENSIONS or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError("an array's shape and its bytes differ")
      rows = shape[::-1] if checked_type(by_columns, bool) else shape
      array = np.frombuffer(data, kind).reshape(rows)
      target.array = array.T if by_columns else array
    else:
      super().set_state(target, state)


def _flatten(tree: dict) -> dict[str, np.ndarray]:
  """Arrays by path; a dict that is shared counts as often as it comes, so crafted ones end soon."""
  found: dict[str, np.ndarray] = {}
  todo: list[tuple[str, Any]] = [("", tree)]
  for _ in range(_MAX_ITEMS):
    if not todo:
      return found
    path, item = todo.pop()
    if type(item) is dict:
      prefix = f"{path}/" if path else ""
      todo += [(prefix + checked_type(key, str), value) for key, value in item.items()]
    elif type(item) is _Array and item.array is not None and path not in found:
      found[path] = item.array
    else:
      raise ValueError(f"a {type(item).__name__} at {guards.shorten(path)}")
  raise ValueError(f"more than {_MAX_ITEMS} items")
