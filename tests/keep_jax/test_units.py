"""Each building block against the released one: within 1e-5, a few float32 roundings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax import conversion, kalman, vqgan
from keep_jax.code_predictor import SelfAttentionLayer
from keep_jax.discriminator import SpectralConv, VideoDiscriminator
from keep_jax.fusion import ControllableFeatureTransform, CrossFrameAttention
from keep_jax.model import Architecture
from tests.keep_jax import golden
from tests.support.keep_discriminators import video_discriminator_rules
from vsr_jax.conversion import convert

UNIT = 1e-5


def rules_of(build, *args):
  """A unit's rules: keys without a name in front, leaves at the top."""
  return [
    rule._replace(pattern=rule.pattern.removeprefix(r"\."), path=rule.path.removeprefix("/"))
    for rule in build("", "", *args)
  ]


@pytest.mark.parametrize(
  ("unit", "net", "table", "shapes"),
  [
    ("resblock", vqgan.ResBlock(96), conversion.res_block, [(2, 64, 12, 16)]),
    ("attnblock", vqgan.AttentionBlock(), conversion.attention_block, [(2, 64, 8, 8)]),
    ("fuse_sft", ControllableFeatureTransform(), conversion.cft, [(1, 64, 16, 16)] * 2),
    ("cross_frame", CrossFrameAttention(4, 32), conversion.cfa, [(2, 64, 8, 8)] * 2),
  ],
)
def test_block_on_images(unit, net, table, shapes):
  x = [golden.channels_last(golden.inputs(shape, 10 + i)) for i, shape in enumerate(shapes)]
  y = golden.apply(net, rules_of(table), unit, *x)
  assert golden.relative_error(golden.channels_first(y), golden.data(unit)["out0"]) < UNIT


def test_transformer_layer():
  tokens = golden.inputs((16, 2, 64), 10).swapaxes(0, 1)
  rules = rules_of(conversion.transformer_layer)
  y = golden.apply(SelfAttentionLayer(4, 128), rules, "transformer_sa", tokens)
  want = golden.data("transformer_sa")["out0"].swapaxes(0, 1)
  assert golden.relative_error(y, want) < UNIT


def test_gains_of_five_frames():
  latents = golden.channels_last(golden.inputs((2, 5, 64, 8, 8), 20))
  net = kalman.GainNetwork(heads=4, head_dim=24, layers=3)
  gains = golden.apply(net, conversion.gain_network(""), "kalman_filter", latents)
  want = golden.channels_last(golden.data("kalman_filter")["gain"])
  assert golden.relative_error(gains, want) < UNIT


def test_prediction_warps_the_frame_before():
  image = golden.channels_last(golden.inputs((2, 3, 24, 32), 21))
  flow = golden.channels_last(golden.inputs((2, 2, 24, 32), 22, -6, 6))
  got = kalman.predict(jnp.asarray(image), jnp.asarray(flow), lambda x: x)
  want = golden.channels_last(golden.data("flow_warp")["out"])
  assert golden.relative_error(got, want) < UNIT


def test_update_blends():
  observed, predicted = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3))
  gain = jnp.array([0.0, 1, 0.25, 0.5]).reshape(1, 2, 2, 1)
  got = kalman.update(observed, predicted, gain)
  np.testing.assert_array_equal(got[..., 0].ravel(), [1, 0, 0.75, 0.5])


def test_quantisation_and_its_loss():
  latent = golden.channels_last(golden.inputs((2, 32, 6, 6), 23))
  codebook = golden.state_dict("quantize")["embedding.weight"]
  quantized, loss, indices = vqgan.quantize(jnp.asarray(latent), jnp.asarray(codebook))
  want = golden.data("quantize")
  np.testing.assert_array_equal(indices.ravel(), want["indices"].ravel())
  assert golden.relative_error(golden.channels_first(quantized), want["z_q"]) < UNIT
  np.testing.assert_allclose(loss, want["loss"], rtol=UNIT)


