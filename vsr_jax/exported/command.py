"""What the export commands of both systems share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import export

from vsr_jax import cli, paths, progress
from vsr_jax import files as outputs
from vsr_jax.errors import UserError
from vsr_jax.exported import files, programs


def add_arguments(parser: cli.Parser) -> None:
  """Adds CHECKPOINT, FILE, --platforms and --dtype."""
  parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run, or a converted checkpoint")
  parser.add_argument("file", metavar="FILE", help="the file to be written, such as model.zip")
  parser.add_argument(
    "--platforms",
    type=_platforms,
    default=("cpu", "cuda", "tpu"),
    metavar="NAMES",
    help=f"what it is to run on, of {', '.join(programs.PLATFORMS)}; default: cpu,cuda,tpu",
  )
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def _platforms(text: str) -> tuple[str, ...]:
  names = tuple(text.split(","))
  if len(set(names)) < len(names) or set(names) - set(programs.PLATFORMS):
    raise argparse.ArgumentTypeError(
      f"{text!r} is not of the form cpu,tpu, with names of {', '.join(programs.PLATFORMS)}"
    )
  return names


def check_output(path: str) -> None:
  """Raises `UserError`, before any work is done, if the file cannot be written."""
  programs.check_installed()
  if paths.in_bucket(path):
    paths.check_writable(paths.place(path).parent)
    return
  outputs.check_place(path)
  if os.path.isdir(path):
    raise UserError(f"{path}: is a folder; name a file")


def write(
  args: argparse.Namespace,
  system: str,
  form: Mapping[str, Any],
  lowered: Mapping[str, export.Exported],
  params: Any,
) -> None:
  """Writes the file, and prints what it is and how it is run.

  Args:
    args: what `add_arguments` added, parsed.
    system: what it is, for people, such as "FMA-Net for frames of 320x180".
    form: the manifest's "windows" or "recursion".
    lowered: programs by name, from `programs.lower`.
    params: what all of them were lowered with.

  Raises:
    OSError: the file cannot be written.
  """
  weights = {name: np.asarray(x) for name, x in programs.by_name(params).items()}
  entries = {"system": system, "dtype": args.dtype, **form}
  size = files.write(args.file, entries, lowered, weights)
  print(
    f"{args.file}: {system}, {args.dtype}, on {', '.join(args.platforms)}: {', '.join(lowered)} "
    f"and {sum(x.size for x in weights.values()):,} parameters, {size / 1e6:.1f} MB"
  )
  progress.tell_next("vsr_jax.run_exported", args.file, "INPUT", "OUTPUT")
