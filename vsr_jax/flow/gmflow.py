"""GMFlow: optical flow by global matching (Xu et al., CVPR 2022, arXiv 2111.13680).

The released network without refinement: one scale, at 1/8 of the image.
`encode` sees one frame only, so that a frame of a video, which belongs to two pairs, is encoded
once. Parameters, norms, softmax and coordinates are float32; `dtype` is the type of the operands of
convolutions and matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax.flow.common import (
  STRIDE,
  InstanceNorm,
  check_frames,
  check_pair,
  normalized_as_imagenet,
  upsample_convex,
)
from vsr_jax.ops.activations import gelu
from vsr_jax.ops.attention import Windows, attend_globally, attend_in_windows

WIDTH = 128  # the features' channels
LAYERS = 6  # the transformer's
WINDOWS = 2  # attention windows along each axis of the image
MULTIPLE = STRIDE * WINDOWS  # image sides are multiples of it

_EXPANSION = 4  # the feed-forward network's hidden width over its input's
_EPSILON = 1e-5  # under the layer norms' root

Params = Mapping[str, Any]


def _normalize(x: jax.Array) -> jax.Array:
  """Instance normalisation in float32 of [b h w c] of any type."""
  return InstanceNorm()(x.astype(jnp.float32)).astype(x.dtype)


class ResidualBlock(nn.Module):
  """Two normalised 3x3 convolutions beside a skip connection: [b h w c] to [b h/s w/s features]."""

  features: int
  stride: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self._conv(3, self.stride, "conv1")(x)
    y = self._conv(3, 1, "conv2")(nn.relu(_normalize(y)))
    if self.stride != 1:
      x = _normalize(self._conv(1, self.stride, "skip", use_bias=True)(x))
    return nn.relu(x + nn.relu(_normalize(y)))

  def _conv(self, size: int, stride: int, name: str, use_bias: bool = False) -> nn.Conv:
    return nn.Conv(
      self.features, (size, size), stride, size // 2, use_bias=use_bias, dtype=self.dtype, name=name
    )


class Encoder(nn.Module):
  """Images [b h w 3] in [0, 255] to features [b h/8 w/8 128] in float32."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = normalized_as_imagenet(x)
    x = nn.Conv(64, (7, 7), 2, 3, use_bias=False, dtype=self.dtype, name="conv1")(x)
    x = nn.relu(_normalize(x))
    for i, width in enumerate((64, 96, 128), 1):
      x = ResidualBlock(width, 1 if i == 1 else 2, self.dtype, name=f"layer{i}_0")(x)
      x = ResidualBlock(width, 1, self.dtype, name=f"layer{i}_1")(x)
    return nn.Conv(WIDTH, (1, 1), dtype=self.dtype, name="conv2")(x).astype(jnp.float32)


def _layer_norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(_EPSILON, use_fast_variance=False, name=name)


class Attention(nn.Module):
  """Single-head attention within windows, its result normalised."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, source: jax.Array, target: jax.Array, windows: Windows) -> jax.Array:
    """Queries from source, keys and values from target, both [... h w 128] -> [... h w 128]."""
    query, key, value = self._dense("query"), self._dense("key"), self._dense("value")
    message = attend_in_windows(query(source), key(target), value(target), windows)
    message = self._dense("merge")(message)
    return _layer_norm("norm")(message.astype(jnp.float32))

  def _dense(self, name: str) -> nn.Dense:
    return nn.Dense(WIDTH, use_bias=False, dtype=self.dtype, name=name)


class FeedForward(nn.Module):
  """Features and a message for them, both [... 128], to the normalised change [... 128]."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, features: jax.Array, message: jax.Array) -> jax.Array:
    # Flat: on CPU a plain product takes three quarters of the time of one with five axes.
    x = jnp.concatenate([features, message], axis=-1).reshape(-1, 2 * WIDTH)
    x = nn.Dense(_EXPANSION * 2 * WIDTH, use_bias=False, dtype=self.dtype, name="dense1")(x)
    x = nn.Dense(WIDTH, use_bias=False, dtype=self.dtype, name="dense2")(gelu(x))
    return _layer_norm("norm")(x.astype(jnp.float32)).reshape(features.shape)


class Transformer(nn.Module):
  """Features of two frames, stacked [b 2 h w 128], made aware of each other."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    *_, h, w, _ = x.shape
    for i in range(LAYERS):
      shifted = bool(i % 2)
      windows = (window_sizes(h, shifted), window_sizes(w, shifted))
      other = x[:, ::-1]  # as the layer finds it, before its own self-attention
      x = x + Attention(self.dtype, name=f"layer{i}_self")(x, x, windows)
      message = Attention(self.dtype, name=f"layer{i}_cross")(x, other, windows)
      x = x + FeedForward(self.dtype, name=f"layer{i}_ffn")(x, message)
    return x


class Propagation(nn.Module):
  """Flow propagation by self-attention: unmatched pixels take the flow of similar pixels."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, flow: jax.Array) -> jax.Array:
    """Features [b h w 128] and flow [b h w 2] of the same frame -> flow."""
    query = nn.Dense(WIDTH, dtype=self.dtype, name="query")(features)
    # The released weights project the projected features again.
    key = nn.Dense(WIDTH, dtype=self.dtype, name="key")(query)
    return attend_globally(query, key, flow)