def test_quantisation_passes_gradients_straight_through():
  latent, codebook = jnp.array([[0.9, 0.2]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
  quantized, pull = jax.vjp(lambda z: vqgan.quantize(z, codebook)[0], latent)
  np.testing.assert_allclose(quantized, [[1, 0]], atol=1e-6)
  np.testing.assert_array_equal(pull(jnp.array([[2.0, 3.0]]))[0], [[2, 3]])


def test_autoencoder():
  unit, want = "vqgan", golden.data("vqgan")
  arch = Architecture(
    image_size=64, width=32, multiples=(1, 2, 4), emb_dim=32, codes=128, cft=(), cfa=()
  )
  image = golden.channels_last(golden.inputs((1, 3, 64, 64), 24))
  encoder = vqgan.Encoder(32, (1, 2, 4), 32, 2)
  others = [conversion.Rule(r"(generator|quantize)\..*", None)]
  rules = conversion.encoder(r"encoder\.", arch) + others
  latent, _ = golden.apply(encoder, rules, unit, image)
  assert golden.relative_error(golden.channels_first(latent), want["z"]) < UNIT

  codebook = golden.state_dict(unit)["quantize.embedding.weight"]
  quantized, loss, indices = vqgan.quantize(latent, jnp.asarray(codebook))
  np.testing.assert_array_equal(indices.ravel(), want["indices"].ravel())
  np.testing.assert_allclose(loss, want["codebook_loss"], rtol=UNIT)

  others = [conversion.Rule(r"(encoder|quantize)\..*", None)]
  rules = conversion.generator(r"generator\.", arch) + others
  out = golden.apply(vqgan.Generator(32, (1, 2, 4), 2), rules, unit, quantized)
  assert golden.relative_error(golden.channels_first(out), want["out"]) < UNIT


@pytest.mark.parametrize(
  ("unit", "train"), [("discriminator", False), ("discriminator_train", True)]
)
def test_patch_discriminator(unit, train):
  net, variables = golden.patch_discriminator(golden.state_dict(unit), unit)
  image = golden.channels_last(golden.inputs((2, 3, 64, 64), 10))

  @golden.jit
  def scores(variables, image):
    return net.apply(variables, image, train, mutable=["batch_stats"] if train else False)

  out = scores(variables, image)
  out, statistics = out if train else (out, None)
  # Batch norm of few pixels magnifies rounding.
  assert golden.relative_error(golden.channels_first(out), golden.data(unit)["out0"]) < 1e-4
  if train:
    before, after = variables["batch_stats"], statistics["batch_stats"]
    assert not np.allclose(before["norm_1"]["mean"], after["norm_1"]["mean"])


def test_video_discriminator():
  unit, net = "discriminator3d", VideoDiscriminator(8)
  clip = golden.channels_last(golden.inputs((1, 3, 3, 64, 64), 31))
  rules = video_discriminator_rules(8)
  template = jax.eval_shape(lambda: net.init(jax.random.key(0), clip))
  variables = convert(golden.state_dict(unit), rules, template, unit)
  out = golden.jit(net.apply)(variables, clip)
  # The last bias dominates: it is taken off both.
  bias = variables["params"]["scores"]["bias"]
  want = golden.channels_last(golden.data(unit)["out"])
  assert golden.relative_error(out - bias.reshape(1, 1, 1, 1, -1), want - bias) < 1e-4


def test_power_iterations_find_the_spectral_norm():
  net, clip = SpectralConv(16, ((2, 2), (2, 2))), jnp.zeros((1, 1, 4, 4, 8))
  variables = net.init(jax.random.key(0), clip, False)

  @golden.jit
  def iterate(variables):
    return variables | net.apply(variables, clip, True, mutable=["spectral"])[1]

  for _ in range(60):
    variables = iterate(variables)
  matrix = np.asarray(variables["params"]["kernel"]).reshape(-1, 16)
  vectors = variables["spectral"]
  sigma = vectors["v"] @ matrix @ vectors["u"]
  largest = np.linalg.norm(matrix, 2)
  # From below; singular values of a random matrix lie close together, which makes it slow.
  assert 0.98 * largest < sigma <= 1.0001 * largest
