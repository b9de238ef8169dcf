"""RAFT: optical flow by recurrent all-pairs field transforms (Teed and Deng, ECCV 2020).

Both released variants, small and large: Linen modules for the sub-networks, pure functions for the
whole. Inference only: batch normalisation uses the checkpoint's statistics. Everything is float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vsr_jax.flow.common import STRIDE, InstanceNorm, upsample_align_corners, upsample_convex
from vsr_jax.layers import FrozenBatchNorm
from vsr_jax.ops.warp import sample_bilinear

LEVELS = 4  # the correlation pyramid's
MULTIPLE = STRIDE  # image sides are multiples of it


class NoNorm(nn.Module):
  """Leaves its input as it is."""

  def __call__(self, x: jax.Array) -> jax.Array:
    return x


def _conv(features: int, size: int | tuple[int, int], name: str, stride: int = 1) -> nn.Conv:
  height, width = (size, size) if isinstance(size, int) else size
  padding = ((height // 2, height // 2), (width // 2, width // 2))
  return nn.Conv(features, (height, width), (stride, stride), padding, name=name)


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions beside a skip connection (the large variant's)."""

  features: int
  stride: int
  norm: type[nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(self.norm(name="norm1")(_conv(self.features, 3, "conv1", self.stride)(x)))
    y = nn.relu(self.norm(name="norm2")(_conv(self.features, 3, "conv2")(y)))
    if self.stride != 1:
      x = self.norm(name="norm_skip")(_conv(self.features, 1, "skip", self.stride)(x))
    return nn.relu(x + y)


class BottleneckBlock(nn.Module):
  """A 3x3 convolution on a quarter of the channels beside a skip (the small variant's)."""

  features: int
  stride: int
  norm: type[nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    narrow = self.features // 4
    y = nn.relu(self.norm(name="norm1")(_conv(narrow, 1, "conv1")(x)))
    y = nn.relu(self.norm(name="norm2")(_conv(narrow, 3, "conv2", self.stride)(y)))
    y = nn.relu(self.norm(name="norm3")(_conv(self.features, 1, "conv3")(y)))
    if self.stride != 1:
      x = self.norm(name="norm_skip")(_conv(self.features, 1, "skip", self.stride)(x))
    return nn.relu(x + y)


class Encoder(nn.Module):
  """Images [b h w 3] in [-1, 1] to features [b h/8 w/8 channels]."""

  channels: int
  widths: tuple[int, int, int]
  block: type[nn.Module]
  norm: type[nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(self.norm(name="norm1")(_conv(self.widths[0], 7, "conv1", 2)(x)))
    for i, width in enumerate(self.widths, 1):
      x = self.block(width, 1 if i == 1 else 2, self.norm, name=f"layer{i}_0")(x)
      x = self.block(width, 1, self.norm, name=f"layer{i}_1")(x)
    return _conv(self.channels, 1, "conv2")(x)


class Update(nn.Module):
  """One iteration's step: motion encoder, convolutional GRU and flow head.

  Attributes:
    correlation: widths of the correlation's convolutions, 1x1 first, then 3x3.
    flow: widths of the flow's convolutions, 7x7 and 3x3.
    motion: width of the motion features, without the flow itself.
    kernels: size of each GRU pass's convolutions.
    head: width inside the flow head.
  """

  correlation: tuple[int, ...]
  flow: tuple[int, int]
  motion: int
  kernels: tuple[tuple[int, int], ...]
  head: int

  @nn.compact
  def __call__(
    self, hidden: jax.Array, context: jax.Array, correlation: jax.Array, flow: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Hidden state, context and correlations [b h w .], flow [b h w 2]; all at 1/8.

    Returns:
      the next hidden state and the change of the flow [b h w 2].
    """
    for i, width in enumerate(self.correlation):
      correlation = nn.relu(_conv(width, 3 if i else 1, f"correlation{i}")(correlation))
    motion = nn.relu(_conv(self.flow[0], 7, "flow0")(flow))
    motion = nn.relu(_conv(self.flow[1], 3, "flow1")(motion))
    motion = jnp.concatenate([correlation, motion], axis=-1)
    motion = nn.relu(_conv(self.motion, 3, "motion")(motion))
    inputs = jnp.concatenate([context, motion, flow], axis=-1)
    for i, size in enumerate(self.kernels):
      hidden = self._gru(hidden, inputs, size, i)
    delta = nn.relu(_conv(self.head, 3, "head0")(hidden))
    return hidden, _conv(2, 3, "head1")(delta)

  def _gru(self, hidden: jax.Array, inputs: jax.Array, size: tuple[int, int], i: int) -> jax.Array:
    width = hidden.shape[-1]
    both = jnp.concatenate([hidden, inputs], axis=-1)
    z = nn.sigmoid(_conv(width, size, f"gru{i}_z")(both))
    r = nn.sigmoid(_conv(width, size, f"gru{i}_r")(both))
    both = jnp.concatenate([r * hidden, inputs], axis=-1)
    q = jnp.tanh(_conv(width, size, f"gru{i}_q")(both))
    return (1 - z) * hidden + z * q


class Mask(nn.Module):
  """Hidden state to the logits [b h w 9*8*8] of the convex upsampling."""

  features: int

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    x = nn.relu(_conv(self.features, 3, "conv1")(hidden))
    # A quarter balances the gradients in training (released code); trained weights expect it.
    return 0.25 * _conv(9 * STRIDE**2, 1, "conv2")(x)


@dataclasses.dataclass(frozen=True)
class Raft:
  """A variant: its sub-networks and two sizes.

  Attributes:
    feature_encoder: encoder whose outputs are correlated.
    context_encoder: encoder of frame 1 for the initial hidden state and the context.
    update: one iteration.
    mask: logits of the convex upsampling; None: bilinear upsampling.
    hidden: channels of the hidden state.
    radius: of `lookup`.
  """

  feature_encoder: Encoder
  context_encoder: Encoder
  update: Update
  mask: Mask | None
  hidden: int
  radius: int


SMALL = Raft(
  feature_encoder=Encoder(128, (32, 64, 96), BottleneckBlock, InstanceNorm),
  context_encoder=Encoder(96 + 64, (32, 64, 96), BottleneckBlock, NoNorm),
  update=Update((96,), (64, 32), 80, ((3, 3),), 128),
  mask=None,
  hidden=96,
  radius=3,
)
LARGE = Raft(
  feature_encoder=Encoder(256, (64, 96, 128), ResidualBlock, InstanceNorm),
  context_encoder=Encoder(128 + 128, (64, 96, 128), ResidualBlock, FrozenBatchNorm),
  update=Update((256, 192), (128, 64), 126, ((1, 5), (5, 1)), 256),
  mask=Mask(256),
  hidden=128,
  radius=4,
)


class RaftFeatures(NamedTuple):
  """Features of single frames, from `encode`."""

  features: jax.Array  # [b h/8 w/8 c], for the correlations
  context: jax.Array  # [b h/8 w/8 c'], initial hidden state and context; used of frame 1 only


def init(net: Raft, key: jax.Array) -> dict[str, Any]:
  """Random parameters; under `jax.eval_shape` the template for the converter."""
  image = jnp.zeros((1, STRIDE, STRIDE, 3))
  point = jnp.zeros((1, 1, 1, 1))
  hidden = point.repeat(net.hidden, -1)
  context = point.repeat(net.context_encoder.channels - net.hidden, -1)
  correlation = point.repeat(LEVELS * (2 * net.radius + 1) ** 2, -1)
  inputs: dict[str, tuple] = {
    "features": (net.feature_encoder, image),
    "context": (net.context_encoder, image),
    "update": (net.update, hidden, context, correlation, point.repeat(2, -1)),
  }
  if net.mask is not None:
    inputs["mask"] = (net.mask, hidden)
  keys = jax.random.split(key, len(inputs))
  return {
    name: part.init(k, *args).get("params", {})
    for k, (name, (part, *args)) in zip(keys, inputs.items(), strict=True)
  }


@jax.default_matmul_precision("float32")
def encode(net: Raft, params: Mapping[str, Any], frames: jax.Array) -> RaftFeatures:
  """Computes the features of frames [b h w 3] in [0, 255], sides multiples of 8.

  Raises:
    ValueError: the shape is another.
  """
  images = _normalized(frames)
  return RaftFeatures(
    _apply(net.feature_encoder, params["features"], images),
    _apply(net.context_encoder, params["context"], images),
  )


@jax.default_matmul_precision("float32")
def flow_from_features(
  net: Raft,
  params: Mapping[str, Any],
  first: RaftFeatures,
  features2: jax.Array,
  iterations: int = 12,
  start: jax.Array | None = None,
) -> jax.Array:
  """Estimates the flow from frame 1 to frame 2 from their features; see `raft`.

  Args:
    net: `SMALL` or `LARGE`.
    params: its parameters.
    first: result of `encode` for frame 1.
    features2: `RaftFeatures.features` of frame 2.
    iterations: refinement steps.
    start: initial flow [b h/8 w/8 2], in pixels of the features' size; None: zero.

  Returns:
    [b h w 2], (dx, dy) in pixels, from frame 1 to frame 2.
  """
  b, h, w, _ = features2.shape
  pyramid = correlation_pyramid(first.features, features2)
  hidden, context = first.context[..., : net.hidden], first.context[..., net.hidden :]
  hidden, context = jnp.tanh(hidden), nn.relu(context)
  y, x = jnp.mgrid[:h, :w].astype(jnp.float32)
  grid = jnp.stack([x, y], axis=-1)[None]

  def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, None]:
    hidden, flow = carry
    correlation = lookup(pyramid, grid + flow, net.radius)
    hidden, delta = _apply(net.update, params["update"], hidden, context, correlation, flow)
    return (hidden, flow + delta), None

  start = jnp.zeros((b, h, w, 2)) if start is None else start
  (hidden, flow), _ = jax.lax.scan(step, (hidden, start), length=iterations)
  if net.mask is None:
    return upsample_align_corners(flow)
  return upsample_convex(flow, _apply(net.mask, params["mask"], hidden))


@jax.default_matmul_precision("float32")
def raft(
  net: Raft,
  params: Mapping[str, Any],
  image1: jax.Array,
  image2: jax.Array,
  iterations: int = 12,
  start: jax.Array | None = None,
) -> jax.Array:
  """Estimates the flow from image1 to image2.

  Args:
    net: `SMALL` or `LARGE`.
    params: its parameters, from `raft_conversion.load` or `init`.
    image1: [b h w 3] in [0, 255]. The released weights were trained on RGB; other
      orders work less well, but some pseudo ground truth was made with them: the caller decides.
    image2: the same of the other image.
    iterations: refinement steps.
    start: initial flow [b h/8 w/8 2], in pixels of the features' size; None: zero.

  Returns:
    [b h w 2], (dx, dy) in pixels: image1 at (x, y) looks like image2 at (x + dx, y + dy).

  Raises:
    ValueError: the shapes differ, or a side is not a multiple of 8.
  """
  if image1.shape != image2.shape or image1.ndim != 4:
    raise ValueError(f"images of shapes {image1.shape} and {image2.shape}, not two equal [b h w 3]")
  images = _normalized(jnp.concatenate([image1, image2]))
  features1, features2 = jnp.split(_apply(net.feature_encoder, params["features"], images), 2)
  context = _apply(net.context_encoder, params["context"], images[: len(image1)])
  return flow_from_features(
    net, params, RaftFeatures(features1, context), features2, iterations, start
  )


def _normalized(images: jax.Array) -> jax.Array:
  """[b h w 3] in [0, 255] to [-1, 1]; ValueError where RAFT cannot take them."""
  shape = images.shape
  if len(shape) != 4 or shape[3] != 3 or any(n % STRIDE or not n for n in shape[1:3]):
    raise ValueError(f"images of shape {shape}: pad both sides to a multiple of {STRIDE}")
  return images.astype(jnp.float32) / 127.5 - 1.0


def _apply(net: nn.Module, params: Mapping[str, Any], *args: jax.Array) -> Any:
  return net.apply({"params": params}, *args)


def correlation_pyramid(features1: jax.Array, features2: jax.Array) -> list[jax.Array]:
  """The correlation pyramid: inner products of all pairs, features2 average-pooled by 2 per level.

  Args:
    features1: [b h w c].
    features2: [b h w c].

  Returns:
    per level i, [b h w h/2^i w/2^i], divided by sqrt(c). Pooling the features is
    pooling the products, the product being linear. A map too small for a level is empty there.
  """
  features1 = features1 / jnp.sqrt(float(features1.shape[-1]))
  pyramid = []
  for level in range(LEVELS):
    if level:
      b, h, w, c = features2.shape
      even = features2[:, : h // 2 * 2, : w // 2 * 2]
      features2 = even.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    pyramid.append(jnp.einsum("bhwc,bijc->bhwij", features1, features2))
  return pyramid


def lookup(pyramid: list[jax.Array], points: jax.Array, radius: int) -> jax.Array:
  """Reads each level around the points, bilinearly, zeros outside (section 3.2).

  Args:
    pyramid: from `correlation_pyramid`.
    points: [b h w 2], (x, y) at level 0.
    radius: the window is 2 * radius + 1 pixels of each level on a side.

  Returns:
    [b h w levels*(2*radius+1)^2]; in a window x is the slower index, as in the released weights.
  """
  offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
  window = jnp.stack(jnp.meshgrid(offsets, offsets, indexing="ij"), axis=-1)[None, None, None]
  read = jax.vmap(jax.vmap(jax.vmap(sample_bilinear)))
  windows = []
  for level, products in enumerate(pyramid):
    around = points[..., None, None, :] / 2**level + window
    if products.size:
      values = read(products[..., None], around)
    else:
      values = jnp.zeros((*around.shape[:-1], 1))
    windows.append(values.reshape(*points.shape[:-1], -1))
  return jnp.concatenate(windows, axis=-1)
