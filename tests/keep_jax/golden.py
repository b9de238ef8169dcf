"""What the released KEEP gives for deterministic weights and inputs, and the means to compare.

parity/keep_units.npz holds one group of arrays a unit (`UNIT/...`), of small ones first, then of
whole models of reduced size (`keep_mini`, `keep_stage2`, `keep_stage3`). Arrays are the
reference's, [b c h w] or [b t c h w]; of output images every third pixel is kept.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from keep_jax.discriminator import PatchDiscriminator
from tests.parity import weights
from tests.support.keep_discriminators import patch_discriminator_rules
from tests.support.programs import jit as jit
from tests.support.programs import relative_error as relative_error
from vsr_jax.conversion import Rule, convert

PARITY = Path(__file__).parents[1] / "parity"
SEED = 1234


@functools.cache
def manifest(name: str = "keep_units") -> dict[str, list[int]]:
  """Key -> shape; the keys of keep_units begin with the unit's name."""
  return json.loads((PARITY / f"{name}.manifest.json").read_text())


@functools.cache
def data(unit: str) -> dict[str, np.ndarray]:
  """The arrays of a unit."""
  with np.load(PARITY / "keep_units.npz") as file:
    assert int(file["seed"]) == SEED
    keys = [key for key in file.files if key.startswith(f"{unit}/")]
    return {key.removeprefix(f"{unit}/"): file[key] for key in keys}


def state_dict(unit: str) -> dict[str, np.ndarray]:
  """The fixture's weights of a unit, keys without its name (which is part of their seed).

  A whole model has 0.4 GB and more, and takes seconds: `zeros` where its values do not matter.
  """
  state = weights.state_dict(_shapes(unit), SEED)
  return {key.removeprefix(f"{unit}."): value for key, value in state.items()}


def zeros(shapes: str | Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
  """A state dict of a unit, or of given shapes, that takes no memory."""
  if isinstance(shapes, str):
    unit = shapes
    shapes = {key.removeprefix(f"{unit}."): shape for key, shape in _shapes(unit).items()}
  return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def _shapes(unit: str) -> dict[str, list[int]]:
  return {key: shape for key, shape in manifest().items() if key.startswith(f"{unit}.")}


def inputs(shape: tuple[int, ...], offset: int, low: float = -1, high: float = 1) -> np.ndarray:
  """A fixture's input, in the reference's layout."""
  return weights.inputs(shape, SEED + offset, low, high)


def channels_last(x: np.ndarray) -> np.ndarray:
  """[... c h w] -> [... h w c]."""
  return np.moveaxis(x, -3, -1)


def channels_first(x: np.ndarray | jax.Array) -> np.ndarray:
  """[... h w c] -> [... c h w]."""
  return np.moveaxis(np.asarray(x), -1, -3)


def apply(net: nn.Module, rules: list[Rule], unit: str, *args: Any) -> Any:
  """A network's output with the fixture's weights of a unit."""
  args = jax.tree.map(jnp.asarray, args)
  template = jax.eval_shape(lambda: net.init(jax.random.key(0), *args))["params"]
  params = convert(state_dict(unit), rules, template, unit)
  return jit(lambda params, *args: net.apply({"params": params}, *args))(params, *args)


def kept(x: jax.Array) -> np.ndarray:
  """The pixels of an output image [... h w c] that the fixtures keep, [... c h w]."""
  return channels_first(x)[..., ::3, ::3]


def patch_discriminator(
  state: dict[str, np.ndarray], source: str
) -> tuple[PatchDiscriminator, dict[str, Any]]:
  """A fixture's discriminator as a network and its variables."""
  net = PatchDiscriminator(32)
  template = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  return net, convert(state, patch_discriminator_rules(), template, source)
