"""PWC-Net: optical flow by pyramid, warping and cost volume (Sun et al., CVPR 2018).

The variant whose weights its authors released: dense connections in the estimators, and a context
network (PWC-DC-Net). Everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.flow.common import check_frames, check_pair
from vsr_jax.ops.resize import resize_bilinear
from vsr_jax.ops.warp import backward_warp

LEVELS = (6, 5, 4, 3, 2)  # where flow is estimated; level i has 1/2^i of the image's sides
MULTIPLE = 2 ** LEVELS[0]  # image sides are multiples of it
RADIUS = 4  # the cost volume's, in pixels of its level

_FLOW_UNIT = 20  # pixels of the image
_WIDTHS = (16, 32, 64, 96, 128, 196)  # the pyramid's, from level 1
_DENSE_WIDTHS = (128, 128, 96, 64, 32)  # an estimator's
_CONTEXT = ((128, 1), (128, 2), (128, 4), (96, 8), (64, 16), (32, 1))  # widths and dilations
_WITHIN = 0.9999  # least share of a sample's bilinear weights inside the image

Params = Mapping[str, Any]
Pyramid = dict[int, jax.Array]  # by level, features [b h w c]


def _conv(width: int, name: str, stride: int = 1, dilation: int = 1) -> nn.Conv:
  return nn.Conv(width, (3, 3), stride, dilation, kernel_dilation=dilation, name=name)


def _enlarge(name: str) -> nn.ConvTranspose:
  """[b h w c] -> [b 2h 2w 2]."""
  return nn.ConvTranspose(2, (4, 4), (2, 2), ((2, 2), (2, 2)), name=name)


def _activate(x: jax.Array) -> jax.Array:
  return nn.leaky_relu(x, 0.1)


class FeaturePyramid(nn.Module):
  """The pyramid of images [b h w 3], BGR in [0, 1]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> Pyramid:
    pyramid = {}
    for level, width in enumerate(_WIDTHS, start=1):
      for i in range(3):
        x = _activate(_conv(width, f"conv{level}_{i}", stride=1 if i else 2)(x))
      pyramid[level] = x
    return {level: pyramid[level] for level in LEVELS}


class LevelEstimator(nn.Module):
  """One level's flow [b h w 2], in units of 20 pixels of the image, and the features behind it."""

  level: int

  @nn.compact
  def __call__(
    self, first: jax.Array, second: jax.Array, above: tuple[jax.Array, jax.Array] | None
  ) -> tuple[jax.Array, jax.Array]:
    """Takes both images' features [b h w c] and the outputs of the level above, half as large."""
    if above is None:
      x = _activate(cost_volume(first, second))
    else:
      flow, features = _enlarge("up_flow")(above[0]), _enlarge("up_features")(above[1])
      second = warp_within(second, flow * (_FLOW_UNIT / 2**self.level))
      x = _activate(cost_volume(first, second))
      x = jnp.concatenate([x, first, flow, features], axis=-1)
    for i, width in enumerate(_DENSE_WIDTHS):
      x = jnp.concatenate([_activate(_conv(width, f"conv{i}")(x)), x], axis=-1)
    return _conv(2, "flow")(x), x


