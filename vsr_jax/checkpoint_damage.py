"""Detects damage: arrays of a checkpoint that are not those that were written."""

from __future__ import annotations

import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.trees import shape_and_dtype

# The largest factor by which real weights are compressed, and bytes that may always be allocated.
_COMPRESSION, _SMALL = 20, 2**28
REMEDY = "delete it to fall back to the checkpoint before it, or copy or make it again"


def check_size(folder: pathlib.Path, tables: Sequence[Mapping[str, str]]) -> None:
  """Checks, before memory is allocated for them, that a folder's files can hold its arrays.

  Constant arrays are compressed to almost nothing, and arrays whose files are missing read as 0, so
  a small folder could claim any amount of memory.

  Raises:
    UserError: the files are too small for the arrays that the tables list.
  """
  specs = [shape_and_dtype(spec) for names in tables for spec in names.values()]
  claimed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs)
  stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
  if claimed > _SMALL + _COMPRESSION * stored:
    raise UserError(
      f"{folder}: damaged, its meta tells of {claimed:,} bytes of arrays in files of {stored:,}; "
      f"{REMEDY}"
    )


def checksums(tree: Any) -> dict[str, int]:
  """The CRC-32 of each leaf's bytes, by path; leaves that other hosts hold parts of are omitted."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(
      np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
    )
    for path, x in leaves
    if not isinstance(x, jax.Array) or x.is_fully_addressable
  }


def check_sums(folder: pathlib.Path, trees: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
  """Compares what was read with the checksums in the meta; older checkpoints have none.

  Args:
    folder: the checkpoint, for the error.
    trees: the arrays that were read, by item.
    meta: the checkpoint's entries; "sums" holds what `checksums` gave when the item was written.

  Raises:
    UserError: a leaf differs from what was written.
  """
  for item, tree in trees.items():
    kept = meta.get("sums", {}).get(item, {})
    wrong = [name for name, crc in checksums(tree).items() if kept.get(name, crc) != crc]
    if wrong:
      more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
      raise UserError(
        f"{folder}: damaged, its {item} are not what was written ({', '.join(wrong[:3])}{more}); "
        f"{REMEDY}"
      )
