"""The recursion against the released code: outputs, codes, losses and gradients.

The fixture's flow is fed in: on its noise GMFlow returns flows of up to 88 px, which magnify
rounding. Relative errors are norms of the difference over norms of the reference.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax import stages
from keep_jax.conversion import convert_released, rules
from keep_jax.model import KEEP, clip_flows, restore_clip
from tests.keep_jax import golden
from vsr_jax.conversion import to_state_dict
from vsr_jax.ops.resize import resize_bilinear
from vsr_jax.train.opponent import Judge, Opponent


@functools.cache
def load(unit):
  arch, params = convert_released(golden.state_dict(unit), unit)
  return KEEP(arch), jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def mini():
  """The small model's outputs on the fixture's clip."""
  model, params = load("keep_mini")
  frames = golden.channels_last(golden.inputs((1, 4, 3, 128, 128), 25))
  flows = golden.channels_last(golden.data("keep_mini")["flow"])
  return golden.jit(functools.partial(restore_clip, model))(params, frames, flows)


def test_architecture_is_read_off_the_weights():
  arch, _ = convert_released(golden.zeros("keep_stage3"), "x.pth")
  assert (arch.image_size, arch.latent_size, arch.layers) == (128, 4, 2)
  assert (arch.width, arch.multiples, arch.res_blocks) == (64, (1, 2, 2, 4, 4, 8), 2)
  assert (arch.gain_head_dim, arch.gain_layers) == (48, 3)
  assert (arch.cft, arch.cfa, arch.cfa_head_dim) == ((4, 8), (4, 8), 32)


def test_latents_and_gains(mini):
  _, observation, gains = mini
  want = golden.data("keep_mini")
  latent = golden.channels_first(observation.latent[0])
  assert golden.relative_error(latent, want["lq_feat"]) < 1e-5
  assert golden.relative_error(golden.channels_first(gains), want["gain"]) < 1e-5


def test_logits_codes_and_frames(mini):
  restored, _, _ = mini
  want = golden.data("keep_mini")
  logits = np.asarray(restored.logits[0])
  assert golden.relative_error(logits, want["logits"]) < 5e-5
  # The smallest margin is 2e-3: codes are equal, and with them the frames.
  np.testing.assert_array_equal(logits.argmax(-1), want["logits"].argmax(-1))
  assert golden.relative_error(golden.kept(restored.image), want["out"]) < 5e-5


@pytest.mark.slow
def test_two_clips_in_a_batch_equal_two_runs():
  model, params = load("keep_stage3")
  frames = golden.channels_last(golden.inputs((2, 3, 3, 128, 128), 27))
  flows = golden.channels_last(golden.data("keep_stage3")["flow"])
  run = golden.jit(functools.partial(restore_clip, model))
  both = run(params, frames, flows)[0].image
  one_by_one = [run(params, frames[i : i + 1], flows[i : i + 1])[0].image for i in range(2)]
  assert golden.relative_error(both, np.concatenate(one_by_one)) < 1e-5
  assert golden.relative_error(golden.kept(both), golden.data("keep_stage3")["out"]) < 5e-5


def compare_gradients(unit, model, grads):
  """The norm of every gradient that the fixture has, by tensor of the manifest."""
  want = {
    key.removeprefix("gradnorm/"): float(value)
    for key, value in golden.data(unit).items()
    if key.startswith("gradnorm/")
  }
  shapes = {key: golden.manifest()[f"{unit}.{key}"] for key in want}
  got = to_state_dict(jax.tree.map(np.asarray, grads), rules(model.arch), shapes)
  wrong = {
    key: (float(np.linalg.norm(got[key])), norm)
    for key, norm in want.items()
    # A softmax ignores the keys' bias: its gradient is rounding.
    if norm > 1e-7 and abs(np.linalg.norm(got[key]) - norm) > 1e-3 * norm
  }
  assert not wrong
  return want


def as_batch(**clips):
  """Clips [b t h w 3] in [-1, 1] as the trainer's losses take them."""
  return {name: (x + 1) * 127.5 for name, x in clips.items()}


def options(**weights):
  names = ("pixel", "perceptual", "adversarial", "code", "cross_entropy", "temporal")
  return stages.Options(dict.fromkeys(names, 0.0) | weights, temporal_side=8, remat=True)


@pytest.mark.slow
def test_stage_2_losses_and_gradients():
  model, params = load("keep_stage2")
  data = golden.data("keep_stage2")
  frames = golden.channels_last(golden.inputs((2, 3, 3, 128, 128), 27))
  flows = golden.channels_last(data["flow"])
  codes = data["idx_gt"].reshape(2, 3, 16)

  @jax.jit  # what runs backwards is slow without LLVM's optimizations
  def run(params, batch, flows, codes):
    weights = options(code=1.0, cross_entropy=0.5)
    loss = stages.prediction_loss(model, weights, flows=lambda *_: flows, codes_of=lambda *_: codes)
    train = {name: params[name] for name in stages.TRAINED["prediction"]}
    return jax.grad(lambda train: loss(params | train, batch, {}), has_aux=True)(train)

  grads, terms = run(params, as_batch(lq=frames, gt=frames), flows, codes)
  np.testing.assert_allclose(
    [terms["code"], terms["cross_entropy"]], [data["feat"], data["cross_entropy"]], rtol=1e-4
  )
  assert len(compare_gradients("keep_stage2", model, grads)) > 150


