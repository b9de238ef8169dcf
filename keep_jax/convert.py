"""Command: turns the released PyTorch weights of KEEP into a checkpoint of this project.

  python -m keep_jax.convert KEEP-b76feb75.pth DIR
  python -m keep_jax.convert KEEP-b76feb75.pth DIR --flow raft-small.pth

Takes the files of v0.1.0 (KEEP-a1a14d46.pth) and of v1.0.0 (KEEP-b76feb75.pth, and
KEEP_Asian-4765ebe0.pth with its own CFT sides); as starts for training also CodeFormer's
codeformer.pth, for the networks that KEEP shares with it, and the authors' files of GMFlow,
PWC-Net, RAFT and SPyNet, for the flow. `--flow` puts another flow network in GMFlow's place, to
compare: PWC-Net, RAFT, SPyNet, or GMFlow trained otherwise. PyTorch is not needed.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from keep_jax.conversion import CODEFORMER, convert_released
from vsr_jax import cli, progress
from vsr_jax.checkpoint import check_export, export_params
from vsr_jax.errors import UserError
from vsr_jax.flow import released

# Keys under which KEEP's and CodeFormer's files wrap a state dict; the moving average, which the
# released code uses, comes first.
WRAPPERS = ("params_ema", "params")
# First names in the files of the discriminators of stages I and III.
DISCRIMINATORS = ("main.0.", "layers.0.weight_orig")


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("keep_jax.convert", __doc__)
  parser.add_argument("file", metavar="FILE", help="the released weights")
  parser.add_argument("folder", metavar="DIR", help="the checkpoint to be written")
  parser.add_argument("--flow", metavar="FILE", help="weights of PWC-Net, RAFT, SPyNet or GMFlow")
  args = parser.parse_args()
  convert(args.file, args.folder, args.flow)


def convert(file: str, folder: str, flow: str | None = None) -> None:
  """Converts released weights and writes them with their architecture.

  Args:
    file: a state dict, bare or wrapped.
    folder: where to write the checkpoint; an earlier export there is replaced.
    flow: weights of a flow network that takes the place of the file's own.

  Raises:
    UserError: a file is missing, damaged or of another model; the folder is something else.
  """
  files = [file] if flow is None else [file, flow]
  for path in files:
    if pathlib.Path(folder).resolve() in pathlib.Path(path).resolve().parents:
      raise UserError(f"{folder}: holds the input {path}; choose another folder")
  check_export(folder)
  state = released.read(file, WRAPPERS)
  model: dict[str, Any] | None = None
  what: str
  if released.kind_of(state):
    if flow is not None:
      raise UserError(f"{file}: is a flow network itself; give a KEEP's weights, or no --flow")
    what, net = released.from_state_dict(state, file)
    params = {"flow": net}
  elif any(_has(state, start) for start in DISCRIMINATORS):
    raise UserError(f"{file}: is a discriminator, which restores nothing; give a KEEP's weights")
  else:
    # KEEP's networks and some more of its own; with neither, KEEP's table says what is missing.
    codeformer = _has(state, "ft_layers.") and not _has(state, "kalman_filter.")
    arch, params = convert_released(state, file, CODEFORMER if codeformer else None)
    if flow is not None:
      name, params["flow"] = released.load(flow)
      arch = dataclasses.replace(arch, flow=name)
    model = dataclasses.asdict(arch)
    what = f"{'CodeFormer' if codeformer else 'KEEP'} at {arch.image_size} pixels"
    what += f" (CFT at {list(arch.cft)}, CFA at {list(arch.cfa)}, flow by {arch.flow})"
  # A tree without leaves (no CFT, no CFA) is left out, as checkpoints cannot hold it.
  params = {name: tree for name, tree in params.items() if jax.tree.leaves(tree)}
  names = [pathlib.Path(path).name for path in files]
  export_params(folder, params, {"model": model, "converted_from": names})
  count = sum(x.size for x in jax.tree.leaves(params))
  print(f"{folder}: {what}, {count:,} parameters of {', '.join(params)}")
  if what.startswith("KEEP"):  # the others are starts for training
    progress.tell_next("keep_jax.restore", "INPUT", "OUTPUT", "--checkpoint", folder)


def _has(state: Mapping[str, Any], start: str) -> bool:
  return any(key.startswith(start) for key in state)


if __name__ == "__main__":
  cli.run(main)
