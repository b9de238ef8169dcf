"""Command: extracts from a training run the weights that restoring needs, to be kept or shipped.

  python -m fmanet_jax.extract RUN DIR [--float16]

RUN is a run of stage 2, or a checkpoint of one. DIR gets both networks, by their moving averages if
there are any, and nothing of the optimizer or the machine. --float16 halves the size.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import pathlib

from fmanet_jax import streaming
from vsr_jax import cli, extraction


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  extraction.run_command("fmanet_jax", __doc__, "a run of stage 2, or a checkpoint of one", extract)


def extract(run: str | pathlib.Path, folder: str | pathlib.Path, *, half: bool) -> str:
  """Writes what restoring needs of a run.

  Args:
    run: a run of stage 2, or a checkpoint of one.
    folder: where to write; an earlier one there is replaced.
    half: store the numbers as float16.

  Returns:
    A line that tells what was written.

  Raises:
    UserError: the run cannot be restored from, the folder is something else, or float16 is too
      small for a number.
  """
  source = extraction.find_source(run, folder)
  model, params = streaming.load(source)
  told = extraction.write(source, folder, params, model.arch, half=half)
  return f"{folder}: FMA-Net of scale {model.arch.scale}, {told}"


if __name__ == "__main__":
  cli.run(main)
