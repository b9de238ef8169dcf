"""The VQGAN that KEEP works in: encoder, codebook, generator (CodeFormer, Sec. 3.1).

Images are RGB in [-1, 1], [b h w 3]; the latent is 2^(levels - 1) times smaller, [b h w emb_dim].
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from keep_jax.layers import GroupNorm, attend_heads, conv
from vsr_jax.ops.convolution import convolve

FuseFunction = Callable[[int, jax.Array], jax.Array]  # (side of the feature, feature) -> feature
FeaturesBySide = dict[int, jax.Array]  # side of the feature -> feature [b h w c]


class ResBlock(nn.Module):
  """Two times norm, swish and 3x3 convolution beside a skip, [b h w c] -> [b h w features]."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.silu(GroupNorm(name="norm1")(x))
    y = conv(self.features, dtype=self.dtype, name="conv1")(y)
    y = nn.silu(GroupNorm(name="norm2")(y))
    y = conv(self.features, dtype=self.dtype, name="conv2")(y)
    if x.shape[-1] != self.features:
      x = conv(self.features, 1, dtype=self.dtype, name="skip")(x)
    return x + y


class AttentionBlock(nn.Module):
  """Self-attention between all pixels, one head, beside a skip, [b h w c] -> [b h w c]."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    y = GroupNorm(name="norm")(x).reshape(b, h * w, c)
    q, k, v = (
      nn.Dense(c, dtype=self.dtype, name=name)(y).reshape(b, h * w, 1, c)
      for name in ("query", "key", "value")
    )
    y = nn.Dense(c, dtype=self.dtype, name="out")(attend_heads(q, k, v))
    return x + y.reshape(b, h, w, c)


class Downsample(nn.Module):
  """Halves the sides: a 3x3 convolution of stride 2; zeros follow the last row and column."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pad, c = ((0, 1), (0, 1)), x.shape[-1]
    return nn.Conv(c, (3, 3), (2, 2), padding=pad, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
  """Doubles the sides: nearest-neighbour enlargement, then a 3x3 convolution.

  Computed at the input's size: an output pixel sees only 2x2 different input pixels, so that four
  2x2 kernels, whose taps are sums of the nine, take 4/9 of the multiplications.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    # The parameters of a plain convolution.
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, c, c))
    bias = self.param("bias", nn.initializers.zeros, (c,))
    # One convolution for the four: 2.4 times as fast on CPU as one each. Its output is a row and a
    # column larger than x; every sub-pixel takes its part of that.
    kernels = [subpixel_kernel(kernel, i, j) for i in range(2) for j in range(2)]
    y = convolve(x.astype(self.dtype), jnp.concatenate(kernels, axis=-1), ((1, 1), (1, 1)))
    y = y.reshape(b, h + 1, w + 1, 4, c)
    rows = [
      jnp.stack([y[:, i : i + h, j : j + w, 2 * i + j] for j in range(2)], axis=3) for i in range(2)
    ]
    y = jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)
    return y + bias.astype(self.dtype).reshape(1, 1, 1, c)


def subpixel_kernel(kernel: jax.Array, i: int, j: int) -> jax.Array:
  """What a 3x3 kernel does to sub-pixel (i, j) of a twofold nearest enlargement: [2 2 c d].

  Row 0 of the enlarged 2x2 block sees the pixel above once and its own twice, row 1 its own twice
  and the one below once; columns likewise.
  """

  def pairs(k, i):
    return jnp.stack([k[0], k[1] + k[2]] if i == 0 else [k[0] + k[1], k[2]])

  return pairs(pairs(kernel, i).swapaxes(0, 1), j).swapaxes(0, 1)


class Encoder(nn.Module):
  """Images to latents, and skip features on the way.

  Attributes:
    width: channels of the first level.
    multiples: channels over `width`, by level; each level but the last halves the sides.
    emb_dim: channels of the latent.
    res_blocks: residual blocks a level.
    remat: recompute a residual block's activations in the backward pass, to save memory.
  """

  width: int
  multiples: tuple[int, ...]
  emb_dim: int
  res_blocks: int
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def setup(self):
    d = {"dtype": self.dtype}
    res_block = nn.remat(ResBlock) if self.remat else ResBlock
    blocks: list[nn.Module] = [conv(self.width, **d)]
    skip_blocks = []  # index of the block whose output is a level's skip feature
    last = len(self.multiples) - 1
    for level, multiple in enumerate(self.multiples):
      for i in range(self.res_blocks):
        blocks.append(res_block(multiple * self.width, **d))
        if i == self.res_blocks - 1:
          skip_blocks.append(len(blocks) - 1)
        if level == last:
          blocks.append(AttentionBlock(**d))
      if level != last:
        blocks.append(Downsample(**d))
    c = self.multiples[-1] * self.width
    blocks += [res_block(c, **d), AttentionBlock(**d), res_block(c, **d)]
    # The latent is small and everything depends on it: computing it in float32 costs little.
    blocks += [GroupNorm(), conv(self.emb_dim, dtype=jnp.float32)]
    self.blocks = blocks
    self.skip_blocks = frozenset(skip_blocks)

  def __call__(self, x: jax.Array, sides: tuple[int, ...] = ()) -> tuple[jax.Array, FeaturesBySide]:
    """Images -> latents, float32 whatever `dtype`, and the skip features whose side is in `sides`.

    A level's skip feature is taken after its last residual block, before attention.
    """
    found = {}
    for i, block in enumerate(self.blocks):
      x = block(x)
      if i in self.skip_blocks and x.shape[2] in sides:
        found[x.shape[2]] = x
    return x, found


class Generator(nn.Module):
  """Latents to images; the attributes are those of the `Encoder`."""

  width: int
  multiples: tuple[int, ...]
  res_blocks: int
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def setup(self):
    d = {"dtype": self.dtype}
    res_block = nn.remat(ResBlock) if self.remat else ResBlock
    c = self.multiples[-1] * self.width
    blocks: list[nn.Module] = [conv(c, **d), res_block(c, **d), AttentionBlock(**d)]
    blocks.append(res_block(c, **d))
    fused_blocks = []  # index of the block after which a level's feature may be fused
    last = len(self.multiples) - 1
    for level in reversed(range(len(self.multiples))):
      for i in range(self.res_blocks):
        blocks.append(res_block(self.multiples[level] * self.width, **d))
        if i == (self.res_blocks - 1 if level == last else 0):
          fused_blocks.append(len(blocks) - 1)
        if level == last:
          blocks.append(AttentionBlock(**d))
      if level:
        blocks.append(Upsample(**d))
    blocks += [GroupNorm(), conv(3, **d)]
    self.blocks = blocks
    self.fused_blocks = frozenset(fused_blocks)

  def __call__(self, z: jax.Array, fuse: FuseFunction | None = None) -> jax.Array:
    """Latents -> images, not clipped.

    `fuse` replaces the feature of each level: after the level's first residual block, but in the
    smallest level after its last one, before attention.
    """
    return self.to_image(self.last_feature(z, fuse))

  def last_feature(self, z: jax.Array, fuse: FuseFunction | None = None) -> jax.Array:
    """What the last convolution sees, [b h w width] at the images' size."""
    x = z
    for i, block in enumerate(self.blocks[:-1]):
      x = block(x)
      if fuse is not None and i in self.fused_blocks:
        x = fuse(x.shape[2], x)
    return x

  def to_image(self, x: jax.Array) -> jax.Array:
    """The last convolution, from `last_feature`; its own params suffice to apply it."""
    return self.blocks[-1](x)

  @property
  def last_name(self) -> str:
    """The name of the last convolution among the params."""
    levels = len(self.multiples)
    blocks = 4 + levels * self.res_blocks + self.res_blocks + (levels - 1) + 2
    return f"blocks_{blocks - 1}"


def nearest_code(latent: jax.Array, codebook: jax.Array) -> jax.Array:
  """Index of the codebook's nearest entry: [... emb_dim], [n emb_dim] -> [...] int32."""
  z, e = latent.astype(jnp.float32), codebook.astype(jnp.float32)
  products = jnp.einsum("...d,nd->...n", z, e, precision=lax.Precision.HIGHEST)
  norms = jnp.square(e).sum(-1).reshape((1,) * (z.ndim - 1) + (-1,))
  return jnp.argmin(norms - 2 * products, axis=-1).astype(jnp.int32)


def quantize(
  latent: jax.Array, codebook: jax.Array, beta: float = 0.25
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Nearest codes with the straight-through gradient, and the codebook loss.

  As released, `beta` weighs the term that moves the codebook; the VQ-VAE paper's weighs the other.

  Args:
    latent: [... emb_dim].
    codebook: [n emb_dim].
    beta: see above.

  Returns:
    Quantized latent [... emb_dim], the loss (a scalar), the indices [...] int32.
  """
  indices = nearest_code(latent, codebook)
  quantized = codebook[indices]
  stop = lax.stop_gradient
  loss = (
    jnp.square(stop(quantized) - latent).mean() + beta * jnp.square(quantized - stop(latent)).mean()
  )
  return latent + stop(quantized - latent), loss, indices
