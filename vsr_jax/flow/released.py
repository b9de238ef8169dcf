"""Loads the released weights of any supported flow network, which the keys identify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vsr_jax import array_files, torch_files
from vsr_jax.errors import UserError
from vsr_jax.flow import (
  gmflow_conversion,
  pwcnet_conversion,
  raft,
  raft_conversion,
  spynet_conversion,
)

Network = Literal["gmflow", "pwcnet", "spynet", "raft_small", "raft_large"]


# First parts of names in the released files, by kind of network.
_STARTS = {
  "gmflow": {"backbone"},
  "raft": {"fnet"},
  "pwcnet": {"conv1a", "netExtractor", "moduleExtractor"},
  "spynet": {"basic_module", "netBasic", "moduleBasic", "L1"},
}


def load(path: str | Path | None = None) -> tuple[Network, dict[str, Any]]:
  """Reads the released weights of GMFlow, PWC-Net, RAFT or SPyNet.

  Args:
    path: a file that one of their modules can load, such as `gmflow_conversion`; None for RAFT's
      small variant, which ships.

  Returns:
    The network's name in `estimators.ESTIMATORS` and its parameters, numpy arrays.

  Raises:
    UserError: the file is missing, damaged or of another model.
  """
  if path is None:
    return "raft_small", raft_conversion.load()[1]
  return from_state_dict(read(path), str(path))


def read(path: str | Path, wrappers: Sequence[str] = ()) -> dict[str, np.ndarray]:
  """Reads a state dict, as `load` does, of whatever model.

  Args:
    path: a .pth or .npz file.
    wrappers: further names under which a file may have its state dict, which are tried first.

  Raises:
    UserError: the file is missing or damaged.
  """
  if Path(path).suffix == ".npz":
    return array_files.read(path)
  names = (*wrappers, "model", "state_dict", "params")
  return torch_files.unwrap(torch_files.load(path), names, str(path))


def kind_of(state: Mapping[str, np.ndarray]) -> str | None:
  """Which kind of flow network a state dict belongs to, by its names; None if to none."""
  starts = {key.partition(".")[0].partition("/")[0] for key in state}
  return next((kind for kind, known in _STARTS.items() if starts & known), None)


def from_state_dict(state: dict[str, np.ndarray], source: str) -> tuple[Network, dict[str, Any]]:
  """Converts a state dict; `load` without the file."""
  match kind_of(state):
    case "gmflow":
      return "gmflow", gmflow_conversion.from_state_dict(state, source)
    case "raft":
      net, params = raft_conversion.from_state_dict(state, source)
      return ("raft_small" if net is raft.SMALL else "raft_large"), params
    case "pwcnet":
      return "pwcnet", pwcnet_conversion.from_state_dict(state, source)
    case "spynet":
      return "spynet", spynet_conversion.from_state_dict(state, source)
  raise UserError(
    f"{source}: holds no optical flow; give the weights of GMFlow, PWC-Net, RAFT or SPyNet"
  )
