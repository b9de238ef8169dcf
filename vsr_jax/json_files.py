"""Reads JSON files, which are not trusted: size-limited, strict, and checked against a schema.

A schema is a function that checks a value or raises `BadJson`; small ones are combined:

  ENTRY = fields({"name": plain_name, "frames": integer(1, 10**7)}, {"rate": number(0, 1e6)})
  index = load(path, fields({"clips": array(ENTRY)}), remedy="prepare the set again")

Refused are files of more bytes than `LIMIT`, text that is not UTF-8, nesting beyond `DEPTH`, a key
that comes twice, numbers that are not finite, integers beyond 64 bits, and text that cannot be
encoded to be printed or to name a file.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from vsr_jax.errors import UserError
from vsr_jax.guards import TooLarge, is_name, read_bytes

LIMIT = 16 << 20  # bytes; the parsed values take up to twenty times as much memory
DEPTH = 32
_LONGEST = 2**63 - 1
_SHOWN = 40  # characters of a wrong value that an error shows, at most

Schema = Callable[[Any, str], None]
"""Checks a value; the text says where it stands, such as "clips[3].frames", "" for the whole."""


class BadJson(ValueError):
  """JSON that is damaged or does not follow its schema; the text is one line that says where."""


def load(path: pathlib.Path, schema: Schema, *, remedy: str, limit: int = LIMIT) -> Any:
  """Reads a JSON file.

  Args:
    path: the file.
    schema: what it must hold.
    remedy: what to do about a damaged file, for the error.
    limit: bytes that the file may have.

  Raises:
    UserError: the file is damaged or holds something else.
    OSError: the file cannot be read; FileNotFoundError if it is missing.
  """
  try:
    return read(path, schema, limit=limit)
  except BadJson as e:
    raise UserError(f"{path}: damaged ({e}); {remedy}") from e


def read(path: pathlib.Path, schema: Schema, *, limit: int = LIMIT) -> Any:
  """Reads a JSON file as `load` does, for callers that make their own error.

  Raises:
    BadJson: the file is damaged or holds something else.
    OSError: the file cannot be read.
  """
  try:
    return parse(read_bytes(path, limit), schema)
  except TooLarge as e:
    raise BadJson(str(e)) from e


def load_lines(path: pathlib.Path, schema: Schema, *, remedy: str) -> list[tuple[bytes, Any]]:
  """Reads a log of one JSON value per line, of at most 16 * `LIMIT` bytes; NaN is allowed in it.

  Returns:
    Each line with its value. A last line without a newline, where a writer was killed, is left out.

  Raises:
    UserError: a line is damaged, and the text has its number; or the file is too large.
    OSError: the file cannot be read.
  """
  try:
    lines = read_bytes(path, 16 * LIMIT).splitlines(keepends=True)
  except TooLarge as e:
    raise UserError(f"{path}: {e}; {remedy}") from e
  found = []
  for number, line in enumerate(lines, 1):
    try:
      if line.endswith(b"\n"):
        found.append((line, parse(line, schema, finite=False)))
    except BadJson as e:
      raise UserError(f"{path}:{number}: {e}; {remedy}") from e
  return found


def parse(data: bytes, schema: Schema, *, finite: bool = True) -> Any:
  """Parses JSON text and checks the value.

  Args:
    data: the text, UTF-8.
    schema: what it must hold.
    finite: whether NaN and Infinity, which the JSON standard does not have, are refused.

  Raises:
    BadJson: the text is damaged or holds something else.
  """
  constant = _refuse if finite else float
  try:
    value = json.loads(
      data.decode(), object_pairs_hook=_unique, parse_constant=constant, parse_int=_integer
    )
  except BadJson:
    raise
  except UnicodeDecodeError as e:
    raise BadJson(f"not UTF-8 at byte {e.start}") from None
  except RecursionError:
    raise BadJson(f"nested deeper than {DEPTH}") from None
  except ValueError as e:
    raise BadJson(f"not JSON ({e})") from None
  _check_values(value, finite)
  schema(value, "")
  return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  value = dict(pairs)
  if len(value) < len(pairs):
    seen: set[str] = set()
    for key, _ in pairs:
      if key in seen:
        raise BadJson(f"key {_show(key)} comes twice")
      seen.add(key)
  return value


def _refuse(constant: str) -> None:
  raise BadJson(f"{constant} is no number")


def _integer(digits: str) -> int:
  if len(digits) > 20 or abs(int(digits)) > _LONGEST:
    raise BadJson(f"{_show(digits)} has more than 64 bits")
  return int(digits)


def _show(value: Any) -> str:
  if isinstance(value, dict | list):
    return "an object" if isinstance(value, dict) else "a list"
  shown = json.dumps(value)
  return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _wrong(value: Any, where: str, wanted: str) -> BadJson:
  return BadJson(f"{where or 'it'} is {_show(value)}, not {wanted}")


def _check_values(value: Any, finite: bool) -> None:
  """Checks what all JSON has to satisfy: finite numbers, printable text, nesting within `DEPTH`."""
  todo = [(value, 1)]
  while todo:
    value, depth = todo.pop()
    if depth > DEPTH:
      raise BadJson(f"nested deeper than {DEPTH}")
    if isinstance(value, dict):
      todo += ((x, depth + 1) for pair in value.items() for x in pair)
    elif isinstance(value, list):
      todo += ((x, depth + 1) for x in value)
    elif isinstance(value, str):
      text(value, "", longest=sys.maxsize)
    elif finite and isinstance(value, float) and not math.isfinite(value):
      raise BadJson("a number is too large for a float")


def anything(value: Any, where: str) -> None:
  """Schema: any JSON value."""
  del value, where


def text(value: Any, where: str, longest: int = 4096) -> None:
  """Schema: a text of at most `longest` characters, without NUL or lone surrogates."""
  if not isinstance(value, str) or len(value) > longest:
    raise _wrong(value, where, f"a text of at most {longest} characters")
  try:
    os.fsencode(value)  # this also takes a file's name that is not UTF-8
  except UnicodeEncodeError:
    raise _wrong(value, where, "Unicode") from None
  if "\0" in value:
    raise _wrong(value, where, "a text without NUL")


def plain_name(value: Any, where: str) -> None:
  """Schema: a plain name of a file or folder, see `guards.is_name`, not a path."""
  if not isinstance(value, str) or not is_name(value):
    raise _wrong(value, where, "a plain name")


def truth(value: Any, where: str) -> None:
  """Schema: true or false."""
  if not isinstance(value, bool):
    raise _wrong(value, where, "true or false")


def integer(low: int = 0, high: int = _LONGEST) -> Schema:
  """A schema: an integer from `low` to `high`, both included."""

  def check(value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
      raise _wrong(value, where, f"an integer from {low} to {high}")

  return check


def number(low: float = -math.inf, high: float = math.inf) -> Schema:
  """A schema: a number, integer or not, from `low` to `high`, both included."""

  def check(value: Any, where: str) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not low <= value <= high:
      raise _wrong(value, where, f"a number from {low:g} to {high:g}")

  return check


def optional(schema: Schema) -> Schema:
  """A schema: null, or a value of another schema."""

  def check(value: Any, where: str) -> None:
    if value is not None:
      schema(value, where)

  return check


def array(item: Schema, shortest: int = 0, longest: int = 10**6) -> Schema:
  """A schema: a list of `shortest` to `longest` items, each of the schema `item`."""

  def check(value: Any, where: str) -> None:
    if not isinstance(value, list):
      raise _wrong(value, where, "a list")
    if not shortest <= len(value) <= longest:
      raise BadJson(f"{where or 'it'} has {len(value)} items, not {shortest} to {longest}")
    for i, x in enumerate(value):
      item(x, f"{where}[{i}]")

  return check


def mapping(key: Schema, item: Schema) -> Schema:
  """A schema: an object of any keys and values that follow the schemas `key` and `item`."""

  def check(value: Any, where: str) -> None:
    if not isinstance(value, dict):
      raise _wrong(value, where, "an object")
    for k, x in value.items():
      key(k, f"{where}: key")
      item(x, f"{where}[{_show(k)}]")

  return check


def fields(
  required: Mapping[str, Schema], others: Mapping[str, Schema] | None = None, *, more: bool = False
) -> Schema:
  """A schema: an object with known fields.

  Args:
    required: schemas of the fields that it must have.
    others: schemas of fields that may be missing.
    more: whether it may have further fields, which are not checked.
  """
  known = {**required, **(others or {})}

  def check(value: Any, where: str) -> None:
    if not isinstance(value, dict):
      raise _wrong(value, where, "an object")
    if missing := [key for key in required if key not in value]:
      raise BadJson(f"{where or 'it'} has no field {missing[0]!r}")
    if not more and (strange := [key for key in value if key not in known]):
      raise BadJson(f"{where or 'it'} has a field {_show(strange[0])} that is not known")
    for key, x in value.items():
      if key in known:
        known[key](x, f"{where}.{key}" if where else key)

  return check
