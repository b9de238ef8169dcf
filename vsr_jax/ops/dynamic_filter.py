"""Dynamic filters: every output pixel is filtered by a kernel of its own (FMA-Net, Eq. 5).

With frames warped to the centre frame they are FMA-Net's flow-guided dynamic filtering (Eq. 6). The
definitions gather the patch of each pixel and weigh it. What runs reads shifted copies of whole
frames instead, without gathers.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax


def normalise_down(logits: jax.Array) -> jax.Array:
  """K^D: softmax over frames and taps together, [b t h w k*k] -> the same, float32."""
  return jax.nn.softmax(logits.astype(jnp.float32), axis=(1, 4))


def normalise_up(kernels: jax.Array) -> jax.Array:
  """K^R: zero mean over frames and taps plus 1/K, [b t h w k*k s*s] -> the same, float32.

  The K = t k^2 weights of every output pixel sum to 1 and may be negative.
  """
  kernels = kernels.astype(jnp.float32)
  mean = kernels.mean(axis=(1, 4), keepdims=True)
  return kernels - mean + 1 / (kernels.shape[1] * kernels.shape[4])


def _gather_and_weight(frames, weights, y, x):
  """frames [t h w c], weights [t k k] -> [c]: the weighted sum of the patch at (y, x)."""
  t, k, _ = weights.shape
  patch = lax.dynamic_slice(frames, (0, y, x, 0), (t, k, k, frames.shape[-1]))
  return jnp.tensordot(weights, patch, axes=3)


_over_pixels = jax.vmap(  # frames [t h w c], weights [h w t k k], y [h], x [w] -> [h w c]
  jax.vmap(_gather_and_weight, in_axes=(None, 0, None, 0)), in_axes=(None, 0, 0, None)
)


def dynamic_downsample_definition(frames: jax.Array, weights: jax.Array, scale: int) -> jax.Array:
  """Filters T frames into one that is `scale` times smaller.

  Args:
    frames: [b t sh sw c].
    weights: [b t h w k*k], one k x k kernel a frame and output pixel, shared by
      the channels; k has the scale's parity.
    scale: the stride s.

  Returns:
    [b h w c], float32; frames are continued beyond their border by replication.
  """
  b, t, h, w, taps = weights.shape
  k = math.isqrt(taps)
  frames = _pad_edges(frames.astype(jnp.float32), (k - scale) // 2)
  weights = jnp.moveaxis(weights, 1, 3).reshape(b, h, w, t, k, k)
  y, x = jnp.arange(h) * scale, jnp.arange(w) * scale
  return jax.vmap(_over_pixels, in_axes=(0, 0, None, None))(frames, weights, y, x)


def dynamic_upsample_definition(frames: jax.Array, weights: jax.Array, scale: int) -> jax.Array:
  """Filters T frames into one that is `scale` times larger.

  Args:
    frames: [b t h w c].
    weights: [b t h w k*k s*s], one k x k kernel a frame and output sub-pixel, k odd.
    scale: s.

  Returns:
    [b sh sw c], float32; frames are continued beyond their border by replication.
  """
  b, t, h, w, taps, _ = weights.shape
  c, k = frames.shape[-1], math.isqrt(taps)
  frames = _pad_edges(frames.astype(jnp.float32), k // 2)
  weights = weights.reshape(b, t, h, w, k, k, scale**2).transpose(0, 6, 2, 3, 1, 4, 5)
  over_subpixels = jax.vmap(_over_pixels, in_axes=(None, 0, None, None))
  out = jax.vmap(over_subpixels, in_axes=(0, 0, None, None))(
    frames, weights, jnp.arange(h), jnp.arange(w)
  )  # [b s*s h w c]
  out = out.reshape(b, scale, scale, h, w, c).transpose(0, 3, 1, 4, 2, 5)
  return out.reshape(b, h * scale, w * scale, c)


@jax.named_scope("filter_down")
def dynamic_downsample(frames: jax.Array, weights: jax.Array, scale: int) -> jax.Array:
  """Equal to `dynamic_downsample_definition`: a sum over shifted s x s blocks.

  A k x k patch with stride s is ceil(k/s)^2 neighbouring blocks; kernels are
  filled up with zeros to whole blocks.
  """
  b, t, h, w, taps = weights.shape
  k, c = math.isqrt(taps), frames.shape[-1]
  n = -(-k // scale)  # blocks a side
  fill = n * scale - k
  pad = (k - scale) // 2
  frames = _pad_edges(frames.astype(jnp.float32), pad, pad + fill)
  blocks = frames.reshape(b, t, h + n - 1, scale, w + n - 1, scale, c)
  blocks = blocks.transpose(0, 2, 4, 1, 3, 5, 6).reshape(b, h + n - 1, w + n - 1, -1, c)
  weights = jnp.pad(weights.reshape(b, t, h, w, k, k), ((0, 0),) * 4 + ((0, fill),) * 2)
  weights = weights.reshape(b, t, h, w, n, scale, n, scale).transpose(4, 6, 0, 2, 3, 1, 5, 7)
  weights = weights.reshape(n, n, b, h, w, -1)
  products = (
    jnp.einsum("bhwp,bhwpc->bhwc", weights[i, j], blocks[:, i : i + h, j : j + w])
    for i in range(n)
    for j in range(n)
  )
  return sum(products, start=jnp.zeros(()))


@jax.named_scope("filter_up")
def normalise_and_upsample(frames: jax.Array, unnormalised: jax.Array, scale: int) -> jax.Array:
  """Equal to `normalise_up`, then `dynamic_upsample_definition`.

  Args:
    frames: [b t h w c].
    unnormalised: K^R before `normalise_up`, [b t h w k*k s*s]. (`dynamic_downsample` takes weights
      that are normalised already.)
    scale: s.

  Returns:
    [b sh sw c], float32.

  The normalisation is moved out of the sum over the K = t k^2 taps, with mean m: sum_j (K_j - m +
  1/K) x_j = sum_j K_j x_j + (1/K - m) sum_j x_j, so that kernels are read once.
  """
  b, t, h, w, taps, _ = unnormalised.shape
  c = frames.shape[-1]
  # The sum of the kernels is the filter's response to a channel of ones.
  frames = jnp.concatenate([frames, jnp.ones_like(frames[..., :1])], axis=-1)
  padded = _pad_edges(frames.astype(jnp.float32), math.isqrt(taps) // 2)
  filtered = _filter_up(padded, unnormalised.astype(jnp.float32))
  plain = _patches(padded[..., :c], h, w).sum((1, 4))
  rest = (1 - filtered[..., c:]) / (t * taps)
  out = filtered[..., :c] + rest * plain[:, :, :, None]
  out = out.reshape(b, h, w, scale, scale, c).transpose(0, 1, 3, 2, 4, 5)
  return out.reshape(b, h * scale, w * scale, c)


@jax.custom_vjp
def _filter_up(padded: jax.Array, kernels: jax.Array) -> jax.Array:
  """Padded frames [b t h+k-1 w+k-1 c], kernels [b t h w k*k s*s] -> [b h w s*s c].

  Unrolled over the taps, which fuses into one pass that is five times faster on
  CPU than small products; its gradient is that of the small products, for the
  gradient of the unrolled form is far slower.
  """
  _, t, h, w, taps, _ = kernels.shape
  k, c = math.isqrt(taps), padded.shape[-1]
  out: list[jax.Array | float] = [0.0] * c
  for f in range(t):
    for tap in range(taps):
      i, j = divmod(tap, k)
      for channel in range(c):
        out[channel] += kernels[:, f, :, :, tap] * padded[:, f, i : i + h, j : j + w, channel, None]
  return jnp.stack(out, axis=-1)


def _filter_up_products(padded: jax.Array, kernels: jax.Array) -> jax.Array:
  patches = _patches(padded, *kernels.shape[2:4])
  products = (
    jnp.einsum("bhwps,bhwpc->bhwsc", kernels[:, f], patches[:, f]) for f in range(kernels.shape[1])
  )
  return sum(products, start=jnp.zeros(()))


_filter_up.defvjp(
  lambda padded, kernels: (_filter_up(padded, kernels), (padded, kernels)),
  lambda residuals, g: jax.vjp(_filter_up_products, *residuals)[1](g),
)


def _patches(padded: jax.Array, h: int, w: int) -> jax.Array:
  """[b t h+k-1 w+k-1 c] -> the k x k patch around every pixel, [b t h w k*k c]."""
  k = padded.shape[2] - h + 1
  shifts = [padded[:, :, i : i + h, j : j + w] for i in range(k) for j in range(k)]
  return jnp.stack(shifts, axis=4)


def _pad_edges(frames: jax.Array, before: int, after: int | None = None) -> jax.Array:
  pad = (before, before if after is None else after)
  # One frame at a time: along axes that it does not pad, `jnp.pad` adds edges of no length, whose
  # gradient, of zeros, the devices that share a batch would send each other.
  one = functools.partial(jnp.pad, pad_width=(pad, pad, (0, 0)), mode="edge")
  return jax.vmap(jax.vmap(one))(frames)
