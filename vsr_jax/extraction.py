"""Weights that are taken out of a training run, to be kept or shipped."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vsr_jax import cli, progress
from vsr_jax.checkpoint import check_export, export_params, find_checkpoint, read_meta
from vsr_jax.errors import UserError


def run_command(system: str, about: str, source: str, extract: Callable[..., str]) -> None:
  """Runs a system's command `extract`.

  Args:
    system: its package, such as "keep_jax".
    about: the command's docstring.
    source: what weights can be taken from, for the help.
    extract: `(run, folder, *, half) -> line`, which writes them and tells what was written.
  """
  parser = cli.Parser(f"{system}.extract", about)
  parser.add_argument("run", metavar="RUN", help=source)
  parser.add_argument("folder", metavar="DIR", help="the checkpoint to be written")
  parser.add_argument("--float16", action="store_true", help="store numbers in half the space")
  args = parser.parse_args()
  print(extract(args.run, args.folder, half=args.float16))
  progress.tell_next(f"{system}.restore", "INPUT", "OUTPUT", "--checkpoint", args.folder)


def find_source(run: str | pathlib.Path, folder: str | pathlib.Path) -> pathlib.Path:
  """The checkpoint to take weights from.

  Args:
    run: a run's folder, or a checkpoint.
    folder: where they are to be written.

  Raises:
    UserError: there is no checkpoint, or the folder holds it or is something else.
  """
  source = find_checkpoint(run)
  if pathlib.Path(folder).resolve() in (source.resolve(), *source.resolve().parents):
    raise UserError(f"{folder}: holds the run {run}; choose another folder")
  check_export(folder)
  return source


def write(
  source: pathlib.Path,
  folder: str | pathlib.Path,
  params: Mapping[str, Any],
  architecture: Any,
  *,
  half: bool,
) -> str:
  """Writes params as a checkpoint without the machine's or the training's state.

  Args:
    source: from `find_source`; what its metadata tells of the stage is kept.
    folder: where to write; an earlier checkpoint there is replaced.
    params: what to write, by sub-network.
    architecture: the model's sizes, a dataclass.
    half: store the numbers as float16.

  Returns:
    How much was written: parameters, sub-networks and megabytes.

  Raises:
    UserError: float16 is too small for a number, or the folder cannot be written.
  """
  meta = read_meta(source)
  kept = {name: meta[name] for name in ("stage", "step", "converted_from") if name in meta}
  export_params(folder, params, {"model": dataclasses.asdict(architecture), **kept}, half=half)
  count = sum(x.size for x in jax.tree.leaves(dict(params)))
  stored = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
  return f"{count:,} parameters of {', '.join(params)}, {stored / 1e6:.1f} MB"
