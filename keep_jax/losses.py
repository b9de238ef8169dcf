"""The loss terms of KEEP's training stages II and III (KEEP, Sec. 3.5), unweighted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.losses import charbonnier, l2
from vsr_jax.ops.warp import backward_warp


@jax.named_scope("code_mse")
def code_mse(latent: jax.Array, code_indices: jax.Array, codebook: jax.Array) -> jax.Array:
  """Stage II: draws the low-quality latent, before the Kalman update, to the true codes.

  Args:
    latent: [b t h w emb_dim].
    code_indices: indices of the high-quality frames' codes, [b t h*w] int.
    codebook: [n emb_dim]; no gradient.

  Returns:
    A scalar.
  """
  truth = lax.stop_gradient(codebook[code_indices])
  return l2(latent.reshape(truth.shape), truth)


@jax.named_scope("cross_entropy")
def code_cross_entropy(logits: jax.Array, code_indices: jax.Array) -> jax.Array:
  """Stage II: cross entropy of the predicted codes, logits [b t h*w n] and indices [b t h*w]."""
  logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return -jnp.take_along_axis(logs, code_indices[..., None], axis=-1).mean()


@jax.named_scope("temporal")
def temporal(features: jax.Array, flows: jax.Array) -> jax.Array:
  """Stage III: a feature equals the one of the frame before, moved by the true frames' flow.

  Args:
    features: the generator's, after CFT and CFA, [b t side side c].
    flows: [b t-1 h w 2] in pixels of the images, from frame i + 1 to frame i; no gradient.

  Returns:
    A scalar; no pixel is masked.
  """
  b, t, h, w, c = features.shape
  flows = lax.stop_gradient(flows)
  ratio = jnp.array([w / flows.shape[3], h / flows.shape[2]], flows.dtype)
  flows = flows * ratio.reshape(1, 1, 1, 1, 2)
  flows = flows.reshape(b * (t - 1), *flows.shape[2:])
  flows = jax.image.resize(flows, (b * (t - 1), h, w, 2), "linear", antialias=False)
  before = features[:, :-1].reshape(-1, h, w, c)
  return charbonnier(features[:, 1:].reshape(-1, h, w, c), backward_warp(before, flows))
