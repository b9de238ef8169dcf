"""Transposed attention, between channels, as one operation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

SMALLEST_NORM = 1e-12  # as PyTorch's `normalize` has it


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
  """Euclidean norms over the pixels, the second axis; the root of 0 has no gradient."""
  return jnp.sqrt(jnp.maximum(jnp.square(x).sum(1), SMALLEST_NORM**2))
