"""Command: turns the released PyTorch weights of KEEP into a checkpoint of this project.

  python -m keep_jax.convert KEEP-b76feb75.pth DIR

Takes the files of v0.1.0 (KEEP-a1a14d46.pth) and of v1.0.0 (KEEP-b76feb75.pth, and
KEEP_Asian-4765ebe0.pth with its own CFT sides); as starts for training also CodeFormer's
codeformer.pth, for the networks that KEEP shares with it, and GMFlow's own file, for the flow.
PyTorch is not needed.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from keep_jax.weights import CODEFORMER, convert_released
from vsr_jax import errors, torch_files
from vsr_jax.errors import UserError
from vsr_jax.flow import gmflow_weights
from vsr_jax.train.checkpoint import export_params

# Of KEEP and CodeFormer, whose average is what the released code restores with, and of GMFlow.
WRAPPERS = ("params_ema", "params", "model")


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = errors.Parser(prog="keep_jax.convert", description=__doc__.partition("\n")[0])
  parser.add_argument("file", metavar="FILE", help="the released weights")
  parser.add_argument("folder", metavar="DIR", help="the checkpoint to be written")
  args = parser.parse_args()
  convert(args.file, args.folder)


def convert(file: str, folder: str) -> None:
  """Converts released weights and writes them with their architecture.

  Args:
    file: a state dict, bare or wrapped.
    folder: where to write the checkpoint; an earlier export there is replaced.

  Raises:
    UserError: the file is missing, damaged or of another model; the folder is something else.
  """
  if pathlib.Path(folder).resolve() in pathlib.Path(file).resolve().parents:
    raise UserError(f"{folder}: holds the input {file}; choose another folder")
  state = torch_files.unwrap(torch_files.load(file), WRAPPERS, file)
  model = None
  if _has(state, "backbone."):
    what, params = "GMFlow", {"flow": gmflow_weights.from_state_dict(state, file)}
  else:
    # KEEP's networks and some more of its own; with neither, KEEP's table says what is missing.
    codeformer = _has(state, "ft_layers.") and not _has(state, "kalman_filter.")
    arch, params = convert_released(state, file, CODEFORMER if codeformer else None)
    model = dataclasses.asdict(arch)
    what = f"{'CodeFormer' if codeformer else 'KEEP'} at {arch.image_size} pixels"
    what += f" (CFT at {list(arch.cft)}, CFA at {list(arch.cfa)})"
  name = pathlib.Path(file).name
  # A tree without leaves (no CFT, no CFA) is left out, as checkpoints cannot hold it.
  params = {name: tree for name, tree in params.items() if jax.tree.leaves(tree)}
  export_params(folder, params, {"model": model, "converted_from": [name]})
  count = sum(x.size for x in jax.tree.leaves(params))
  print(f"{folder}: {what}, {count:,} parameters of {', '.join(params)}")


def _has(state: Mapping[str, Any], start: str) -> bool:
  return any(key.startswith(start) for key in state)


if __name__ == "__main__":
  errors.run(main)
