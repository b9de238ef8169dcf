"""The building blocks against direct forms of what their docstrings say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special

from fmanet_jax import blocks
from fmanet_jax.architecture import DenseSpec
from fmanet_jax.filtering import warp_features
from fmanet_jax.frma import FlowUpdate
from fmanet_jax.networks import TemporalConv, split_time
from tests.fmanet_jax import golden
from tests.support.programs import random_params
from tests.vsr_jax.ops.numeric import CLOSE, conv, normal
from vsr_jax import layers


def diagonal(kernel: np.ndarray) -> np.ndarray:
  """A depthwise kernel [k k c] as a full one [k k c c]."""
  return kernel[..., None] * np.eye(kernel.shape[-1], dtype=np.float32)


def leaky(x: np.ndarray) -> np.ndarray:
  return np.where(x > 0, x, np.float32(0.2) * x)


def applied(module, *args):
  """A module's result and the random parameters it is of."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
  params = jax.tree.map(np.asarray, random_params(shapes))
  return golden.jit(module.apply)({"params": params}, *args), params


@pytest.mark.parametrize("use_bias", [False, True])
def test_dense_block_equals_its_layers_one_by_one(use_bias):
  growth, layers = 3, 4
  x = normal(0, 2, 5, 6, 4)
  got, params = applied(blocks.DenseBlock(DenseSpec(growth, layers), use_bias), x)
  features = x
  for i in range(layers):
    y = conv(features, params[f"layer_{i}_kernel"], params.get(f"layer_{i}_bias"))
    features = np.concatenate([features, leaky(y)], axis=-1)
  fused = conv(features, params["fuse_kernel"], params["fuse_bias"])
  np.testing.assert_allclose(got, x + fused, **CLOSE)
  assert ("layer_0_bias" in params) == use_bias


def test_encoder_fuses_all_dense_blocks():
  x = normal(0, 1, 5, 6, 4)
  got, params = applied(blocks.ResidualInResidualDenseBlock(2, DenseSpec(3, 2)), x)
  y, outputs = x, []
  for i in range(2):
    y = golden.jit(blocks.DenseBlock(DenseSpec(3, 2)).apply)({"params": params[f"rdb_{i}"]}, y)
    outputs.append(np.asarray(y))
  fused = conv(np.concatenate(outputs, -1), params["fuse1"]["kernel"])
  np.testing.assert_allclose(got, x + conv(fused, params["fuse2"]["kernel"]), **CLOSE)


@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm(with_bias):
  x = 3 + normal(0, 2, 4, 5, 6)
  got, params = applied(blocks.RestormerLayerNorm(with_bias), x)
  deviation = np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-5)
  mean = np.mean(x, axis=-1, keepdims=True) if with_bias else 0
  want = (x - mean) / deviation * params["scale"]
  np.testing.assert_allclose(got, want + params.get("bias", 0), **CLOSE)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(("heads", "c"), [(1, 6), (3, 6), (3, 66)])
def test_channel_attention_equals_normalising_and_softmax(heads, c, use_bias):
  b, h, w = 2, 5, 4
  x, query = normal(0, b, h, w, c), normal(1, b, h, w, c)
  got, params = applied(blocks.ChannelAttention(heads, use_bias), x, query)

  def project(x, name):
    one, depthwise = params[name], params[f"{name}_depthwise"]
    y = conv(x, one["kernel"], one.get("bias"))
    return conv(y, diagonal(depthwise["kernel"]), depthwise.get("bias"))

  def by_head(x):
    """[b h w (heads c)] -> [b heads c h*w]."""
    return x.reshape(b, h * w, heads, -1).transpose(0, 2, 3, 1)

  q, kv = project(query, "query"), project(x, "key_value")
  q, k, v = by_head(q), by_head(kv[..., :c]), by_head(kv[..., c:])
  q, k = (a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12) for a in (q, k))
  logits = q @ k.swapaxes(-1, -2) * params["temperature"][:, None, None]
  y = (special.softmax(logits, axis=-1) @ v).transpose(0, 3, 1, 2).reshape(b, h, w, c)
  want = conv(y, params["project_kernel"], params.get("project_bias"))
  np.testing.assert_allclose(got, want, **CLOSE)


def test_channel_attention_of_nothing_is_finite():
  """A query of zeros, as of a black frame, is normalised by an epsilon; its gradient is none."""
  x, module = normal(0, 1, 4, 4, 6), blocks.ChannelAttention(2)
  got, params = applied(module, x, np.zeros_like(x))
  assert jnp.isfinite(got).all()
  gradient = jax.grad(lambda query: module.apply({"params": params}, x, query).sum())
  assert jnp.isfinite(golden.jit(gradient)(np.zeros_like(x))).all()


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("hidden", [7, 70])  # many are padded
def test_gated_feed_forward(hidden, use_bias):
  x = normal(0, 1, 4, 5, 6)
  got, params = applied(blocks.GDFN(hidden, use_bias), x)
  y = conv(x, params["expand"]["kernel"], params["expand"].get("bias"))
  y = conv(y, diagonal(params["depthwise"]["kernel"]), params["depthwise"].get("bias"))
  gelu = y[..., :hidden] * special.ndtr(y[..., :hidden])
  want = conv(gelu * y[..., hidden:], params["project"]["kernel"], params["project"].get("bias"))
  np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("t", [1, 3, 5])
