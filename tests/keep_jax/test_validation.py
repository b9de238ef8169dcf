"""Validation while training: what it measures, how it averages, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax import forward, validation
from keep_jax.model import KEEP
from tests.keep_jax import tiny
from tests.support.programs import random_params
from vsr_jax import lpips
from vsr_jax.errors import UserError
from vsr_jax.metrics import rgb_psnr
from vsr_jax.ops.resize import resize_bilinear
from vsr_jax.sharding import make_mesh

SIZE = 32
MESH = make_mesh(devices=jax.devices()[:1])


def batches():
  """Two clips, of three and of one real frame."""
  rng = np.random.default_rng(0)
  masks = [[True, True], [True, False], [True, False]]
  return [
    {
      "gt": rng.integers(0, 256, (1, 2, SIZE, SIZE, 3), np.uint8),
      "lq": rng.integers(0, 256, (1, 2, 8, 8, 3), np.uint8),
      "mask": np.array([mask]),
      "clip": np.array([clip], np.int32),
    }
    for mask, clip in zip(masks, (0, 0, 1), strict=True)
  ]


def repeated(params, batch):
  enlarged = jnp.repeat(jnp.repeat(batch["lq"], 4, 2), 4, 3)
  return params["gain"] * forward.to_signed(enlarged)


def expected(data, metric):
  """Mean over the frames of a clip, then over clips."""
  values = {0: [], 1: []}
  for batch in data:
    for i in np.flatnonzero(batch["mask"][0]):
      output = batch["lq"][0, i].repeat(4, 0).repeat(4, 1)
      values[int(batch["clip"][0])].append(metric(batch["gt"][0, i], output))
  return np.mean([np.mean(x) for x in values.values()])


def test_psnr_and_lpips_are_means_over_frames_then_over_clips():
  data = batches()
  params = random_params(lambda key: lpips.init(key, "alexnet"))
  found = validation.make_validation(repeated, data, MESH, params)({"gain": jnp.ones(())}, 7)
  assert list(found) == ["psnr", "lpips"]
  assert found["psnr"] == pytest.approx(expected(data, lambda a, b: rgb_psnr(a, b, 0)), rel=1e-5)
  distance = jax.jit(lpips.distance)

  def lpips_of(a, b):
    return float(distance(params, *(forward.to_signed(jnp.asarray(x)[None]) for x in (a, b)))[0])

  assert found["lpips"] == pytest.approx(expected(data, lpips_of), rel=1e-4)


def test_without_lpips_only_psnr_is_measured():
  evaluate = validation.make_validation(repeated, batches(), MESH)
  one, other = (evaluate({"gain": jnp.float32(gain)}, 0) for gain in (1, 0.5))
  assert list(one) == ["psnr"]
  assert one["psnr"] < other["psnr"]  # of noise, grey is the better guess


def test_devices_share_the_clips_and_none_counts_twice():
  """Three chunks, filled up to four: a device each."""
  data = batches()
  filled = data[-1] | {"mask": np.zeros((1, 2), bool)}
  whole = {name: np.concatenate([x[name] for x in (*data, filled)]) for name in filled}
  params = {"gain": jnp.ones(())}
  mesh = make_mesh(devices=jax.devices()[:4])
  found = validation.make_validation(repeated, [whole], mesh)(params, 0)
  want = validation.make_validation(repeated, data, MESH)(params, 0)
  assert found["psnr"] == pytest.approx(want["psnr"], rel=1e-6)


def test_a_batch_is_enlarged_and_restored_as_clips_of_its_frames(monkeypatch):
  model, (batch, *_) = KEEP(tiny.ARCH), batches()
  frames = resize_bilinear(forward.to_signed(jnp.asarray(batch["lq"])), 4)

  def restore_clip(given, params, frames, flows, **_):
    assert (given, params) == (model, {"flow": {}})
    np.testing.assert_array_equal(flows, np.zeros((1, 1, SIZE, SIZE, 2)))  # it has no flow network
    return SimpleNamespace(image=frames), None, None

  monkeypatch.setattr(forward, "restore_clip", restore_clip)
  got = validation.restoration(model)({"flow": {}}, batch)
  np.testing.assert_allclose(got, frames, atol=1e-6)


def test_a_set_without_frames_and_a_wrong_size_are_told():
  with pytest.raises(UserError, match="the validation set has no frame"):
    validation.make_validation(repeated, [], MESH)
  evaluate = validation.make_validation(lambda params, batch: batch["lq"], batches(), MESH)
  with pytest.raises(ValueError, match=r"restored to \(1, 2, 8, 8, 3\), but the truth is"):
    evaluate({}, 0)
