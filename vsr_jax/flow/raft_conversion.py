"""RAFT's weights: the tables of the released checkpoints, and the small variant's, which ship.

What ships is stored as float16, which moves the flow of a real pair of frames by 0.0006 pixels on
average, and by 0.02 at most where it was tried (four pairs of 128x160 to 256x256).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import array_files, torch_files
from vsr_jax.conversion import Rule, batch_norm, convert, with_bias
from vsr_jax.errors import UserError
from vsr_jax.flow import raft

ASSET = Path(__file__).parent / "assets" / "raft_small.npz"


def load(path: str | Path | None = None) -> tuple[raft.Raft, dict[str, Any]]:
  """Reads RAFT's parameters.

  Args:
    path: None for raft-small.pth's, which ship; or a released checkpoint, such as raft-sintel.pth,
      its keys with or without "module.".

  Returns:
    the variant, which the keys tell, and its parameters.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  if path is None:
    return raft.SMALL, array_files.load_params(ASSET, _template(raft.SMALL))
  state = torch_files.unwrap(torch_files.load(path), source=str(path))
  net, params = from_state_dict(state, str(path))
  return net, jax.tree.map(jnp.asarray, params)


def from_state_dict(
  state: Mapping[str, np.ndarray], source: str = "state dict"
) -> tuple[raft.Raft, dict[str, Any]]:
  """Converts a state dict; `load` without the file."""
  large = any(key.startswith("update_block.mask.") for key in state)
  net, rules = (raft.LARGE, raft_large_rules()) if large else (raft.SMALL, raft_small_rules())
  _check_repeated(state, source)
  return net, convert(state, rules, _template(net), source)


def _template(net: raft.Raft) -> dict[str, Any]:
  return jax.eval_shape(functools.partial(raft.init, net), jax.random.key(0))


def raft_small_rules() -> list[Rule]:
  """The table of raft-small.pth."""
  return [
    *_encoder("fnet", "features"),
    *_encoder("cnet", "context"),
    *with_bias(r"update_block\.encoder\.convc1", "update/correlation0"),
    *with_bias(r"update_block\.gru\.conv([zrq])", r"update/gru0_\1"),
    *_update(),
  ]


def raft_large_rules() -> list[Rule]:
  """The table of raft-sintel.pth and its kin."""
  block = r"cnet\.layer(\d)\.(\d)"
  return [
    *_encoder("fnet", "features"),
    *_encoder("cnet", "context"),
    *batch_norm(r"cnet\.norm1", "context/norm1"),
    *batch_norm(rf"{block}\.norm([12])", r"context/layer\1_\2/norm\3"),
    *batch_norm(rf"{block}\.downsample\.1", r"context/layer\1_\2/norm_skip"),
    Rule(rf"{block}\.norm3\.\w+", None),  # downsample.1 again
    *with_bias(r"update_block\.encoder\.convc1", "update/correlation0"),
    *with_bias(r"update_block\.encoder\.convc2", "update/correlation1"),
    *with_bias(r"update_block\.gru\.conv([zrq])1", r"update/gru0_\1"),
    *with_bias(r"update_block\.gru\.conv([zrq])2", r"update/gru1_\1"),
    *_update(),
    *with_bias(r"update_block\.mask\.0", "mask/conv1"),
    *with_bias(r"update_block\.mask\.2", "mask/conv2"),
  ]


def _encoder(theirs: str, ours: str) -> list[Rule]:
  return [
    *with_bias(rf"{theirs}\.conv([12])", rf"{ours}/conv\1"),
    *with_bias(rf"{theirs}\.layer(\d)\.(\d)\.conv(\d)", rf"{ours}/layer\1_\2/conv\3"),
    *with_bias(rf"{theirs}\.layer(\d)\.(\d)\.downsample\.0", rf"{ours}/layer\1_\2/skip"),
  ]


def _update() -> list[Rule]:
  return [
    *with_bias(r"update_block\.encoder\.convf1", "update/flow0"),
    *with_bias(r"update_block\.encoder\.convf2", "update/flow1"),
    *with_bias(r"update_block\.encoder\.conv", "update/motion"),
    *with_bias(r"update_block\.flow_head\.conv1", "update/head0"),
    *with_bias(r"update_block\.flow_head\.conv2", "update/head1"),
  ]


def _check_repeated(state: Mapping[str, np.ndarray], source: str) -> None:
  """One norm of the released large model is stored twice: both must say the same."""
  for key, value in state.items():
    other = key.replace(".norm3.", ".downsample.1.")
    if other != key and not np.array_equal(value, state.get(other, value)):
      raise UserError(f"{source}: {key} differs from {other}; give an unaltered RAFT checkpoint")
