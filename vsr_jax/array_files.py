"""Weights as .npz files: arrays by the path of their leaf, "sub_network/layer/kernel".

The files that ship are such files, and what commands convert for later use. They are read as
files from strangers are: nothing is unpickled, and no more is read than their size allows.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vsr_jax import files, guards, torch_files
from vsr_jax.conversion import Rule, convert

_MAX_ENTRIES, _MAX_BYTES = 1000, 2**26  # the largest, LPIPS on VGG16, has 58.9 MB


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the arrays of an .npz file.

  Raises:
    UserError: the file is missing or damaged, or larger than weights of this project can be.
  """
  with (
    guards.reading(path, ".npz file", "an .npz file"),
    torch_files.open_regular(path) as file,
    torch_files.open_zip(file) as archive,
  ):
    entries = archive.infolist()
    if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > _MAX_BYTES:
      raise ValueError("it holds more than these weights")
    return {entry.filename.removesuffix(".npy"): _read_npy(archive, entry) for entry in entries}


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
  file = io.BytesIO(archive.read(entry))
  read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
    np.lib.format.read_magic(file), np.lib.format.read_array_header_2_0
  )
  shape, _, dtype = read_header(file)
  # NumPy would allocate what the header asks for, and only then see what there is.
  if math.prod(shape) * dtype.itemsize != len(file.getbuffer()) - file.tell():
    raise ValueError("an array's header and its size differ")
  file.seek(0)
  return np.lib.format.read_array(file, allow_pickle=False)


def load_params(path: str | Path, template: Mapping[str, Any]) -> dict[str, Any]:
  """Reads parameters that `save_params` wrote.

  Args:
    path: the file.
    template: nested dicts of abstract leaves (shape and dtype), from `jax.eval_shape`.

  Returns:
    nested dicts like the template, of its dtypes, on the default device.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  params = convert(read(path), [Rule("(.+)", r"\1")], template, str(path))
  return jax.tree.map(jnp.asarray, params)


def save_params(
  params: Mapping[str, Any], path: str | Path, dtype: np.typing.DTypeLike = np.float32
) -> None:
  """Writes parameters for `load_params`.

  Args:
    params: nested dicts of arrays.
    path: the file, in a folder that exists; what was there is replaced.
    dtype: how the numbers are stored, float32 or float16.

  Raises:
    OSError: the file cannot be written; what was there is unchanged.
  """
  stored = jax.tree.map(lambda x: np.asarray(x, dtype), params)
  flat: dict[str, Any] = traverse_util.flatten_dict(stored, sep="/")
  content = io.BytesIO()
  np.savez_compressed(content, **flat)
  files.write_whole(Path(path), content.getvalue())
