"""The Kalman filter in latent space (KEEP, Sec. 3.3): gains, prediction, update.

The state of frame t is predicted from the restored frame before it, moved by
optical flow and encoded again; the observation is the latent of the low-quality
frame; a learnt gain in [0, 1] blends the two.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from keep_jax.layers import Attention, GEGLUFeedForward, LayerNorm, attend_heads, conv
from keep_jax.vqgan import ResBlock
from vsr_jax.ops.warp import backward_warp


class SparseCausalAttention(Attention):
  """Attention of each frame's tokens to those of the first frame and of the frame before it.

  Attributes:
    attend_first_frame: whether a frame's tokens attend to those of the first one, too.
  """

  attend_first_frame: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[b t n c] -> [b t n c]; the first frame is its own predecessor."""
    b, t, n, c = x.shape
    q, k, v = (self.project(x, name) for name in ("query", "key", "value"))

    def attended(x):  # [b t n heads d] -> [b*t 2n heads d], or n without the first frame
      frames = [jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)]
      if self.attend_first_frame:
        frames.insert(0, jnp.broadcast_to(x[:, :1], x.shape))
      return jnp.concatenate(frames, axis=2).reshape(b * t, len(frames) * n, *x.shape[3:])

    y = attend_heads(q.reshape(b * t, n, *q.shape[3:]), attended(k), attended(v))
    return nn.Dense(c, dtype=self.dtype, name="out")(y.reshape(b, t, n, -1))


class UncertaintyLayer(nn.Module):
  """Attention over space (sparse-causal), feed-forward, attention over time: [b t n c]."""

  heads: int
  head_dim: int
  dtype: jnp.dtype = jnp.float32
  attend_first_frame: bool = True
  causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, t, n, c = x.shape
    sizes = (self.heads, self.head_dim, self.dtype)
    y = LayerNorm(name="norm1")(x)
    x += SparseCausalAttention(
      *sizes, attend_first_frame=self.attend_first_frame, name="attention"
    )(y)
    x += GEGLUFeedForward(self.dtype, name="feed_forward")(LayerNorm(name="norm2")(x))
    y = LayerNorm(name="norm3")(x).swapaxes(1, 2).reshape(b * n, t, c)
    y = Attention(*sizes, self.causal, name="temporal_attention")(y)
    return x + y.reshape(b, n, t, c).swapaxes(1, 2)


class GainNetwork(nn.Module):
  """The paper's Kalman gain network: latents [b t h w c] to gains [b t h w 1] in [0, 1].

  The uncertainty network (`UncertaintyLayer`s), then the gain network. As released, attention over
  time sees all frames it is given, later ones too; with `causal` none that comes later.
  """

  heads: int
  head_dim: int
  layers: int
  dtype: jnp.dtype = jnp.float32
  attend_first_frame: bool = True
  causal: bool = False

  @nn.compact
  def __call__(self, latents: jax.Array) -> jax.Array:
    b, t, h, w, c = latents.shape
    x = latents.reshape(b, t, h * w, c).astype(self.dtype)
    for i in range(self.layers):
      sizes = (self.heads, self.head_dim, self.dtype, self.attend_first_frame, self.causal)
      x = UncertaintyLayer(*sizes, name=f"uncertainty_{i}")(x)
    x = x.reshape(b * t, h, w, c)
    for i in range(3):
      x = ResBlock(c, self.dtype, name=f"res_{i}")(x)
    logits = conv(1, 1, dtype=self.dtype, name="gain")(x)
    return nn.sigmoid(logits.astype(jnp.float32)).reshape(b, t, h, w, 1)


class ConstantGain(nn.Module):
  """One learnt gain for all frames and places; it starts at 1/2."""

  @nn.compact
  def __call__(self, latents: jax.Array) -> jax.Array:
    logit = self.param("logit", nn.initializers.zeros, ())
    return jnp.broadcast_to(nn.sigmoid(logit), (*latents.shape[:-1], 1))


class FixedGain(nn.Module):
  """A given gain for all frames and places; nothing learned."""

  value: float

  def __call__(self, latents: jax.Array) -> jax.Array:
    return jnp.full((*latents.shape[:-1], 1), self.value, jnp.float32)


@jax.named_scope("predict")
def predict(
  previous: jax.Array, flow: jax.Array, encode: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """The predicted state: the restored frame before, warped to this one and encoded.

  Args:
    previous: restored frame [b h w 3] in [-1, 1].
    flow: [b h w 2] in pixels, from this frame to the one before.
    encode: the encoder of high-quality images.

  Returns:
    The latent [b h' w' emb_dim].
  """
  return encode(backward_warp(previous, flow))


@jax.named_scope("update")
def update(observed: jax.Array, predicted: jax.Array, gain: jax.Array) -> jax.Array:
  """The update z+ = (1 - K) observed + K predicted; K [b h w 1], latents [b h w c].

  As in KEEP, K weighs the prediction; in a textbook Kalman filter it weighs the observation.
  """
  gain = gain.astype(observed.dtype)
  return (1 - gain) * observed + gain * predicted