def test_temporal_conv_equals_a_3d_convolution(t):
  x = normal(0, 2, t, 4, 5, 3)
  got, params = applied(TemporalConv(6, True, jnp.float32), x)

  @golden.jit
  def conv3d(x, kernel):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers)

  want = conv3d(x, params["kernel"]) + params["bias"].reshape(1, 1, 1, 1, -1)
  np.testing.assert_allclose(got, want, **CLOSE)


def test_fuse_equals_a_convolution_of_all_channels():
  arrays = [normal(i, 2, 4, 5, c) for i, c in enumerate((7, 6, 6))]
  got, params = applied(blocks.Fuse(8, use_bias=True), arrays)
  want = conv(np.concatenate(arrays, -1), params["kernel"], params["bias"])
  np.testing.assert_allclose(got, want, **CLOSE)


def test_flow_update_equals_a_convolution_of_both_inputs():
  centre, by_frame = normal(0, 2, 4, 5, 6), normal(1, 2, 3, 4, 5, 7)
  got, params = applied(FlowUpdate(2, use_bias=True), centre, by_frame)
  for t in range(3):
    x = np.concatenate([centre, by_frame[:, t]], axis=-1)
    hidden = leaky(conv(x, params["conv1_kernel"], params["conv1_bias"]))
    want = conv(hidden, params["conv2"]["kernel"], params["conv2"]["bias"])
    np.testing.assert_allclose(got[:, t], want, **CLOSE)


def test_every_flow_moves_its_own_channels():
  b, t, h, w, n = 1, 2, 5, 6, 2
  features = normal(0, b, t, h, w, 4)
  flow_mask = np.zeros((b, t, h, w, n, 3), np.float32)
  flow_mask[:, 1, :, :, 1] = 1, -2, 0.5  # the second frame's second pair
  got = np.asarray(golden.jit(warp_features)(features, flow_mask.reshape(b, t, h, w, -1)))
  half = 0.5  # the mask of logit 0
  np.testing.assert_allclose(got[:, 0], half * features[:, 0], rtol=1e-6)
  np.testing.assert_allclose(got[:, 1, ..., :2], half * features[:, 1, ..., :2], rtol=1e-6)
  moved = np.zeros((h, w, 2), np.float32)
  moved[2:, :-1] = features[0, 1, :-2, 1:, 2:]  # read at (x + 1, y - 2), zero outside
  np.testing.assert_allclose(got[0, 1, ..., 2:], special.expit(0.5) * moved, rtol=1e-6)


def test_split_time_shares_out_interleaved_channels():
  aligned = jnp.arange(12.0).reshape(1, 1, 1, 12)
  got = split_time(aligned, 3)
  assert got.shape == (1, 3, 1, 1, 4)
  np.testing.assert_array_equal(got[0, 1, 0, 0], [1, 4, 7, 10])


@pytest.mark.parametrize(("scale", "convs"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_pixel_shuffle_upsampler(scale, convs):
  x = jax.ShapeDtypeStruct((2, 3, 5, 6), jnp.float32)
  module = blocks.PixelShuffleUpsampler(6, scale)
  y, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
  assert y.shape == (2, 3 * scale, 5 * scale, 6)
  assert len(variables["params"]) == convs


@pytest.mark.parametrize(
  ("make", "inputs"),
  [
    (lambda dtype: layers.Conv(8, use_bias=True, dtype=dtype), 1),
    (lambda dtype: blocks.DenseBlock(DenseSpec(4, 2), True, dtype), 1),
    (lambda dtype: blocks.ChannelAttention(2, True, dtype), 2),
    (lambda dtype: blocks.GDFN(9, True, dtype), 1),
    (lambda dtype: blocks.PixelShuffleUpsampler(8, 2, True, dtype), 1),
  ],
  ids=["conv", "dense", "attention", "feed_forward", "upsampler"],
)
def test_bfloat16_compute_with_float32_params(make, inputs):
  args = [normal(i, 1, 6, 7, 8) for i in range(inputs)]
  low, full = make(jnp.bfloat16), make(jnp.float32)
  shapes = jax.eval_shape(low.init, jax.random.key(0), *args)
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}

  @golden.jit
  def both(params, *args):
    got = low.apply(params, *(x.astype(jnp.bfloat16) for x in args))
    return got, full.apply(params, *args)

  got, want = both({"params": random_params(shapes["params"])}, *args)
  assert got.dtype == jnp.bfloat16
  # bfloat16 keeps 8 bits, 0.4 % a rounding, of which there are a few in a row.
  assert 0 < golden.relative_error(got.astype(jnp.float32), np.asarray(want)) < 0.02


def test_initialisation_is_uniform_within_the_fan_in():
  x = layers.uniform_by_fan_in(jax.random.key(0), (3, 3, 16, 64))
  bound = 1 / 12
  assert np.abs(x).max() <= bound
  # The standard deviation of a uniform distribution, of 9216 samples.
  assert np.std(x) == pytest.approx(bound / np.sqrt(3), rel=0.05)
  bias = layers.bias_by_fan_in(144)(jax.random.key(1), (4096,))
  assert np.abs(bias).max() <= bound
  assert np.std(bias) == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_layer_norm_starts_as_plain_normalisation():
  params = blocks.RestormerLayerNorm().init(jax.random.key(0), jnp.ones((1, 2, 2, 4)))["params"]
  np.testing.assert_array_equal(params["scale"], np.ones(4))
  np.testing.assert_array_equal(params["bias"], np.zeros(4))