class Context(nn.Module):
  """The context network: the last estimator's features [b h w c] to a correction of its flow."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, (width, dilation) in enumerate(_CONTEXT):
      x = _activate(_conv(width, f"conv{i}", dilation=dilation)(x))
    return _conv(2, f"conv{len(_CONTEXT)}")(x)


def init(key: jax.Array) -> dict[str, Any]:
  """Random parameters; under `jax.eval_shape` the template for the converter."""
  features_key, context_key, *keys = jax.random.split(key, 2 + len(LEVELS))
  image = jnp.zeros((1, MULTIPLE, MULTIPLE, 3))
  pyramid, params = FeaturePyramid().init_with_output(features_key, image)
  params = {"features": params["params"]}
  above: Any = None
  for level, k in zip(LEVELS, keys, strict=True):
    estimator = LevelEstimator(level)
    above, variables = estimator.init_with_output(k, pyramid[level], pyramid[level], above)
    params[f"estimator{level}"] = variables["params"]
  params["context"] = Context().init(context_key, above[1])["params"]
  return params


@jax.default_matmul_precision("float32")
def encode(params: Params, frames: jax.Array) -> Pyramid:
  """The pyramid of frames, each on its own: what `flow_from_features` takes.

  Args:
    params: from `pwcnet_conversion.load` or `init`.
    frames: [b h w 3] RGB in [0, 255], sides multiples of 64.

  Returns:
    Features of levels 6 to 2.

  Raises:
    ValueError: the shape is another.
  """
  check_frames(frames, MULTIPLE)
  x = frames[..., ::-1].astype(jnp.float32) / 255  # the released weights see BGR
  return FeaturePyramid().apply({"params": params["features"]}, x)


@jax.default_matmul_precision("float32")
def flow_from_features(params: Params, pyramid1: Pyramid, pyramid2: Pyramid) -> jax.Array:
  """Estimates the flow between frames from their pyramids.

  Args:
    params: from `pwcnet_conversion.load` or `init`.
    pyramid1: from `encode`.
    pyramid2: the same of the other frames.

  Returns:
    [b h w 2] float32, (dx, dy) in pixels: frame 1 at (x, y) looks like frame 2 at (x + dx, y + dy).
  """
  estimate: Any = None
  for level in LEVELS:
    variables = {"params": params[f"estimator{level}"]}
    estimate = LevelEstimator(level).apply(variables, pyramid1[level], pyramid2[level], estimate)
  flow, features = estimate
  flow = flow + Context().apply({"params": params["context"]}, features)
  return resize_bilinear(_FLOW_UNIT * flow, 2 ** LEVELS[-1])


def pwcnet(params: Params, image1: jax.Array, image2: jax.Array) -> jax.Array:
  """Estimates the flow from image1 to image2.

  Args:
    params: from `pwcnet_conversion.load` or `init`.
    image1: [b h w 3] RGB in [0, 255], sides multiples of 64.
    image2: the same of the other image.

  Returns:
    [b h w 2] float32, (dx, dy) in pixels: image1 at (x, y) looks like image2 at (x + dx, y + dy).

  Raises:
    ValueError: the shapes differ, or a side is not a multiple of 64.
  """
  check_pair(image1, image2)
  return flow_from_features(params, encode(params, image1), encode(params, image2))


def cost_volume(first: jax.Array, second: jax.Array) -> jax.Array:
  """Correlation of each pixel's features with those around it in the other image (Eq. 2).

  Args:
    first: features [b h w c].
    second: the same of the other image.

  Returns:
    [b h w 81], means of products over the channels, for displacements (dx, dy) from (-4, -4) to
    (4, 4); dx varies fastest. Outside the image features are 0.
  """
  pad = (RADIUS, RADIUS)
  padded = jnp.pad(second, ((0, 0), pad, pad, (0, 0)))
  side = jnp.arange(2 * RADIUS + 1)
  y, x = (shift.reshape(-1) for shift in jnp.meshgrid(side, side, indexing="ij"))

  def one(shift: tuple[jax.Array, jax.Array]) -> jax.Array:
    moved = lax.dynamic_slice(padded, (0, *shift, 0), first.shape)
    return (first * moved).mean(-1)

  return jnp.moveaxis(lax.map(one, (y, x)), 0, -1)


def warp_within(features: jax.Array, flow: jax.Array) -> jax.Array:
  """Features [b h w c] warped by flow [b h w 2] in their pixels; 0 where it leaves the image."""
  within = jnp.ones((*features.shape[:3], 1))
  warped = backward_warp(jnp.concatenate([features, within], axis=-1), flow)
  return jnp.where(warped[..., -1:] >= _WITHIN, warped[..., :-1], 0)