@pytest.mark.slow
def test_stage_3_losses_and_gradients():
  model, params = load("keep_stage3")
  data = golden.data("keep_stage3")
  frames, truth = (
    golden.channels_last(golden.inputs((2, 3, 3, 128, 128), offset)) for offset in (27, 28)
  )
  flows, true_flows = (golden.channels_last(data[name]) for name in ("flow", "gt_flow"))

  @jax.jit  # what runs backwards is slow without LLVM's optimizations
  def run(params, batch, flows, true_flows):
    of_clips = iter((flows, true_flows))  # those of the low-quality clips are asked for first
    weights = options(pixel=0.1, temporal=0.1)
    loss = stages.fusion_loss(model, weights, flows=lambda *_: next(of_clips))
    opponent = Opponent("none", init=None, apply=lambda _, own, clip: (clip, own), optimizer=None)
    judge = Judge(opponent, {}, {"none": {}}, jnp.int32(0))  # of weight 0: the fixture has none

    def total(train):
      value, terms, _ = loss(params | train, batch, {}, judge)
      return value, terms

    return jax.grad(total, has_aux=True)({name: params[name] for name in stages.TRAINED["fusion"]})

  grads, terms = run(params, as_batch(lq=frames, gt=truth), flows, true_flows)
  np.testing.assert_allclose(
    [terms["temporal"], terms["pixel"]], [data["temporal"], data["pixel"]], rtol=1e-4
  )
  assert len(compare_gradients("keep_stage3", model, grads)) > 50


@pytest.mark.slow
def test_with_our_own_flow():
  model, params = load("keep_mini")
  frames = golden.channels_last(golden.inputs((1, 4, 3, 128, 128), 25))
  small = golden.channels_last(golden.inputs((1, 3, 3, 32, 32), 26))

  @golden.jit
  def run(params, frames):
    flows = clip_flows(model, params, frames)
    return restore_clip(model, params, frames, flows)[0], flows

  want = golden.data("keep_mini")
  restored, flows = run(params, frames)
  distance = golden.channels_first(flows) - want["flow"]
  assert np.linalg.norm(distance, axis=2).mean() < 0.05  # of up to 88 px
  logits = np.asarray(restored.logits[0])
  np.testing.assert_array_equal(logits.argmax(-1), want["logits"].argmax(-1))
  assert golden.relative_error(logits, want["logits"]) < 2e-3
  assert golden.relative_error(golden.kept(restored.image), want["out"]) < 2e-3
  # A clip a quarter of the size is enlarged first.
  enlarged, _ = run(params, resize_bilinear(jnp.asarray(small), 4))
  # In the third frame two codes are 2e-4 apart, less than rounding in the flow moves them.
  image = golden.kept(enlarged.image)[:, :2]
  assert golden.relative_error(image, want["out_upscale"][:, :2]) < 2e-3


@pytest.mark.slow
def test_the_released_size():
  with np.load(golden.PARITY / "keep_full.npz") as file:
    want = dict(file)
  state = golden.weights.state_dict(golden.manifest("keep_full"), golden.SEED)
  arch, params = convert_released(state, "keep_full")
  model = KEEP(arch)
  frames = golden.channels_last(golden.inputs((1, 3, 3, 512, 512), 30))

  @jax.jit
  def run(params, frames):
    return restore_clip(model, params, frames, clip_flows(model, params, frames))

  restored, observation, gains = run(params, frames)
  latents = golden.channels_first(observation.latent[0])[:, ::4]
  assert golden.relative_error(latents, want["lq_feat"]) < 1e-5
  assert golden.relative_error(golden.channels_first(gains), want["gain"]) < 1e-5
  logits = np.asarray(restored.logits[0])
  best = np.sort(logits, axis=-1)
  sure = best[..., -1] - best[..., -2] > 3e-3  # rounding in the flow moves logits by up to 6e-4
  assert sure.mean() > 0.9
  np.testing.assert_array_equal(logits.argmax(-1)[sure], want["indices"][sure])
  # By the reference's own margin too, where its logits are kept.
  best = np.sort(want["logits"], axis=-1)
  sure = best[..., -1] - best[..., -2] > 3e-3
  assert sure.mean() > 0.9
  kept = logits[:, ::8].argmax(-1)
  np.testing.assert_array_equal(kept[sure], want["indices"][:, ::8][sure])
  assert golden.relative_error(logits[:, ::8], want["logits"]) < 2e-3
  image = golden.channels_first(restored.image)
  assert golden.relative_error(image[..., ::4, ::4], want["out"]) < 2e-3
  np.testing.assert_allclose(image.mean((0, 2, 3, 4)), want["out_mean"], atol=1e-4)
  np.testing.assert_allclose(image.std((0, 2, 3, 4)), want["out_std"], rtol=1e-3)
