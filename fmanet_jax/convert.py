"""Command: turns the released PyTorch weights of FMA-Net into a checkpoint of this project.

  python -m fmanet_jax.convert model_D.pt model_R.pt DIR
  python -m fmanet_jax.convert model.pt DIR    (both networks in one file)

PyTorch is not needed. The colour order of the released networks, BGR, is folded into the kernels:
the checkpoint is of an RGB model. The architecture is read off the tensors' shapes.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fmanet_jax.conversion import PREFIXES, convert_released, split_networks
from vsr_jax import cli, progress, torch_files
from vsr_jax.checkpoint import check_export, export_params
from vsr_jax.errors import UserError

WRAPPERS = ("model_D_state_dict", "model_R_state_dict", "state_dict")
ENCODER = "feature_extractor."  # in both networks
ONLY_IN_NET_R = "r_conv."  # the head of K^R
NAMES = {"net_d": "Net^D (model_D)", "net_r": "Net^R (model_R)"}

State = dict[str, np.ndarray]


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  convert(args.files, args.folder)


def convert(files: Sequence[str], folder: str) -> None:
  """Converts released weights and writes them with their architecture.

  Args:
    files: the two networks' files in either order, or one that holds both.
    folder: where to write the checkpoint; an earlier export there is replaced.

  Raises:
    UserError: a file is missing, damaged, or not of an FMA-Net; the folder is something else.
  """
  for file in files:
    if pathlib.Path(folder).resolve() in pathlib.Path(file).resolve().parents:
      raise UserError(f"{folder}: holds the input {file}; choose another folder")
  check_export(folder)
  states: dict[str, State] = {}
  origin: dict[str, str] = {}
  for file in files:
    for net, state in read_networks(file).items():
      if net in states:
        raise UserError(f"{file}: holds {NAMES[net]}, as {origin[net]} does; give each one once")
      states[net], origin[net] = state, file
  for net in PREFIXES:
    if net not in states:
      raise UserError(f"{', '.join(files)}: no {NAMES[net]} in there; give the files of both")
  source = " and ".join(dict.fromkeys(files))
  arch, params = convert_released(states["net_d"], states["net_r"], source)
  names = [pathlib.Path(file).name for file in files]
  export_params(folder, params, {"model": dataclasses.asdict(arch), "converted_from": names})
  count = sum(x.size for x in jax.tree.leaves(params))
  print(
    f"{folder}: FMA-Net x{arch.scale}, {count:,} parameters: T = {arch.frames}, "
    f"n = {arch.flows}, k_d = {arch.kernel_down}, k_r = {arch.kernel_up}, M = {arch.frma_blocks}"
  )
  progress.tell_next("fmanet_jax.restore", "INPUT", "OUTPUT", "--checkpoint", folder)


def read_networks(path: str) -> dict[str, State]:
  """Reads the state dicts that a file holds, bare or wrapped, for one network or both.

  Returns:
    Those of "net_d" and "net_r" that are there; keys without the networks' prefixes.

  Raises:
    UserError: the file is missing or damaged, or holds something else.
  """
  contents = torch_files.load(path)
  present = [name for name in WRAPPERS if isinstance(contents.get(name), Mapping)]
  states = [torch_files.unwrap(contents, (name,), path) for name in present]
  found: dict[str, State] = {}
  for state in states or [torch_files.unwrap(contents, WRAPPERS, path)]:
    for net, part in _by_network(state, path).items():
      if net in found:
        raise UserError(f"{path}: holds {NAMES[net]} twice; give a file with one")
      found[net] = part
  return found


def _by_network(state: State, path: str) -> dict[str, State]:
  """Splits a state dict by network: both, or the one that its keys belong to."""
  parts = {net: part for net, part in split_networks(state).items() if part}
  if not parts:
    if not any(key.startswith(ENCODER) for key in state):
      raise UserError(f"{path}: holds {next(iter(state))} and so on; give an FMA-Net's weights")
    in_net_r = any(key.startswith(ONLY_IN_NET_R) for key in state)
    return {"net_r" if in_net_r else "net_d": state}
  strangers = [key for key in state if not key.startswith(tuple(PREFIXES.values()))]
  if strangers:
    raise UserError(f"{path}: unexpected {', '.join(strangers[:5])} beside the two networks")
  return parts


def _parse() -> argparse.Namespace:
  parser = cli.Parser(
    "fmanet_jax.convert", __doc__, usage="%(prog)s [-h] model_D.pt model_R.pt DIR"
  )
  parser.add_argument(
    "files", nargs="+", metavar="FILE", help="one for each network, or one for both"
  )
  parser.add_argument("folder", metavar="DIR", help="the checkpoint to be written")
  args = parser.parse_args()
  if len(args.files) > 2:
    parser.error(f"{len(args.files)} files given, there are two networks")
  return args


if __name__ == "__main__":
  cli.run(main)
