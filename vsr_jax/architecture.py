"""The numbers that make a model: checked by type and range, and taken out of a checkpoint.

An architecture is a frozen dataclass whose fields are numbers, truth values, choices and tuples of
numbers. It comes from a recipe, from the shapes of a stranger's tensors or from a stranger's JSON,
and what it asks for is built before anything else can be compared: so each number has a limit.
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
_MOST = 10  # numbers in a tuple
_SHOWN = 60  # characters of a wrong value


def check_fields(arch: Any, limits: Mapping[str, tuple[float, float]]) -> None:
  """Checks the fields of a dataclass against their annotations, and numbers against their limits.

  Args:
    arch: the dataclass; `int`, `float`, `bool`, `Literal[...]` and `tuple[int, ...]` are known.
    limits: the least and the largest value of every number, in a tuple of each.

  Raises:
    UserError: the first field that is wrong; the text names it as "model.FIELD".
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
  """Makes an architecture of what a checkpoint's meta says.

  Args:
    cls: the dataclass.
    entries: by field, as JSON gives them; fields that are missing have their defaults.
    source: the checkpoint.
    remedy: what to give, for the error where the entries are of something else.
    earlier_names: names of fields in older checkpoints, and what they are called now.

  Raises:
    UserError: the entries are of something else, or of no model.
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
  """The error for a field that has not a wanted value, such as "at least 1"; a short one."""
  return UserError(f"model.{name} = {_short(value)}: must be {wanted}")


def _short(value: Any) -> str:
  try:
    text = repr(value)
  except ValueError:  # it has more digits than Python writes
    text = "a number of thousands of digits"
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
