"""The transformer that predicts code indices from a latent (CodeFormer, Sec. 3.2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from keep_jax.layers import LayerNorm, attend_heads
from vsr_jax.ops.activations import gelu
from vsr_jax.ops.channels import broadcast_channels


class SelfAttentionLayer(nn.Module):
  """Pre-norm attention and MLP; the position embedding is added to queries and keys only."""

  heads: int
  mlp_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, position: jax.Array | None = None) -> jax.Array:
    """Tokens x [b n c] and position [n c], float32 -> [b n c], float32."""
    b, n, c = x.shape
    dense = {"dtype": self.dtype}
    y = LayerNorm(name="norm1")(x)
    with_position = y if position is None else y + position[None]
    # One kernel for all three, as the released weights have it; values see no position.
    kernel = self.param("qkv_kernel", nn.initializers.xavier_uniform(), (c, 3 * c))
    bias = self.param("qkv_bias", nn.initializers.zeros, (3 * c,))
    kernel = kernel.astype(self.dtype)
    qk = with_position.astype(self.dtype) @ kernel[:, : 2 * c]
    v = y.astype(self.dtype) @ kernel[:, 2 * c :]
    qkv = jnp.concatenate([qk, v], axis=-1)
    qkv += broadcast_channels(bias, qkv)
    q, k, v = jnp.split(qkv.reshape(b, n, 3 * self.heads, c // self.heads), 3, axis=2)
    x += nn.Dense(c, **dense, name="out")(attend_heads(q, k, v)).astype(x.dtype)
    y = nn.Dense(self.mlp_dim, **dense, name="mlp1")(LayerNorm(name="norm2")(x))
    y = nn.Dense(c, **dense, name="mlp2")(gelu(y))
    return x + y.astype(x.dtype)


class CodePredictor(nn.Module):
  """Latents [b h w emb_dim] to logits over the codebook, [b h*w codes], float32.

  The residual stream and the last product are float32 whatever `dtype`: a code is the argmax of
  many logits that lie close together.

  Attributes:
    dim: channels of the transformer.
    heads: attention heads.
    layers: number of layers.
    num_codes: entries of the codebook.
  """

  dim: int
  heads: int
  layers: int
  num_codes: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, latent: jax.Array) -> jax.Array:
    b, h, w, _ = latent.shape
    position = self.param("position", nn.initializers.zeros, (h * w, self.dim))
    x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(latent.reshape(b, h * w, -1))
    x = x.astype(jnp.float32)
    for i in range(self.layers):
      layer = SelfAttentionLayer(self.heads, 2 * self.dim, self.dtype, name=f"layer_{i}")
      x = layer(x, position)
    head = nn.Dense(self.num_codes, use_bias=False, precision=lax.Precision.HIGHEST, name="head")
    return head(LayerNorm(name="norm")(x))
