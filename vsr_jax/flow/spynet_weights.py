"""The released SPyNet weights as parameters: the table and the loader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import torch_files
from vsr_jax.errors import UserError
from vsr_jax.flow import spynet
from vsr_jax.weights import Rule, conv2d, convert, with_bias

_CONVOLUTIONS = 5  # a level


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
    UserError: the file is missing or damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      return {key: file[key] for key in file.files}
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror or e}; give an .npz file") from e
  # Bytes that are no archive can raise anything at all while they are read as one.
  except Exception as e:
    raise UserError(f"{path} is damaged or no .npz file ({e}); fetch it again") from e


def from_state_dict(state: Mapping[str, np.ndarray], source: str = "state dict") -> dict[str, Any]:
  """Converts a state dict; `load` without the file."""
  template = jax.eval_shape(spynet.init, jax.random.key(0))
  return convert(state, rules(), template, source)


def rules() -> list[Rule]:
  """The table of SPyNet's tensors, under all names that are about."""
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
