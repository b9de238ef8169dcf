"""Fusion into the generator's features: CFT (CodeFormer, Sec. 3.3) and CFA (KEEP)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from keep_jax.layers import Attention, GEGLUFeedForward, LayerNorm, conv
from keep_jax.vqgan import ResBlock
from vsr_jax.layers import Conv


class ControllableFeatureTransform(nn.Module):
  """CFT: the low-quality frame's features scale and shift the generator's, both [b h w c].

  Only the last convolutions of scale and shift start at zero, so that all others get gradients; the
  released code starts all of them at zero, so that only the last biases do.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, encoded: jax.Array, decoded: jax.Array, weight: float = 1.0) -> jax.Array:
    """decoded + weight * (decoded * scale + shift), both predicted from encoded and decoded."""
    c = decoded.shape[-1]
    x = ResBlock(c, self.dtype, name="merge")(jnp.concatenate([encoded, decoded], axis=-1))

    def head(name):
      y = nn.leaky_relu(conv(c, dtype=self.dtype, name=f"{name}1")(x), 0.2)
      return Conv(c, 3, True, self.dtype, nn.initializers.zeros, name=f"{name}2")(y)

    return decoded + jnp.asarray(weight, decoded.dtype) * (decoded * head("scale") + head("shift"))


class CrossFrameAttention(nn.Module):
  """CFA: a generator feature attends to that of the frame before, both [b h w c].

  It starts as the identity: both residual branches end in a norm whose scale starts at zero.
  """

  heads: int
  head_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, previous: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    x, previous = (a.reshape(b, h * w, c) for a in (x, previous))
    y = Attention(self.heads, self.head_dim, self.dtype, name="attention")(x, previous)
    zeros = nn.initializers.zeros
    x += LayerNorm(zeros, name="norm1")(y)
    x += LayerNorm(zeros, name="norm2")(GEGLUFeedForward(self.dtype, name="feed_forward")(x))
    return x.reshape(b, h, w, c)
