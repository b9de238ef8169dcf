"""The released SPyNet weights as parameters: the table and the loader."""

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

from vsr_jax import torch_files
from vsr_jax.conversion import Rule, conv2d, convert, with_bias
from vsr_jax.errors import UserError
from vsr_jax.flow import spynet
from vsr_jax.torch_pickle import shorten

_CONVOLUTIONS = 5  # a level
_MAX_ENTRIES, _MAX_BYTES = 1000, 2**26  # in an .npz; the weights take 12 MB in float64


def load(path: str | Path) -> dict[str, Any]:
  """Reads released weights, such as network-sintel-final.pytorch or spynet_20210409-c6c1bd09.pth.

  Args:
    path: a PyTorch file, with the names of pytorch-spynet, BasicSR or MMEditing, or an .npz of
      arrays L1/conv0/weight to L6/conv4/bias.

  Returns:
    the parameters.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  if Path(path).suffix == ".npz":
    state = read_npz(path)
  else:
    state = torch_files.unwrap(torch_files.load(path), ("state_dict", "params"), str(path))
  return jax.tree.map(jnp.asarray, from_state_dict(state, str(path)))


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the arrays of an .npz file; nothing is unpickled.

  Raises:
    UserError: the file is missing or damaged, or larger than SPyNet's weights can be.
  """
  try:
    with torch_files.open_regular(path) as file, torch_files.open_zip(file) as archive:
      entries = archive.infolist()
      if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > _MAX_BYTES:
        raise ValueError("it holds more than SPyNet's weights")
      return {entry.filename.removesuffix(".npy"): _read_npy(archive, entry) for entry in entries}
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror or e}; give an .npz file") from e
  except UserError:
    raise
  # Bytes that are no archive can raise anything at all while they are read as one.
  except Exception as e:
    reason = shorten(str(e) or type(e).__name__, 200)
    raise UserError(f"{path} is damaged or no .npz file ({reason}); fetch it again") from e


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


def from_state_dict(state: Mapping[str, np.ndarray], source: str = "state dict") -> dict[str, Any]:
  """Converts a state dict; `load` without the file."""
  template = jax.eval_shape(spynet.init, jax.random.key(0))
  return convert(state, rules(), template, source)


def rules() -> list[Rule]:
  """The table of SPyNet's tensors, with the names of all the sources that `load` lists."""
  table = [Rule(r"mean|std", None)]  # ImageNet's
  for level in range(spynet.LEVELS):
    for i in range(_CONVOLUTIONS):
      ours = f"level{level}/conv{i}"
      # Every second layer is a ReLU. MMEditing wraps each pair into one module.
      torch = (
        rf"(?:basic_module|netBasic|moduleBasic)\.{level}\.(?:basic_module|netBasic|moduleBasic)"
      )
      table += with_bias(rf"{torch}\.(?:{2 * i}|{i}\.conv)", ours)
      table.append(Rule(rf"L{level + 1}/conv{i}/weight", f"{ours}/kernel", conv2d))
      table.append(Rule(rf"L{level + 1}/conv{i}/bias", f"{ours}/bias"))
  return table
