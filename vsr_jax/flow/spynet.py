"""SPyNet: optical flow by a spatial pyramid of networks (Ranjan and Black, CVPR 2017).

From the smallest image of a pyramid to the largest, a small network estimates the residual of the
enlarged flow of the level before. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vsr_jax.flow.common import (
  check_frames,
  check_pair,
  normalized_as_imagenet,
  upsample_align_corners,
)
from vsr_jax.layers import Conv
from vsr_jax.ops.warp import backward_warp

LEVELS = 6
MULTIPLE = 2 ** (LEVELS - 1)  # image sides are multiples of it

_WIDTHS = (32, 64, 32, 16)  # of a level's convolutions but the last, whose output is the flow

Params = Mapping[str, Any]
Pyramid = tuple[jax.Array, ...]  # normalised images [b h/2^i w/2^i 3], the smallest first


class Level(nn.Module):
  """Both images, the second one warped, and the flow so far [b h w 8] to its change [b h w 2]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, width in enumerate(_WIDTHS):
      x = nn.relu(Conv(width, 7, use_bias=True, name=f"conv{i}")(x))
    return Conv(2, 7, use_bias=True, name=f"conv{len(_WIDTHS)}")(x)


def init(key: jax.Array) -> dict[str, Any]:
  """Random parameters; under `jax.eval_shape` the template for the converter."""
  keys = jax.random.split(key, LEVELS)
  inputs = jnp.zeros((1, 1, 1, 8))
  return {f"level{i}": Level().init(k, inputs)["params"] for i, k in enumerate(keys)}


def encode(params: Params, frames: jax.Array) -> Pyramid:
  """The pyramid of frames, each on its own: what `flow_from_features` takes.

  Args:
    params: not used; a frame's pyramid is the same for all.
    frames: [b h w 3] RGB in [0, 255], sides multiples of 32.

  Returns:
    Normalised images, the smallest first; each is the mean of 2x2 pixels of the next.

  Raises:
    ValueError: the shape is another.
  """
  del params
  check_frames(frames, MULTIPLE)
  pyramid = [normalized_as_imagenet(frames)]
  for _ in range(LEVELS - 1):
    b, h, w, c = pyramid[-1].shape
    pyramid.append(pyramid[-1].reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)))
  return tuple(reversed(pyramid))


@jax.default_matmul_precision("float32")
def flow_from_features(params: Params, pyramid1: Pyramid, pyramid2: Pyramid) -> jax.Array:
  """Estimates the flow between frames from their pyramids.

  Args:
    params: from `spynet_conversion.load` or `init`.
    pyramid1: from `encode`.
    pyramid2: the same of the other frames.

  Returns:
    [b h w 2] float32, (dx, dy) in pixels: frame 1 at (x, y) looks like frame 2 at (x + dx, y + dy).
  """
  flow = jnp.zeros((*pyramid1[0].shape[:3], 2))
  for i, (first, second) in enumerate(zip(pyramid1, pyramid2, strict=True)):
    if i:
      flow = upsample_align_corners(flow, 2)
    warped = backward_warp(second, within_image(flow))
    x = jnp.concatenate([first, warped, flow], axis=-1)
    flow = flow + Level().apply({"params": params[f"level{i}"]}, x)
  return flow


def spynet(params: Params, image1: jax.Array, image2: jax.Array) -> jax.Array:
  """Estimates the flow from image1 to image2.

  Args:
    params: from `spynet_conversion.load` or `init`.
    image1: [b h w 3] RGB in [0, 255], sides multiples of 32.
    image2: the same of the other image.

  Returns:
    [b h w 2] float32, (dx, dy) in pixels: image1 at (x, y) looks like image2 at (x + dx, y + dy).

  Raises:
    ValueError: the shapes differ, or a side is not a multiple of 32.
  """
  check_pair(image1, image2)
  return flow_from_features(params, encode(params, image1), encode(params, image2))


def within_image(flow: jax.Array) -> jax.Array:
  """Flow [b h w 2] that ends at the image's border where it would leave the image.

  A warp by it continues the image by its border pixels, as the released weights expect.
  """
  _, h, w, _ = flow.shape
  y, x = jnp.mgrid[:h, :w].astype(jnp.float32)
  grid = jnp.stack([x, y], axis=-1)[None]
  last = jnp.array([w - 1, h - 1], jnp.float32).reshape(1, 1, 1, 2)
  return jnp.clip(grid + flow, 0, last) - grid
