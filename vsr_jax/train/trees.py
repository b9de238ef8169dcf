"""Names, dtypes and shapes of a tree's arrays, and how two trees differ, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def table(tree: Any) -> dict[str, str]:
  """Each leaf's path and its dtype and shape, as in {"net/conv/kernel": "float32[3,3,8,16]"}."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (
      f"{x.dtype}[{','.join(map(str, x.shape))}]"
    )
    for path, x in leaves
  }


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
  """A template of many like blocks from that of a few: to trace each of them takes seconds.

  Args:
    template: nested dicts of abstract leaves.
    counts: the last block that there is, and how many there are to be: with {"block_1": 4}
      "block_1" stands for "block_2" and "block_3" too, wherever it is.

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
