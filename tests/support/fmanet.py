"""FMA-Nets of the smallest sizes, with random weights."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, Params, param_shapes
from tests.support import programs
from vsr_jax.checkpoint import export_params

# Every part is there, and several heads and flows, where that makes a difference.
TINY = Architecture(
  dim=12,
  scale=2,
  kernel_down=4,
  kernel_up=3,
  flows=2,
  frma_blocks=1,
  rdb_blocks=1,
  growth=4,
  dense_layers=1,
  attention_blocks=1,
  heads=2,
)
# As small as it can be: for what becomes of frames and files.
SMALLEST = Architecture(
  dim=6,
  scale=2,
  kernel_down=2,
  kernel_up=1,
  flows=1,
  frma_blocks=1,
  rdb_blocks=1,
  growth=2,
  dense_layers=1,
  attention_blocks=1,
  heads=1,
)


@functools.cache
def load(arch: Architecture = SMALLEST) -> tuple[FMANet, Params]:
  """A model and parameters in which nothing is zero."""
  model = FMANet(arch)
  return model, programs.random_params(param_shapes(model))


def save(folder: pathlib.Path, arch: Architecture = SMALLEST) -> None:
  """Writes the model as a checkpoint."""
  export_params(folder, load(arch)[1], {"model": dataclasses.asdict(arch)})
