"""What the flow networks share: checks of images, normalisation, enlarged flow."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vsr_jax.ops.warp import sample_bilinear

STRIDE = 8  # between RAFT's or GMFlow's features, in pixels; image sides are multiples of it

_EPSILON = 1e-5  # under the instance norm's root
_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, RGB in [0, 1]
_DEVIATION = (0.229, 0.224, 0.225)


def check_frames(frames: jax.Array, multiple: int) -> None:
  """Raises ValueError unless frames are [b h w 3] and both sides are multiples of `multiple`."""
  shape = frames.shape
  if len(shape) != 4 or shape[3] != 3 or any(n % multiple or not n for n in shape[1:3]):
    raise ValueError(f"frames of shape {shape}, not [b h w 3] with sides multiples of {multiple}")


def check_pair(image1: jax.Array, image2: jax.Array) -> None:
  """Raises ValueError unless two images have one shape."""
  if image1.shape != image2.shape:
    raise ValueError(f"images of shapes {image1.shape} and {image2.shape}")


def normalized_as_imagenet(frames: jax.Array) -> jax.Array:
  """RGB [b h w 3] in [0, 255] to float32 in [0, 1], minus ImageNet's mean, over its deviation."""
  x = frames.astype(jnp.float32) / 255 - jnp.array(_MEAN).reshape(1, 1, 1, 3)
  return x / jnp.array(_DEVIATION).reshape(1, 1, 1, 3)


class InstanceNorm(nn.Module):
  """Normalises each channel of each image [b h w c]; nothing learned."""

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x - x.mean((1, 2), keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + _EPSILON)


def upsample_align_corners(flow: jax.Array, scale: int = STRIDE) -> jax.Array:
  """Enlarges flow [b h w 2] and its vectors `scale` times, bilinearly with aligned corners."""
  _, h, w, _ = flow.shape
  y = jnp.linspace(0.0, h - 1.0, scale * h)
  x = jnp.linspace(0.0, w - 1.0, scale * w)
  points = jnp.stack(jnp.meshgrid(x, y), axis=-1)
  return scale * jax.vmap(sample_bilinear, (0, None))(flow, points)


def upsample_convex(flow: jax.Array, logits: jax.Array) -> jax.Array:
  """Enlarges flow eight times by convex combinations of 3x3 neighbours (RAFT, Sec. 3.3).

  Args:
    flow: [b h w 2] in pixels of that size.
    logits: [b h w 9*8*8]: neighbour, row and column inside the enlarged pixel.

  Returns:
    [b 8h 8w 2] in pixels of the new size.
  """
  b, h, w, _ = flow.shape
  weights = nn.softmax(logits.reshape(b, h, w, 9, STRIDE, STRIDE), axis=3)
  padded = jnp.pad(STRIDE * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
  around = [padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)]
  large = jnp.einsum("bhwkyx,bhwkc->bhywxc", weights, jnp.stack(around, axis=3))
  return large.reshape(b, STRIDE * h, STRIDE * w, 2)
