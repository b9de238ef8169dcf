"""A KEEP of the smallest size that has all its parts, with random weights, and clips for it.

Without a flow network, which would take most of the time to compile: clips come with random flows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keep_jax.architecture import Architecture
from keep_jax.model import KEEP, Params, param_shapes
from tests.keep_jax import golden
from tests.support.programs import random_params
from vsr_jax.checkpoint import export_params

ARCH = Architecture(
  image_size=32,
  width=32,
  multiples=(1, 1),
  res_blocks=1,
  emb_dim=32,
  codes=16,
  dim=32,
  heads=2,
  layers=1,
  gain_head_dim=8,
  gain_layers=1,
  cft=(16,),
  cfa=(16,),
  cfa_heads=2,
  cfa_head_dim=16,
  flow="none",
)


@functools.cache
def load(arch: Architecture = ARCH) -> tuple[KEEP, Params]:
  """A model and parameters in which nothing is zero: CFT and CFA do something."""
  model = KEEP(arch)
  return model, random_params(param_shapes(model))


def save(folder) -> None:
  """Writes the model as a checkpoint, which cannot hold trees without leaves."""
  model, params = load()
  full = {part: tree for part, tree in params.items() if jax.tree.leaves(tree)}
  export_params(folder, full, {"model": dataclasses.asdict(model.arch)})


def change(**fields: Any) -> Architecture:
  """The tiny architecture with other fields."""
  return dataclasses.replace(ARCH, **fields)


def clip(length: int = 3, batch: int = 1, size: int = 32) -> jax.Array:
  """Low-quality frames in [-1, 1] of a pattern that moves, [b t size size 3]."""
  wide = golden.channels_last(golden.inputs((batch, 3, size, size + 2 * length), 50))
  return jnp.asarray(np.stack([wide[:, :, 2 * i : 2 * i + size] for i in range(length)], axis=1))


def random_flows(length: int = 3, batch: int = 1) -> jax.Array:
  """Flows of some pixels from each frame to the one before, [b t-1 32 32 2]."""
  return 2 * jax.random.normal(jax.random.key(2), (batch, length - 1, 32, 32, 2))


def as_uint8(frames: jax.Array) -> np.ndarray:
  """Frames of one clip as a restorer takes them, [t h w 3]."""
  return np.rint(127.5 * (np.asarray(frames)[0] + 1)).astype(np.uint8)
