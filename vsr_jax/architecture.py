"""A model's architecture: its fields are checked by type and range, and read from a checkpoint.

An architecture is a frozen dataclass whose fields are numbers, truth values, choices and tuples of
numbers. It comes from a recipe, or from the tensor shapes or the JSON of an untrusted file.
The model is built as it asks before anything else can be compared: so each number has a limit.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vsr_jax.errors import UserError

if typing.TYPE_CHECKING:
  from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_MOST = 10  # numbers in a tuple, at most
_SHOWN = 60  # characters of a wrong value that an error shows, at most


def check_fields(arch: Any, limits: Mapping[str, tuple[float, float]]) -> None:
  """Checks the fields of a dataclass against their annotations, and numbers against their limits.

  Args:
    arch: the dataclass; `int`, `float`, `bool`, `Literal[...]` and `tuple[int, ...]` are known.
    limits: by field, the least and the largest value of a number, or of each number of a tuple.

  Raises:
    UserError: a field is wrong; the text names the first one, as "model.FIELD".
  """
  for name, kind in typing.get_type_hints(type(arch)).items():
    value, choices = getattr(arch, name), typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
      if value not in choices:
        raise wrong(name, value, f"one of {choices}")
    elif typing.get_origin(kind) is tuple:
      if not isinstance(value, tuple) or len(value) > _MOST:
        raise wrong(name, value, f"a list of at most {_MOST} numbers")
      for number in value:
        _check_number(name, number, int, limits[name])
    elif kind is bool:
      if not isinstance(value, bool):
        raise wrong(name, value, "one of (True, False)")
    else:
      _check_number(name, value, kind, limits[name])


def from_entries(
  cls: type[T],
  entries: Any,
  source: str,
  remedy: str = "give another checkpoint",
  earlier_names: Mapping[str, str] = types.MappingProxyType({}),
) -> T:
  """Makes an architecture from the entries in a checkpoint's meta.

  Args:
    cls: the architecture's dataclass.
    entries: values by field, as JSON gives them; missing fields take their defaults.
    source: the checkpoint, for errors.
    remedy: what to do where the entries are not those of `cls`, for the error.
    earlier_names: current name by the name that a field had in older checkpoints.

  Raises:
    UserError: the entries are no mapping, have an unknown field, or a value that is not allowed.
  """
  if not isinstance(entries, Mapping):
    raise UserError(f"{source}: {remedy}")
  entries = {earlier_names.get(name, name): value for name, value in entries.items()}
  known = {field.name for field in dataclasses.fields(cls)}
  if strange := [key for key in entries if key not in known]:
    raise UserError(f"{source}: {remedy} (model.{_short(strange[0])[1:-1]} is not known)")
  try:
    return cls(**entries)
  except UserError as e:
    raise UserError(f"{source}: {e}") from None


def _check_number(name: str, value: Any, kind: type, limits: tuple[float, float]) -> None:
  least, largest = limits
  real = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
  if not real or (isinstance(value, float) and not math.isfinite(value)):
    raise wrong(name, value, "an integer" if kind is int else "a finite number")
  if value < least:
    raise wrong(name, value, f"at least {least:g}")
  if value > largest:
    raise wrong(name, value, f"at most {largest:g}")


def wrong(name: str, value: Any, wanted: str) -> UserError:
  """The error, one short line, for a field whose value is not as `wanted` says ("at least 1")."""
  return UserError(f"model.{name} = {_short(value)}: must be {wanted}")


def _short(value: Any) -> str:
  try:
    text = repr(value)
  except ValueError:  # it has more digits than Python writes
    text = "a number of thousands of digits"
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
