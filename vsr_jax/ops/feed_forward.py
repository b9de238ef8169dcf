"""The gated feed-forward network with depthwise convolutions as one operation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vsr_jax.ops.activations import gelu
from vsr_jax.ops.channels import broadcast_channels, pad_channels
from vsr_jax.ops.convolution import WIDE, convolve
from vsr_jax.ops.depthwise import (
  KernelAndBias,
  pointwise_depthwise,
  pointwise_depthwise_definition,
)


def gated_feed_forward_definition(
  x: jax.Array, expand: KernelAndBias, depthwise: KernelAndBias, project: KernelAndBias
) -> jax.Array:
  """1x1 and depthwise convolutions to a gate and values, GELU(gate) * values, a 1x1 convolution.

  Args:
    x: [b h w c].
    expand: kernel [1 1 c 2*hidden].
    depthwise: kernel [3 3 2*hidden].
    project: kernel [1 1 hidden d].

  Returns:
    [b h w d].
  """
  gate, y = pointwise_depthwise_definition(x, expand, depthwise, 2)
  y = convolve(gelu(gate) * y, project.kernel)
  return y if project.bias is None else y + broadcast_channels(project.bias, y)


def gated_feed_forward(
  x: jax.Array, expand: KernelAndBias, depthwise: KernelAndBias, project: KernelAndBias
) -> jax.Array:
  """Equal to `gated_feed_forward_definition`, whose arguments it takes.

  From `WIDE` on, the hidden channels are padded to a multiple of 16: on CPU 239 take one and a half
  times as long as 240. The padding stays zero, and so are its rows of the last kernel.
  """
  hidden = project.kernel.shape[2]
  padding = -hidden % 16 if hidden >= WIDE else 0
  expand, depthwise = (_pad_halves(weights, padding) for weights in (expand, depthwise))
  gate, y = pointwise_depthwise(x, expand, depthwise, 2)
  kernel = jnp.pad(project.kernel, ((0, 0), (0, 0), (0, padding), (0, 0)))
  y = convolve(y * gelu(gate), kernel)
  return y if project.bias is None else y + broadcast_channels(project.bias, y)


def _pad_halves(weights: KernelAndBias, padding: int) -> KernelAndBias:
  """Weights of two halves of output channels, `padding` channels of zeros after each."""

  def pad(x):
    return jnp.concatenate([pad_channels(half, padding) for half in jnp.split(x, 2, -1)], axis=-1)

  return KernelAndBias(pad(weights.kernel), None if weights.bias is None else pad(weights.bias))
