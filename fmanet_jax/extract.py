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
from vsr_jax import cli, extraction, progress


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("fmanet_jax.extract", __doc__)
  parser.add_argument("run", metavar="RUN", help="a run of stage 2, or a checkpoint of one")
  parser.add_argument("folder", metavar="DIR", help="the checkpoint to be written")
  parser.add_argument("--float16", action="store_true", help="store numbers in half the space")
  args = parser.parse_args()
  print(extract(args.run, args.folder, half=args.float16))
  progress.tell_next("fmanet_jax.restore", "INPUT", "OUTPUT", "--checkpoint", args.folder)


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
