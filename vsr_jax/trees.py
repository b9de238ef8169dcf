"""Trees of arrays: names, dtypes and shapes; how two differ, in one line; joining and splitting."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax.json_files import BadJson, mapping, text

Tree = TypeVar("Tree")

_DTYPES = "bool|bfloat16|u?int(?:8|16|32|64)|float(?:16|32|64)"
_SPEC = re.compile(rf"(?:{_DTYPES})\[((?:\d{{1,12}}(?:,\d{{1,12}})*)?)\]")
_LARGEST = 2**33  # numbers in an array
_LONGEST, _DEEPEST = 300, 20  # characters of a path, and names in it


def table(tree: Any) -> dict[str, str]:
  """Each leaf's dtype and shape by its path, as in {"net/conv/kernel": "float32[3,3,8,16]"}."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{x.dtype}[{','.join(map(str, x.shape))}]"
    )
    for path, x in leaves
  }


def check_table(value: Any, where: str) -> None:
  """The schema (see `json_files`) of a table: paths that make a tree, dtypes and shapes."""
  mapping(text, text)(value, where)
  for name, spec in value.items():
    if len(name) > _LONGEST or not name.isprintable() or name.count("/") >= _DEEPEST:
      raise BadJson(f"{where}: {name[:80]!a} is no path of an array")
    found = _SPEC.fullmatch(spec)
    if not found or math.prod(int(n) for n in found[1].split(",") if n) > _LARGEST:
      raise BadJson(f"{where}: {name[:80]!r} has no dtype and shape, or one too large")
    if any(name[:i] in value for i, character in enumerate(name) if character == "/"):
      raise BadJson(f"{where}: {name[:80]!r} lies within another array")


def shape_and_dtype(spec: str) -> tuple[list[int], np.dtype]:
  """Parses a table's dtype and shape of an array, such as "float32[3,3,8,16]"."""
  dtype, shape = spec.rstrip("]").split("[")
  return [int(n) for n in shape.split(",") if n], jnp.dtype(dtype)


def by_network(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
  """Splits a params table by the first name of each path, the sub-network's; paths stay whole."""
  tables: dict[str, dict[str, str]] = {}
  for name, spec in names.items():
    tables.setdefault(name.partition("/")[0], {})[name] = spec
  return tables


def template(names: Mapping[str, str]) -> dict[str, Any]:
  """Makes nested dicts of uninitialised arrays from a params table."""
  tree: dict[str, Any] = {}
  for name, spec in names.items():
    *path, leaf = name.split("/")
    branch = tree
    for key in path:
      branch = branch.setdefault(key, {})
    branch[leaf] = np.empty(*shape_and_dtype(spec))
  return tree


def differences(want: dict[str, str], got: dict[str, str], first: int = 3) -> str:
  """The first differences between two tables in one line; "" when they are equal."""
  lines = [f"{name} is missing" for name in want if name not in got]
  lines += [f"{name} is not expected" for name in got if name not in want]
  lines += [
    f"{name} is {got[name]}, not {spec}"
    for name, spec in want.items()
    if name in got and got[name] != spec
  ]
  more = f" and {len(lines) - first} more" if len(lines) > first else ""
  return "; ".join(lines[:first]) + more


def repeat_blocks(template: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
  """Makes a template of many equal blocks from that of a few, since tracing a block takes seconds.

  Args:
    template: nested dicts of abstract leaves.
    counts: the wanted number of blocks by the name of the last one in the template: with
      {"block_1": 4} "block_1" is repeated as "block_2" and "block_3", at any depth.

  Returns:
    The template with all blocks.
  """
  whole = {}
  for name, tree in template.items():
    tree = repeat_blocks(tree, counts) if isinstance(tree, Mapping) else tree
    whole[name] = tree
    stem, _, first = name.rpartition("_")
    if name in counts:
      whole |= {f"{stem}_{i}": tree for i in range(int(first), counts[name])}
  return whole


def join(trees: Sequence[Tree]) -> Tree:
  """Trees with leading axis [1] -> one with [b]."""
  return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def split(tree: Tree, count: int) -> tuple[Tree, ...]:
  """A tree with leading axis [b] -> trees with [1]."""
  return tuple(jax.tree.map(operator.itemgetter(slice(i, i + 1)), tree) for i in range(count))
