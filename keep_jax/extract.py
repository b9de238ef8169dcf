"""Command: extracts from a training run the weights that restoring needs, to be kept or shipped.

  python -m keep_jax.extract RUN DIR [--float16]

RUN is a run of stage II or III, or a checkpoint of one. DIR gets the sub-networks of the model, by
their moving averages, and nothing of the optimizer, the discriminator or the machine. A flow
network that ships with this package (RAFT-small) is left out, and `keep_jax.restore` takes it from
there. --float16 halves the size.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import pathlib

import jax
import numpy as np

from keep_jax import weights
from keep_jax.model import Params
from vsr_jax import cli, extraction


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  extraction.run_command(
    "keep_jax", __doc__, "a run of stage II or III, or a checkpoint of one", extract
  )


def extract(run: str | pathlib.Path, folder: str | pathlib.Path, *, half: bool) -> str:
  """Writes what restoring needs of a run.

  Args:
    run: a run of stage II or III, or a checkpoint of one.
    folder: where to write; an earlier one there is replaced.
    half: store the numbers as float16.

  Returns:
    A line that tells what was written.

  Raises:
    UserError: the run cannot be restored from, the folder is something else, or float16 is too
      small for a number.
  """
  source = extraction.find_source(run, folder)
  model, params = weights.load(source)
  shipped = weights.shipped_flow(model.arch.flow)
  dtype = np.float16 if half else np.float32
  left_out = [name for name, tree in shipped.items() if _are_equal(tree, params[name], dtype)]
  # A tree without leaves (no CFT, no CFA) is left out, as checkpoints cannot hold it.
  kept = {
    name: tree for name, tree in params.items() if name not in left_out and jax.tree.leaves(tree)
  }
  told = extraction.write(source, folder, kept, model.arch, half=half)
  side = model.arch.image_size
  also = "; the flow network ships already" if left_out else ""
  return f"{folder}: KEEP for faces of {side}x{side}, {told}{also}"


def _are_equal(a: Params, b: Params, dtype: type[np.floating]) -> bool:
  """Whether two trees of arrays of one structure are the same as this type."""
  same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x, dtype), np.asarray(y, dtype)), a, b)
  return all(jax.tree.leaves(same))


if __name__ == "__main__":
  cli.run(main)
