"""The released SPyNet weights as parameters: the table and the loader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import array_files, torch_files
from vsr_jax.conversion import Rule, conv2d, convert, with_bias
from vsr_jax.flow import spynet

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
    state = array_files.read(path)
  else:
    state = torch_files.unwrap(torch_files.load(path), ("state_dict", "params"), str(path))
  return jax.tree.map(jnp.asarray, from_state_dict(state, str(path)))


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
