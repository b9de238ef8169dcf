"""Every form of an operation against its definition, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from scipy import special

from tests.fmanet_jax import golden
from tests.vsr_jax.ops.numeric import CLOSE, assert_same_sums, conv, normal
from vsr_jax.ops import activations, attention, channels, convolution, dense, depthwise, temporal
from vsr_jax.ops import feed_forward as ff
from vsr_jax.ops.depthwise import KernelAndBias


@settings(max_examples=5, deadline=None)
@given(
  lead=st.sampled_from([(1,), (2,), (1, 3)]),
  size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
  channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
  k=st.sampled_from([1, 3, 5]),
)
def test_convolve_takes_any_leading_axes(lead, size, channels, k):
  x, kernel = normal(0, *lead, *size, channels[0]), normal(1, k, k, *channels)
  want = conv(x.reshape(-1, *size, channels[0]), kernel)
  got = golden.jit(convolution.convolve)(x, kernel)
  np.testing.assert_allclose(got, want.reshape(*lead, *size, -1), **CLOSE)


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize(
  ("k", "d", "padding"),
  [(1, 70, (10, 10)), (3, 18, (0, 14)), (3, 27, (5, 5)), (3, 72, (0, 24)), (3, 200, (0, 24))],
)
def test_channel_padding_leaves_the_result(monkeypatch, avx512, k, d, padding):
  assert convolution.channel_padding(d, k, avx512) == padding[avx512]
  monkeypatch.setattr(convolution, "has_avx512", lambda: avx512)
  x, kernel = normal(0, 2, 7, 5, 4), normal(1, k, k, 4, d)
  got = golden.jit(lambda x, kernel: convolution.convolve(x, kernel))(x, kernel)
  np.testing.assert_allclose(got, conv(x, kernel), **CLOSE)


@pytest.mark.parametrize("widths", [(4,), (6, 4, 2), (3, 2)])  # in groups of 4, 2 and 1
def test_concatenate_channels(widths):
  arrays = [normal(i, 2, 3, 5, c) for i, c in enumerate(widths)]
  weights = normal(9, 2, 3, 5, sum(widths))

  @golden.jit
  def joined_and_gradient(arrays):
    gradient = jax.grad(lambda arrays: (channels.concatenate_channels(arrays) * weights).sum())(
      arrays
    )
    return channels.concatenate_channels(arrays), gradient

  joined, gradient = joined_and_gradient(arrays)
  np.testing.assert_array_equal(joined, np.concatenate(arrays, axis=-1))
  np.testing.assert_array_equal(np.concatenate(gradient, axis=-1), weights)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_gelu(dtype, rtol):
  x = np.linspace(-8, 8, 1001, dtype=np.float32).astype(dtype)
  wide = x.astype(np.float64)
  # 1 + erf is rounded to float32 where both cancel, as in PyTorch.
  got = golden.jit(activations.gelu)(x)
  assert got.dtype == dtype
  np.testing.assert_allclose(np.asarray(got, np.float64), wide * special.ndtr(wide), rtol, 1e-6)


@pytest.mark.parametrize(
  ("k", "c", "d", "shape"),
  [
    (1, 2, 5, (1, 7, 5)),
    (1, 5, 2, (3, 4, 9)),
    (3, 2, 5, (3, 4, 9)),
    (3, 5, 2, (1, 7, 5)),
    (3, 3, 3, (1, 1, 2)),
    (3, 2, 70, (1, 7, 5)),
    (5, 5, 2, (1, 1, 2)),
    (5, 2, 5, (3, 4, 9)),
  ],
)
def test_gradient_of_convolve(k, c, d, shape):
  """That of the kernel is written by hand, in two orientations."""
  x, kernel, pull = normal(0, *shape, c), normal(1, k, k, c, d), normal(2, *shape, d)

  def plain(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

  def gradients(x, kernel, pull):
    dx, dkernel = jax.vjp(convolution.convolve, x, kernel)[1](pull)
    same = ((k // 2, k // 2),) * 2
    on_accelerators = convolution.kernel_gradient_definition(k, same, x, pull)
    return (dx, dkernel, on_accelerators), jax.vjp(plain, x, kernel)[1](pull)

  got, (dx, dkernel) = golden.jit(gradients)(x, kernel, pull)
  assert_same_sums(got, (dx, dkernel, dkernel))


@pytest.mark.parametrize(("c", "d"), [(2, 5), (5, 2)])
@pytest.mark.parametrize(
  ("k", "padding"),
  [(2, ((1, 1), (1, 1))), (2, ((0, 1), (1, 0))), (3, ((0, 0), (2, 1))), (4, ((1, 1), (1, 1)))],
)
def test_convolve_with_other_padding(k, padding, c, d):
  x, kernel = normal(0, 2, 6, 5, c), normal(1, k, k, c, d)

  def plain(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)

  @golden.jit
  def both(x, kernel):
    y, pull = jax.vjp(lambda *args: convolution.convolve(*args, padding), x, kernel)
    want, pull_plain = jax.vjp(plain, x, kernel)
    on_accelerators = convolution.kernel_gradient_definition(k, padding, x, want)
    return (y, *pull(want), on_accelerators), (want, *pull_plain(want))

  got, (y, dx, dkernel) = both(x, kernel)
  assert_same_sums(got, (y, dx, dkernel, dkernel))


def test_gradient_of_convolve_in_bfloat16():
  x, kernel, pull = normal(0, 2, 6, 7, 4), normal(1, 3, 3, 4, 8), normal(2, 2, 6, 7, 8)

  @golden.jit
  def gradients(x, kernel, pull):
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
      pulled = jax.vjp(lambda k, dtype=dtype: convolution.convolve(x.astype(dtype), k), kernel)[1]
      found += pulled(pull.astype(dtype))
    return found

  got, want = gradients(x, kernel, pull)
  assert got.dtype == jnp.float32
  # 84 products of bfloat16's 8 bits.
  np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


def values_and_gradients(form, *args):
  """A form's output and its gradients by all arguments, under one random sum."""

  def energy(*args):
    y = form(*args)
    leaves = jax.tree.leaves(y)
    pulls = [normal(99 + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return sum((leaf * pull).sum() for leaf, pull in zip(leaves, pulls, strict=True)), y

  gradients, y = jax.grad(energy, tuple(range(len(args))), has_aux=True)(*args)
  return jax.tree.leaves((y, gradients))


def assert_forms_agree(form, definition, *args):
  """Equal where it is differentiated and where it is not, which may be other programs."""

  @golden.jit
  def both(*args):
    plain = [jax.tree.leaves(f(*args)) for f in (form, definition)]
    return plain, [values_and_gradients(f, *args) for f in (form, definition)]

  for got, want in both(*args):
    assert_same_sums(got, want)


@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 1, 2)])
def test_depthwise_convolution(shape):
  forms = depthwise.depthwise_convolve, depthwise.depthwise_convolve_definition
  assert_forms_agree(*forms, normal(0, *shape, 6), normal(1, 3, 3, 6))


