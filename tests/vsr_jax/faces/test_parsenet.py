"""ParseNet against the released code, its table, and the mask made of its classes.

parity/parsenet_tiny.npz: a smooth uint8 image and the logits that the released code gives for it,
with 8 to 16 channels, two blocks at the smallest size and the deterministic weights of
parity/weights.py. parsenet.manifest.json lists what parsing_parsenet.pth holds.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import weights
from tests.support.torch_writer import save_state_dict
from vsr_jax.errors import UserError
from vsr_jax.faces import parsenet

PARITY = Path(__file__).parents[2] / "parity"
TINY = parsenet.ParseNet(width=8, limit=16, depth=2)


@jax.jit
def run(params, images: jax.Array) -> jax.Array:
  return TINY.apply({"params": params}, images.astype(jnp.float32) / 127.5 - 1)


def tiny_state() -> dict[str, np.ndarray]:
  return weights.state_dict(PARITY / "parsenet_tiny.manifest.json", 1234)


def full_state() -> dict[str, np.ndarray]:
  """The released layout with cheap values."""
  shapes = json.loads((PARITY / "parsenet.manifest.json").read_text())
  counters = "num_batches_tracked"
  return {
    key: np.zeros(shape, np.int64) if key.endswith(counters) else np.full(shape, 1e-3, np.float32)
    for key, shape in shapes.items()
  }


def test_equals_the_released_code():
  with np.load(PARITY / "parsenet_tiny.npz") as file:
    image, expected = file["image"], file["logits"]
  params = parsenet.from_state_dict(tiny_state(), net=TINY)
  logits = run(params, jnp.asarray(image))
  # Logits reach 13; the reference's own rounding is 1.2e-5 there.
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  classes = parsenet.classify(TINY, params, jnp.asarray(image))
  assert classes.dtype == jnp.uint8
  margin = np.diff(np.sort(expected, axis=-1)[..., -2:], axis=-1)[..., 0]
  sure = margin > 2e-4
  assert sure.mean() > 0.99
  np.testing.assert_array_equal(np.asarray(classes)[sure], expected.argmax(-1)[sure])


def test_a_batch_is_its_images():
  params = parsenet.from_state_dict(tiny_state(), net=TINY)
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
  both = run(params, jnp.asarray(images))
  for image, logits in zip(images, both, strict=True):
    one = run(params, jnp.asarray(image)[None])
    np.testing.assert_allclose(logits[None], one, atol=1e-4)  # rounding, of values to 13


def test_parameter_count():
  """The released file's 21,303,254 but the 1,731 of the output that is not needed."""
  image = jnp.zeros((1, 16, 16, 3))
  shapes = jax.eval_shape(parsenet.ParseNet().init, jax.random.key(0), image)["params"]
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  learned = sum(leaf.size for path, leaf in leaves if path[-1].key not in ("mean", "var"))
  assert learned == 21_303_254 - 1_731


def test_the_released_layout_converts(tmp_path):
  state = full_state()
  save_state_dict(tmp_path / "parsing_parsenet.pth", state)
  params = parsenet.load(tmp_path / "parsing_parsenet.pth")
  assert params["last"]["kernel"].shape == (3, 3, 64, 19)
  assert params["body9"]["norm2"]["var"].shape == (256,)
  with pytest.raises(UserError, match="missing.pth"):
    parsenet.load(tmp_path / "missing.pth")


def test_other_weights_are_refused():
  state = full_state()
  state["encoder.1.conv1.conv2d.weight"] = np.ones((2, 2, 3, 3), np.float32)
  state["encoder.9.conv1.conv2d.weight"] = np.ones((2, 2, 3, 3), np.float32)
  del state["body.3.conv2.norm.norm.running_var"]
  with pytest.raises(UserError) as caught:
    parsenet.from_state_dict(state, "x.pth")
  for part in ("x.pth", "down1/conv1/kernel", "down9/conv1/kernel", "missing body3/norm2/var"):
    assert part in str(caught.value)


def test_soft_mask():
  """All classes are pasted but background, 14, 16, 17 and 18; blurred twice; ten pixels of edge."""
  classes = np.zeros((512, 512), np.uint8)
  for value in range(19):  # columns of 24 pixels, in the middle of the picture
    classes[100:400, 28 + 24 * value : 52 + 24 * value] = value
  mask = parsenet.soft_mask(classes)
  binary = np.isin(classes, [*range(1, 14), 15]).astype(np.float64)
  expected = cv2.GaussianBlur(cv2.GaussianBlur(binary, (101, 101), 11), (101, 101), 11)
  np.testing.assert_allclose(mask[10:-10, 10:-10], expected[10:-10, 10:-10], atol=1e-5)  # float32
  assert mask.dtype == np.float32
  assert 0.99 < mask[250, 200] <= 1
  whole = parsenet.soft_mask(np.ones((512, 512), np.uint8))
  assert not whole[:10].any()
  assert not whole[-10:].any()
  assert not whole[:, :10].any()
  assert not whole[:, -10:].any()
  np.testing.assert_allclose(whole[10:-10, 10:-10], 1, atol=1e-5)  # the kernel's rounding
  assert whole.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [512, 256])
def test_masks_at_full_size(size):
  """With a bias that calls everything skin, then everything background."""
  faces = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
  for value, expected in ((1, 1), (0, 0)):
    state = full_state()
    state["out_mask_conv.conv2d.weight"][:] = 0
    state["out_mask_conv.conv2d.bias"][value] = 1
    (mask,) = parsenet.face_masks(parsenet.from_state_dict(state), faces)
    assert mask.shape == (size, size)
    np.testing.assert_allclose(mask[32:-32, 32:-32], expected, atol=1e-5)
