"""The residual dense block as one operation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vsr_jax.ops.channels import broadcast_channels, concatenate_channels
from vsr_jax.ops.convolution import convolve
from vsr_jax.ops.devices import materialise

Activation = Callable[[jax.Array], jax.Array]


def dense_block_definition(
  x: jax.Array,
  kernels: Sequence[jax.Array],
  biases: Sequence[jax.Array] | None,
  fuse: jax.Array,
  fuse_bias: jax.Array,
  activation: Activation,
) -> jax.Array:
  """Every layer convolves the input and the outputs of the layers before it.

  Args:
    x: [... h w c].
    kernels: of layer i, [k k c+g*i g].
    biases: [g] a layer, or None.
    fuse: kernel [1 1 c+g*n c] over the input and all outputs.
    fuse_bias: [c].
    activation: applied to every layer's output.

  Returns:
    [... h w c], the fused outputs plus the input.
  """
  features = [x]
  for i, kernel in enumerate(kernels):
    y = convolve(jnp.concatenate(features, axis=-1), kernel)
    features.append(activation(y if biases is None else y + broadcast_channels(biases[i], y)))
  fused = convolve(jnp.concatenate(features, axis=-1), fuse)
  return x + fused + broadcast_channels(fuse_bias, x)


# Jitted so that the equal blocks of a model are traced once; inlined, so that its program is as if
# they were not.
@functools.partial(jax.jit, static_argnames="activation", inline=True)
def dense_block(
  x: jax.Array,
  kernels: Sequence[jax.Array],
  biases: Sequence[jax.Array] | None,
  fuse: jax.Array,
  fuse_bias: jax.Array,
  activation: Activation,
) -> jax.Array:
  """Equal to `dense_block_definition`, whose arguments it takes.

  Convolutions are linear, so that x is convolved once with the kernel rows of all layers that read
  it: the same sums in one wider, faster convolution.
  """
  c, g = x.shape[-1], kernels[0].shape[-1]
  input_term = convolve(x, jnp.concatenate([k[:, :, :c] for k in kernels], axis=-1))
  if biases is not None:
    input_term += broadcast_channels(jnp.concatenate(biases), input_term)

  def output(i: int, input_term: jax.Array, *output_terms: jax.Array) -> jax.Array:
    return activation(sum(output_terms, input_term[..., i * g : (i + 1) * g]))

  outputs: list[jax.Array] = []
  for i, kernel in enumerate(kernels):
    terms = [input_term]
    if i:
      terms.append(convolve(concatenate_channels(outputs), kernel[:, :, c:]))
    outputs.append(materialise(functools.partial(output, i), *terms))

  def fused(x, joined, fuse, bias):
    return x + convolve(joined, fuse) + bias

  joined = concatenate_channels([x, *outputs])
  return materialise(fused, x, joined, fuse, broadcast_channels(fuse_bias, x))
