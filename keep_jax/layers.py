"""The layers that KEEP's sub-networks share: norms, convolutions, attention.

Images are channels last, [... h w c], tokens [... n c]. Parameters are float32;
`dtype` is the type of the products; norms and softmax are float32.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.layers import Conv
from vsr_jax.ops.activations import gelu
from vsr_jax.ops.channels import broadcast_channels

GROUPS = 32  # in every group norm
GROUP_EPSILON = 1e-6
LAYER_EPSILON = 1e-5


class GroupNorm(nn.Module):
  """Normalises 32 groups of channels of each image, [... h w c]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    *lead, h, w, c = x.shape
    scale = self.param("scale", nn.initializers.ones, (c,))
    bias = self.param("bias", nn.initializers.zeros, (c,))

    def by_group(x):  # [b h w c] -> the mean of each group at each of its channels, [b 1 1 c]
      mean = x.mean((1, 2)).reshape(-1, GROUPS, c // GROUPS).mean(-1)
      return jnp.repeat(mean, c // GROUPS, axis=-1).reshape(-1, 1, 1, c)

    y = x.astype(jnp.float32).reshape(-1, h, w, c)
    mean = by_group(y)
    inverse = lax.rsqrt(by_group(jnp.square(y - mean)) + GROUP_EPSILON)
    factor = inverse * broadcast_channels(scale, y)
    y = y * factor + (broadcast_channels(bias, y) - mean * factor)
    return y.reshape(*lead, h, w, c).astype(x.dtype)


class LayerNorm(nn.Module):
  """Normalises the last axis, [... c]."""

  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    y = x.astype(jnp.float32)
    y -= y.mean(-1, keepdims=True)
    y *= lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + LAYER_EPSILON)
    y *= broadcast_channels(self.param("scale", self.scale_init, (c,)), y)
    y += broadcast_channels(self.param("bias", nn.initializers.zeros, (c,)), y)
    return y.astype(x.dtype)


def conv(
  features: int, size: int = 3, *, dtype: jnp.dtype = jnp.float32, name: str | None = None
) -> Conv:
  """A size x size convolution with bias, zero-padded to the same size."""
  return Conv(features, size, use_bias=True, dtype=dtype, name=name)


class Attention(nn.Module):
  """Multi-head attention with queries from x [b n c], keys and values from y [b m d].

  Query, key and value have no bias, the output has one (KEEP, Sec. 3.3 and 3.4).
  """

  heads: int
  head_dim: int
  dtype: jnp.dtype = jnp.float32
  causal: bool = False  # whether token i sees tokens 0 to i only

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
    y = x if y is None else y
    q, k, v = self.project(x, "query"), self.project(y, "key"), self.project(y, "value")
    y = attend_heads(q, k, v, causal=self.causal)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(y)

  def project(self, x: jax.Array, name: str) -> jax.Array:
    """[... c] -> [... heads head_dim]."""
    y = nn.Dense(self.heads * self.head_dim, use_bias=False, dtype=self.dtype, name=name)(x)
    return y.reshape(*x.shape[:-1], self.heads, self.head_dim)


def attend_heads(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = False) -> jax.Array:
  """Scaled dot-product attention: q [b n heads d], k and v [b m heads d] -> [b n heads*d]."""
  # JAX's implementation promotes bfloat16, which strict promotion, set by the tests, would refuse.
  with jax.numpy_dtype_promotion("standard"):
    y = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
  return y.reshape(*y.shape[:2], -1)


class GEGLUFeedForward(nn.Module):
  """Linear, GEGLU, linear: [... c] -> [... c]; four times c between."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    y = nn.Dense(8 * c, dtype=self.dtype, name="expand")(x)
    y = y[..., : 4 * c] * gelu(y[..., 4 * c :])
    return nn.Dense(c, dtype=self.dtype, name="project")(y)