@pytest.mark.parametrize(("shape", "start"), [((1, 6, 7), 0), ((2, 5, 4), 1)])
def test_strided_depthwise_convolution(shape, start):
  x, kernel = normal(0, *shape, 6), normal(1, 3, 3, 6)
  want = depthwise.depthwise_convolve_definition(x, kernel)[:, start::2, start::2]
  got = depthwise.depthwise_convolve_strided(x, kernel, 2, start)
  np.testing.assert_allclose(got, want, **CLOSE)


def weights(seed, *shape, bias=False):
  kernel = normal(seed, *shape) / np.sqrt(np.prod(shape[:-1])).astype(np.float32)
  return KernelAndBias(kernel, normal(seed + 50, shape[-1]) if bias else None)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(("d", "parts"), [(6, 1), (6, 2), (140, 2)])  # wide ones are made apart
def test_pointwise_and_depthwise_convolution(d, parts, use_bias):
  pointwise, depthwise_weights = (
    weights(1, 1, 1, 4, d, bias=use_bias),
    weights(2, 3, 3, d, bias=use_bias),
  )

  def with_parts(form):
    return lambda *args: form(*args, parts)

  forms = depthwise.pointwise_depthwise, depthwise.pointwise_depthwise_definition
  assert_forms_agree(*map(with_parts, forms), normal(0, 2, 5, 4, 4), pointwise, depthwise_weights)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("hidden", [7, 70])  # many are padded
