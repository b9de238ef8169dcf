"""CFT and CFA, which join the generator's features to others (KEEP, Sec. 3.4)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from keep_jax.layers import Attention, GatedFeedForward, LayerNorm, conv
from keep_jax.vqgan import ResBlock
from vsr_jax.layers import Conv


class ControllableFeatureTransform(nn.Module):
  """CFT: the low-quality frame's features scale and shift the generator's, both [b h w c].

  Only the last convolutions of scale and shift start at zero, so that the others learn; the
  released code zeroes all, after which nothing behind a product gets a gradient.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, encoded: jax.Array, decoded: jax.Array, weight: float = 1.0) -> jax.Array:
    """The decoded feature, changed by `weight` times what the encoded one says."""
    c = decoded.shape[-1]
    x = ResBlock(c, self.dtype, name="merge")(jnp.concatenate([encoded, decoded], axis=-1))

    def head(name):
      y = nn.leaky_relu(conv(c, dtype=self.dtype, name=f"{name}1")(x), 0.2)
      return Conv(c, 3, True, self.dtype, nn.initializers.zeros, name=f"{name}2")(y)

    return decoded + jnp.asarray(weight, decoded.dtype) * (decoded * head("scale") + head("shift"))


class CrossFrameAttention(nn.Module):
  """CFA: a feature attends to the same feature of the frame before, both [b h w c].

  Starts as the identity: what is added passes two norms whose scales start at zero.
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
    x += LayerNorm(zeros, name="norm2")(GatedFeedForward(self.dtype, name="feed_forward")(x))
    return x.reshape(b, h, w, c)
