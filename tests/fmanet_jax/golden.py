"""What the released code gives for deterministic weights and inputs, and the means to compare.

parity/fmanet_NAME.npz holds the released configuration (`config`), the inputs' sizes, outputs
(`out/*`), loss terms (`loss1/*`, `loss2/*`: stages 1 and 2), the norm of the gradient by tensor of
the manifest (`gradnorm1`, `gradnorm2`; NaN where there is none) and three steps of Adam
(`adam3/*`). Arrays are the reference's: [b c t h w], colours blue first. Of high-resolution arrays
every third pixel is kept, which meets each of the 16 sub-pixels of x4.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from fmanet_jax.architecture import Architecture
from fmanet_jax.conversion import convert_released, split_networks
from fmanet_jax.model import FMANet, Params
from tests.parity import weights
from tests.support.programs import jit as jit
from tests.support.programs import relative_error as relative_error

PARITY = Path(__file__).parents[1] / "parity"


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
  """A fixture, its weights converted and its inputs as the model takes them."""

  arch: Architecture
  params: Params
  batch: Mapping[str, np.ndarray]  # as stages takes it: images in [0, 255], here not rounded
  data: Mapping[str, np.ndarray]

  @property
  def model(self) -> FMANet:
    return FMANet(self.arch)

  @property
  def blurry(self) -> np.ndarray:
    return self.batch["blurry"] / np.float32(255)

  @property
  def sharp(self) -> np.ndarray:
    return self.batch["sharp"] / np.float32(255)

  def reference(self, key: str) -> np.ndarray:
    """An output of the reference, RGB with the channels last."""
    x = channels_last(self.data[key])
    return x if key == "out/image_flow" else x[..., ::-1]


def channels_last(x: np.ndarray) -> np.ndarray:
  """[b c ...] -> [b ... c]."""
  return np.moveaxis(x, 1, -1)


def manifest(name: str) -> dict[str, list[int]]:
  """Key -> shape of the released state dict, keys with the networks' prefixes."""
  return json.loads((PARITY / f"fmanet_{name}.manifest.json").read_text())


@functools.cache
def state_dict(name: str) -> dict[str, np.ndarray]:
  """The fixture's weights in the released layout."""
  with np.load(PARITY / f"fmanet_{name}.npz") as file:
    return weights.state_dict(manifest(name), int(file["seed"]), float(file["gain"]))


@functools.cache
def load(name: str) -> Golden:
  """The fixture "full", "tiny", "tiny_t5" or "tiny_biasfree"."""
  with np.load(PARITY / f"fmanet_{name}.npz") as file:
    data = dict(file)
  states = split_networks(state_dict(name))
  arch, params = convert_released(states["net_d"], states["net_r"], name)
  seed, b, h, w = (int(data[key]) for key in ("seed", "batch", "height", "width"))
  t, s = arch.frames, arch.scale

  def images(offset, h, w):
    x = channels_last(weights.inputs((b, 3, t, h, w), seed + offset))[..., ::-1]
    return (255 * x.astype(np.float64)).astype(np.float32)

  batch = {
    "blurry": images(1, h, w),
    "sharp": images(2, s * h, s * w),
    "sharp_lr": images(3, h, w),
    "flow": np.ascontiguousarray(channels_last(weights.inputs((b, 2, t, h, w), seed + 4, -3, 3))),
  }
  return Golden(arch, jax.tree.map(np.asarray, params), batch, data)


def kept(x: jax.Array) -> jax.Array:
  """The pixels of a high-resolution output [... h w c] that the fixtures keep."""
  return x[..., ::3, ::3, :]
