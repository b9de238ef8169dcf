"""Attention between pixels, whole or in windows, and transposed attention between channels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Windows = tuple[Sequence[int], Sequence[int]]  # their heights, top down, and widths, left to right

SMALLEST_NORM = 1e-12  # as PyTorch's `normalize` has it
_QUERIES = 512  # scored at a time in a global attention


def channel_attention_definition(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  temperature: jax.Array,
  project: jax.Array,
) -> jax.Array:
  """Attention between the channels of each head, and the projection of the heads' outputs.

  Channels are normalised over the pixels; softmax(q k^T * temperature) v, projected.

  Args:
    q: [b p c], the p pixels of an image; channels of head after head.
    k: [b p c].
    v: [b p c].
    temperature: [heads], float32.
    project: [c d].

  Returns:
    [b p d] in v's type; norms, logits and softmax are float32.
  """
  b, p, c = q.shape
  heads = len(temperature)
  q, k, v = (x.reshape(b, p, heads, c // heads) for x in (q, k, v))
  q, k = (x.astype(jnp.float32) for x in (q, k))
  q, k = (x / _norm(x)[:, None] for x in (q, k))
  logits = jnp.einsum("bpnc,bpnd->bncd", q, k) * temperature.reshape(1, -1, 1, 1)
  attention = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  y = jnp.einsum("bncd,bpnd->bpnc", attention, v).reshape(b, p, c)
  return jnp.einsum("bpc,cd->bpd", y, project.astype(y.dtype))


def channel_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  temperature: jax.Array,
  project: jax.Array,
) -> jax.Array:
  """Equal to `channel_attention_definition`, whose arguments it takes.

  One product of all pairs of channels, of which the heads' blocks are kept, is cheaper than
  splitting the long axis of pixels by head; norms divide the small product instead of q and k; and
  attention and projection are one matrix an image.
  """
  b, _, c = q.shape
  heads = len(temperature)
  size = c // heads
  products = jnp.einsum("bpc,bpd->bcd", q, k, preferred_element_type=jnp.float32)
  blocks = products.reshape(b, heads, size, heads, size)
  blocks = jnp.einsum("bncnd->bncd", blocks)
  q_norm, k_norm = (_norm(x.astype(jnp.float32)).reshape(b, heads, size) for x in (q, k))
  logits = blocks / (q_norm[..., :, None] * k_norm[..., None, :]) * temperature.reshape(1, -1, 1, 1)
  attention = jax.nn.softmax(logits, axis=-1)
  mix = jnp.einsum("bncd,nco->bndo", attention, project.reshape(heads, size, -1))
  return jnp.einsum("bpd,bdo->bpo", v, mix.reshape(b, c, -1).astype(v.dtype))


def _norm(x: jax.Array) -> jax.Array:
  """Euclidean norms over the pixels, the second axis; clipped, as sqrt has no gradient at 0."""
  return jnp.sqrt(jnp.maximum(jnp.square(x).sum(1), SMALLEST_NORM**2))


def attend_in_windows(
  query: jax.Array, key: jax.Array, value: jax.Array, windows: Windows
) -> jax.Array:
  """Attention within each window: query, key and value [... h w c] -> [... h w c].

  On CPU one image at a time, so that its scores stay in the cache.
  """
  attend_all = functools.partial(attend_in_windows_definition, windows=windows)

  def in_turn(*arrays):
    flat = [x.reshape(-1, *x.shape[-3:]) for x in arrays]
    return lax.map(lambda frame: attend_all(*frame), flat).reshape(value.shape)

  return lax.platform_dependent(query, key, value, cpu=in_turn, default=attend_all)


def attend_in_windows_definition(
  query: jax.Array, key: jax.Array, value: jax.Array, windows: Windows
) -> jax.Array:
  """The definition of `attend_in_windows`, all frames at once."""
  rows = []
  for y, height in zip(np.cumsum(windows[0]), windows[0], strict=True):
    row = []
    for x, width in zip(np.cumsum(windows[1]), windows[1], strict=True):
      parts = [a[..., y - height : y, x - width : x, :] for a in (query, key, value)]
      flat = [a.reshape(*a.shape[:-3], height * width, a.shape[-1]) for a in parts]
      row.append(attend(*flat).reshape(parts[2].shape).astype(value.dtype))
    rows.append(jnp.concatenate(row, axis=-2))
  return jnp.concatenate(rows, axis=-3)


def attend_globally(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Attention of every pixel to all: query, key [b h w c], value [b h w d] -> [b h w d] float32.

  Computed for `_QUERIES` queries at a time: all scores of the 64x64 features of a 512x512 frame
  (GMFlow) take 64 MB.
  """

  def one_image(query, key, value):
    h, w, c = query.shape
    key, value = key.reshape(h * w, c), value.reshape(h * w, -1)
    rows = lax.map(
      lambda query: attend(query[None], key, value)[0],
      query.reshape(h * w, c),
      batch_size=min(h * w, _QUERIES),
    )
    return rows.reshape(h, w, -1)

  return jax.vmap(one_image)(query, key, value)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Softmax attention, [... n c], [... m c] and [... m d] -> [... n d] float32."""
  scores = jnp.einsum("...nc,...mc->...nm", query, key, preferred_element_type=jnp.float32)
  scores = (scores - scores.max(-1, keepdims=True)) / np.sqrt(query.shape[-1])
  weights = jnp.exp(scores)
  # Divided by their sum only after the product: it has fewer elements.
  total = weights.sum(-1, keepdims=True)
  weights = weights.astype(value.dtype)
  return (
    jnp.einsum("...nm,...md->...nd", weights, value, preferred_element_type=jnp.float32) / total
  )
