"""SRVGGNetCompact, the small network of Real-ESRGAN (Wang et al., ICCVW 2021, arXiv 2107.10833).

A chain of convolutions at the input's resolution, as VGG's, and one pixel shuffle at its end. It
came after the paper, with the models "realesr-general-x4v3" and "realesr-animevideov3" of the
authors' repository, xinntao/Real-ESRGAN.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vsr_jax.layers import Conv, PRelu
from vsr_jax.ops.resize import pixel_shuffle


class SRVGGNetCompact(nn.Module):
  """Enlarges images, RGB in [0, 1], [b h w 3] -> float32 [b s*h s*w 3], which is not clipped.

  The network computes what is added to the image enlarged by nearest neighbour. Convolutions and
  activations are numbered as one chain, as in the released files.

  Attributes:
    features: channels.
    convs: 3x3 convolutions between the first and the last one.
    scale: s.
    dtype: compute type of all but the sum.
  """

  features: int = 64
  convs: int = 32
  scale: int = 4
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = images
    for i in range(self.convs + 1):
      x = Conv(self.features, use_bias=True, dtype=self.dtype, name=f"conv{2 * i}")(x)
      x = PRelu(name=f"prelu{2 * i + 1}")(x)
    outputs = 3 * self.scale**2
    x = Conv(outputs, use_bias=True, dtype=self.dtype, name=f"conv{2 * self.convs + 2}")(x)
    # The shuffle of repeated channels is the enlargement by nearest neighbour.
    nearest = jnp.repeat(images.astype(jnp.float32), self.scale**2, axis=-1)
    return pixel_shuffle(x.astype(jnp.float32) + nearest, self.scale)