class Upsampler(nn.Module):
  """Features [b h w 128] and flow [b h w 2] to the convex upsampling's logits [b h w 9*8*8]."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array, flow: jax.Array) -> jax.Array:
    x = jnp.concatenate([flow, features], axis=-1)
    x = nn.relu(nn.Conv(256, (3, 3), padding=1, dtype=self.dtype, name="conv1")(x))
    x = nn.Conv(9 * STRIDE**2, (1, 1), dtype=self.dtype, name="conv2")(x)
    return x.astype(jnp.float32)


def init(key: jax.Array) -> dict[str, Any]:
  """Random parameters; under `jax.eval_shape` the template for the converter."""
  image = jnp.zeros((1, MULTIPLE, MULTIPLE, 3))
  features = jnp.zeros((1, WINDOWS, WINDOWS, WIDTH))
  flow = features[..., :2]
  inputs: dict[str, tuple] = {
    "encoder": (Encoder(), image),
    "transformer": (Transformer(), jnp.stack([features, features], axis=1)),
    "propagation": (Propagation(), features, flow),
    "upsampler": (Upsampler(), features, flow),
  }
  keys = jax.random.split(key, len(inputs))
  return {
    name: part.init(k, *args)["params"]
    for k, (name, (part, *args)) in zip(keys, inputs.items(), strict=True)
  }


@jax.default_matmul_precision("float32")
def encode(params: Params, frames: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Features of frames, each on its own: what `flow_from_features` takes.

  Args:
    params: from `gmflow_conversion.load` or `init`.
    frames: [b h w 3] RGB in [0, 255], sides multiples of 16.
    dtype: the type of the products' operands, float32 or bfloat16.

  Returns:
    [b h/8 w/8 128] float32, its position in the attention's windows added.

  Raises:
    ValueError: the shape is another.
  """
  check_frames(frames, MULTIPLE)
  features = Encoder(dtype).apply({"params": params["encoder"]}, frames)
  position = position_code(*(n // WINDOWS for n in features.shape[1:3]))
  return features + jnp.tile(position, (WINDOWS, WINDOWS, 1))[None]


@jax.default_matmul_precision("float32")
def flow_from_features(
  params: Params, features1: jax.Array, features2: jax.Array, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """Estimates the flow between frames from their features.

  Args:
    params: from `gmflow_conversion.load` or `init`.
    features1: [b h/8 w/8 128] from `encode`.
    features2: the same of the other frames.
    dtype: the type of the products' operands, float32 or bfloat16.

  Returns:
    [b h w 2] float32, (dx, dy) in pixels: frame 1 at (x, y) looks like frame 2 at (x + dx, y + dy).

  Raises:
    ValueError: the shapes differ.
  """
  if features1.shape != features2.shape:
    raise ValueError(f"features of shapes {features1.shape} and {features2.shape}")

  def apply(part: Callable[..., nn.Module], name: str, *args: jax.Array) -> Any:
    return part(dtype).apply({"params": params[name]}, *args)

  both = apply(Transformer, "transformer", jnp.stack([features1, features2], axis=1))
  features1, features2 = both[:, 0], both[:, 1]
  flow = match(features1.astype(dtype), features2.astype(dtype))
  flow = apply(Propagation, "propagation", features1, flow)
  return upsample_convex(flow, apply(Upsampler, "upsampler", features1, flow))


def gmflow(
  params: Params, image1: jax.Array, image2: jax.Array, dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """Estimates the flow from image1 to image2.

  Args:
    params: from `gmflow_conversion.load` or `init`.
    image1: [b h w 3] RGB in [0, 255], sides multiples of 16.
    image2: the same of the other image.
    dtype: the type of the products' operands, float32 or bfloat16.

  Returns:
    [b h w 2] float32, (dx, dy) in pixels: image1 at (x, y) looks like image2 at (x + dx, y + dy).

  Raises:
    ValueError: the shapes differ, or a side is not a multiple of 16.
  """
  check_pair(image1, image2)
  features = encode(params, jnp.concatenate([image1, image2]), dtype)
  return flow_from_features(params, *jnp.split(features, 2), dtype)


def position_code(h: int, w: int) -> jax.Array:
  """Sinusoidal position embedding [h w 128]: 64 channels for y, then 64 for x.

  Positions are scaled to 2 pi i / n for i = 1 ... n (DETR: Carion et al., ECCV 2020); frequencies
  decrease geometrically, sines and cosines alternate.
  """
  n = WIDTH // 2
  frequency = 10000.0 ** -(np.arange(n) // 2 * 2 / n)
  phase = np.arange(n) % 2 * np.pi / 2  # cos(a) = sin(a + pi / 2)
  y, x = (np.sin(2 * np.pi * np.arange(1, m + 1)[:, None] / m * frequency + phase) for m in (h, w))
  rows = jnp.broadcast_to(jnp.asarray(y[:, None], jnp.float32), (h, w, n))
  columns = jnp.broadcast_to(jnp.asarray(x[None], jnp.float32), (h, w, n))
  return jnp.concatenate([rows, columns], axis=-1)


def window_sizes(size: int, shifted: bool) -> list[int]:
  """Lengths along one axis of the windows that attend within themselves.

  Shifted windows (Swin) usually roll the image and mask pairs that are not adjacent in it. What the
  mask leaves are these windows, one more along each axis: computed as such, nothing has to be
  rolled or masked.
  """
  window = size // WINDOWS
  shift = window // 2 if shifted else 0
  return [n for n in (shift, *[window] * (WINDOWS - 1), window - shift) if n]


def match(features1: jax.Array, features2: jax.Array) -> jax.Array:
  """Flow [b h w 2] to each pixel's expected match in the other frame.

  Args:
    features1: [b h w c].
    features2: the same of the other frame.

  Returns:
    [b h w 2] float32, (dx, dy) in pixels of that size.
  """
  b, h, w, _ = features1.shape
  y, x = jnp.mgrid[:h, :w].astype(jnp.float32)
  grid = jnp.broadcast_to(jnp.stack([x, y], axis=-1), (b, h, w, 2))
  return attend_globally(features1, features2, grid) - grid