def test_gated_feed_forward(hidden, use_bias):
  args = [
    weights(1, 1, 1, 6, 2 * hidden, bias=use_bias),
    weights(2, 3, 3, 2 * hidden, bias=use_bias),
    weights(3, 1, 1, hidden, 6, bias=use_bias),
  ]
  forms = ff.gated_feed_forward, ff.gated_feed_forward_definition
  assert_forms_agree(*forms, normal(0, 1, 4, 5, 6), *args)


@pytest.mark.parametrize(("heads", "c"), [(1, 6), (3, 6)])
def test_channel_attention(heads, c):
  q, k, v = (normal(i, 2, 20, c) for i in range(3))
  forms = attention.channel_attention, attention.channel_attention_definition
  assert_forms_agree(*forms, q, k, v, normal(3, heads), normal(4, c, c))


@pytest.mark.parametrize("use_bias", [False, True])
def test_dense_block(use_bias):
  c, growth, layers = 4, 3, 4
  widths = [c + growth * i for i in range(layers + 1)]
  kernels = [weights(i, 3, 3, width, growth).kernel for i, width in enumerate(widths[:-1])]
  biases = [normal(20 + i, growth) for i in range(layers)] if use_bias else None
  fuse = weights(30, 1, 1, widths[-1], c, bias=True)

  def with_activation(form):
    return lambda *args: form(*args, activations.leaky_relu)

  forms = dense.dense_block, dense.dense_block_definition
  args = (normal(40, 2, 5, 6, c), kernels, biases, fuse.kernel, fuse.bias)
  assert_forms_agree(*map(with_activation, forms), *args)


def test_convolution_of_concatenated_channels():
  arrays = [normal(i, 2, 4, 5, c) for i, c in enumerate((7, 6, 6))]
  forms = convolution.convolve_concatenated, convolution.convolve_concatenated_definition
  assert_forms_agree(*forms, arrays, weights(9, 1, 1, 19, 8).kernel)


@pytest.mark.parametrize(("t", "k"), [(1, 3), (3, 3), (3, 5), (5, 3)])
def test_convolution_of_frames(t, k):
  kernel = (normal(1, 3, k, k, 3, 6) / 9).astype(np.float32)
  x = normal(0, 2, t, 4, 5, 3)
  assert_forms_agree(temporal.convolve_frames, temporal.convolve_frames_definition, x, kernel)
  if t == 3:  # on CPU three frames have a form of their own
    by_frame = temporal._convolve_by_frame
    assert_forms_agree(by_frame, temporal.convolve_frames_definition, x, kernel)


@pytest.mark.parametrize(("t", "pad"), [(1, (2, 2)), (4, (1, 0))])
def test_convolution_of_frames_with_a_stride(t, pad):
  kernel = (normal(1, 3, 5, 5, 3, 4) / 9).astype(np.float32)
  x = normal(0, 2, t, 7, 8, 3)

  def strided(form):
    return lambda x, kernel: form(x, kernel, 2, (pad, (2, 1)))

  definition = strided(temporal.convolve_frames_strided_definition)
  assert_forms_agree(strided(temporal.convolve_frames_strided), definition, x, kernel)
