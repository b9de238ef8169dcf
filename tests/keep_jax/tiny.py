"""A KEEP of the smallest size that has all its parts, with random weights, and clips for it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keep_jax.architecture import Architecture
from keep_jax.model import KEEP, Params, init_params
from tests.keep_jax import golden

ARCH = Architecture(
  image_size=32,
  width=32,
  multiples=(1, 1, 1),
  res_blocks=1,
  emb_dim=32,
  codes=16,
  dim=32,
  heads=2,
  layers=1,
  gain_head_dim=8,
  gain_layers=1,
  cft=(8, 16),
  cfa=(8, 16),
  cfa_heads=2,
  cfa_head_dim=16,
)


@functools.cache
def load(arch: Architecture = ARCH) -> tuple[KEEP, Params]:
  """A model and parameters in which nothing is zero: CFT and CFA do something."""
  model = KEEP(arch)

  @golden.jit
  def init(key):
    leaves, tree = jax.tree.flatten(init_params(model, key))
    keys = jax.random.split(key, len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noisy)

  return model, init(jax.random.key(1))


def change(**fields: Any) -> Architecture:
  """The tiny architecture with other fields."""
  return dataclasses.replace(ARCH, **fields)


def clip(length: int = 4, batch: int = 1) -> jax.Array:
  """Low-quality frames in [-1, 1] of a pattern that moves, [b t 32 32 3]."""
  wide = golden.channels_last(golden.inputs((batch, 3, 32, 32 + 2 * length), 50))
  return jnp.asarray(np.stack([wide[:, :, 2 * i : 2 * i + 32] for i in range(length)], axis=1))


def as_uint8(frames: jax.Array) -> np.ndarray:
  """Frames of one clip as a restorer takes them, [t 32 32 3]."""
  return np.rint(127.5 * (np.asarray(frames)[0] + 1)).astype(np.uint8)
