"""Loads the released weights of any supported flow network, which the keys identify."""

from __future__ import annotations

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
  source = str(path)
  if Path(path).suffix == ".npz":
    state = array_files.read(path)
  else:
    state = torch_files.unwrap(torch_files.load(path), ("model", "state_dict", "params"), source)
  return from_state_dict(state, source)


def from_state_dict(state: dict[str, np.ndarray], source: str) -> tuple[Network, dict[str, Any]]:
  """Converts a state dict; `load` without the file."""
  starts = {key.partition(".")[0].partition("/")[0] for key in state}
  if "backbone" in starts:
    return "gmflow", gmflow_conversion.from_state_dict(state, source)
  if "fnet" in starts:
    net, params = raft_conversion.from_state_dict(state, source)
    return ("raft_small" if net is raft.SMALL else "raft_large"), params
  if starts & {"conv1a", "netExtractor", "moduleExtractor"}:
    return "pwcnet", pwcnet_conversion.from_state_dict(state, source)
  if starts & {"basic_module", "netBasic", "moduleBasic", "L1"}:
    return "spynet", spynet_conversion.from_state_dict(state, source)
  raise UserError(
    f"{source}: holds no optical flow; give the weights of GMFlow, PWC-Net, RAFT or SPyNet"
  )
