"""PWC-Net against its definition in NumPy and SciPy, and files of the released layouts.

The frames are two of Big Buck Bunny (Blender Foundation, CC BY 3.0), from parity/raft.npz.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from tests.parity import weights
from tests.support.torch_writer import save_state_dict
from vsr_jax.errors import UserError
from vsr_jax.flow import pwcnet, pwcnet_conversion, released

PARITY = Path(__file__).parents[2] / "parity"
PYRAMID = (3, 16, 32, 64, 96, 128, 196)
DENSE = (128, 128, 96, 64, 32)
CONTEXT = (128, 128, 128, 96, 64, 32, 2)
DILATIONS = (1, 2, 4, 8, 16, 1, 1)
NUMBERS = ("One", "Two", "Thr", "Fou", "Fiv", "Six")

run = jax.jit(pwcnet.pwcnet)


def images(h: int = 64, w: int = 128) -> list[np.ndarray]:
  with np.load(PARITY / "raft.npz") as file:
    return [np.float32(file[key][:, :h, :w]) for key in ("image1", "image2")]


def names() -> dict[str, list[int]]:
  """Keys and kernel shapes of pwc_net.pth.tar, without ".weight"."""
  found = {}
  for level in range(1, 7):
    for i, name in enumerate(("aa", "a", "b") if level == 6 else ("a", "aa", "b")):
      inputs = PYRAMID[level] if i else PYRAMID[level - 1]
      found[f"conv{level}{name}.0"] = [PYRAMID[level], inputs, 3, 3]
  for level in range(6, 1, -1):
    inputs = 81 if level == 6 else 81 + PYRAMID[level] + 4
    for i, width in enumerate(DENSE):
      found[f"conv{level}_{i}.0"] = [width, inputs, 3, 3]
      inputs += width
    found[f"predict_flow{level}"] = [2, inputs, 3, 3]
    found[f"deconv{level}"] = [2, 2, 4, 4]
    if level > 2:
      found[f"upfeat{level}"] = [inputs, 2, 4, 4]
  for i, width in enumerate(CONTEXT):
    found[f"dc_conv{i + 1}" + ".0" * (i < 6)] = [width, inputs, 3, 3]
    inputs = width
  return found


def other_name(key: str) -> str:
  """What pytorch-pwc calls a layer of pwc_net.pth.tar."""
  layer, _, rest = key.partition(".")
  if layer.startswith("dc_conv"):
    return f"moduleRefiner.moduleMain.{2 * (int(layer[7:]) - 1)}"
  level = int(next(letter for letter in layer if letter.isdigit()))
  if "_" not in layer and layer.startswith("conv"):
    order = ("aa", "a", "b") if level == 6 else ("a", "aa", "b")
    return f"moduleExtractor.module{NUMBERS[level - 1]}.{2 * order.index(layer[5:])}"
  if layer.startswith("conv"):
    return f"module{NUMBERS[level - 1]}.module{NUMBERS[int(layer[6:])]}.0"
  if layer.startswith("predict"):
    return f"module{NUMBERS[level - 1]}.moduleSix.0"
  what = "Upflow" if layer.startswith("deconv") else "Upfeat"
  return f"module{NUMBERS[level - 2]}.module{what}"


@functools.cache
def made_up() -> dict[str, np.ndarray]:
  """Made-up weights in the authors' layout, whose flows leave the image here and there."""
  shapes = {}
  for key, shape in names().items():
    outputs = shape[1] if key.startswith(("deconv", "upfeat")) else shape[0]
    shapes |= {f"{key}.weight": shape, f"{key}.bias": [outputs]}
  return weights.state_dict(shapes, 1234, 1.3)


def convolve(state, key, x, stride=1, dilation=1):
  """A 3x3 convolution of [h w c] in float64."""
  padded = np.pad(x, ((dilation, dilation), (dilation, dilation), (0, 0)))
  side = 2 * dilation + 1
  windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (0, 1))
  windows = windows[::stride, ::stride, :, ::dilation, ::dilation]
  kernel = state[f"{key}.weight"].astype(np.float64)
  return np.tensordot(windows, kernel, ([2, 3, 4], [1, 2, 3])) + state[f"{key}.bias"]


def enlarge(state, key, x):
  """A transposed convolution with kernels of 4x4: each number lays its kernel into the output."""
  h, w, _ = x.shape
  out = np.zeros((2 * h + 2, 2 * w + 2, 2))
  for i, j in np.ndindex(h, w):
    laid = np.tensordot(x[i, j], state[f"{key}.weight"].astype(np.float64), 1)
    out[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += laid.transpose(1, 2, 0)
  return out[1:-1, 1:-1] + state[f"{key}.bias"]


def warp(x, flow):
  """Bilinear samples of [h w c]; 0 where the flow leaves the image."""
  h, w, _ = x.shape
  rows, columns = np.mgrid[:h, :w]
  rows, columns = rows + flow[..., 1], columns + flow[..., 0]
  inside = (rows >= 0) & (rows <= h - 1) & (columns >= 0) & (columns <= w - 1)
  samples = [
    scipy.ndimage.map_coordinates(x[..., c], [rows, columns], order=1, mode="nearest")
    for c in range(x.shape[-1])
  ]
  return np.stack(samples, axis=-1) * inside[..., None], inside


def volume(first, second):
  h, w, c = first.shape
  padded = np.pad(second, ((4, 4), (4, 4), (0, 0)))
  found = [
    (first * padded[4 + dy : 4 + dy + h, 4 + dx : 4 + dx + w]).sum(-1) / c
    for dy in range(-4, 5)
    for dx in range(-4, 5)
  ]
  return np.stack(found, axis=-1)


def leaky(x):
  return np.where(x > 0, x, 0.1 * x)


def reference(state, image1, image2):
  """PWC-DC-Net by its definition, one pair [h w 3]: the flow [h/4 w/4 2], and who was inside."""
  pyramids = []
  for image in (image1, image2):
    x, pyramid = np.float64(image[..., ::-1]) / 255, {}
    for level in range(1, 7):
      for i, name in enumerate(("aa", "a", "b") if level == 6 else ("a", "aa", "b")):
        x = leaky(convolve(state, f"conv{level}{name}.0", x, stride=1 if i else 2))
      pyramid[level] = x
    pyramids.append(pyramid)
  first, second = pyramids
  flow = features = None
  all_inside = []
  for level in range(6, 1, -1):
    if level == 6:
      x = leaky(volume(first[level], second[level]))
    else:
      up, features = (
        enlarge(state, f"{name}{level + 1}", x)
        for name, x in (("deconv", flow), ("upfeat", features))
      )
      warped, inside = warp(second[level], 20 / 2**level * up)
      all_inside.append(inside.ravel())
      x = np.concatenate([leaky(volume(first[level], warped)), first[level], up, features], -1)
    for i in range(5):
      x = np.concatenate([leaky(convolve(state, f"conv{level}_{i}.0", x)), x], -1)
    flow, features = convolve(state, f"predict_flow{level}", x), x
  for i, dilation in enumerate(DILATIONS[:-1]):
    x = leaky(convolve(state, f"dc_conv{i + 1}.0", x, dilation=dilation))
  return 20 * (flow + convolve(state, "dc_conv7", x)), np.concatenate(all_inside)


def test_equals_its_definition():
  pair = images()
  want, inside = reference(made_up(), *(x[0] for x in pair))
  assert 0.05 < inside.mean() < 0.95  # both kinds of samples count
  # Enlarged by 4, pixel centres at half-integers, the edges continued.
  want = scipy.ndimage.zoom(want, (4, 4, 1), order=1, mode="nearest", grid_mode=True)
  flow = np.asarray(run(pwcnet_conversion.from_state_dict(made_up()), *pair)[0])
  # Rounding of float32, relative to the largest flow.
  np.testing.assert_allclose(flow, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_cost_volume_is_largest_where_the_image_went():
  features = jax.random.normal(jax.random.key(0), (1, 16, 16, 32))
  moved = jnp.roll(features, (-1, 3), (1, 2))
  best = np.asarray(pwcnet.cost_volume(features, moved)).argmax(-1)[0, 4:-4, 4:-4]
  np.testing.assert_array_equal(best, (4 - 1) * 9 + (4 + 3))


def test_parameter_count():
  shapes = jax.eval_shape(pwcnet.init, jax.random.key(0))
  # The authors' file has 66 more: an enlargement of the last level's flow that nothing uses.
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 9_374_274


def test_pairs_of_a_batch_are_independent():
  params = pwcnet_conversion.from_state_dict(made_up())
  a, b = (np.concatenate([x[:, :, :64], x[:, :, 64:]]) for x in images())
  flow = run(params, a, b)
  assert flow.shape == (2, 64, 64, 2)
  assert flow.dtype == jnp.float32
  scale = np.abs(flow).max()
  np.testing.assert_allclose(flow[::-1], run(params, a[::-1], b[::-1]), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("shape", [(1, 96, 64, 3), (1, 64, 32, 3), (1, 64, 64, 1), (64, 64, 3)])
def test_wrong_shapes_are_refused(shape):
  with pytest.raises(ValueError, match="multiples of 64"):
    pwcnet.pwcnet({}, jnp.zeros(shape), jnp.zeros(shape))
  with pytest.raises(ValueError, match="images of shapes"):
    pwcnet.pwcnet({}, jnp.zeros(shape), jnp.zeros((1, 128, 64, 3)))


@pytest.mark.parametrize("prefix", ["module", "net"])
def test_both_layouts_are_understood(prefix, tmp_path):
  want = pwcnet_conversion.from_state_dict(made_up())
  state = {}
  for key, value in made_up().items():
    layer, _, leaf = key.rpartition(".")
    if not layer.startswith("deconv2"):
      state[f"{other_name(layer)}.{leaf}".replace("module", prefix)] = value
  save_state_dict(tmp_path / "network-default.pytorch", state)
  got = pwcnet_conversion.load(tmp_path / "network-default.pytorch")
  jax.tree.map(np.testing.assert_array_equal, got, want)
  for path, layout in (("one.pth", state), ("two.pth", made_up())):
    save_state_dict(tmp_path / path, layout)
    name, params = released.load(tmp_path / path)
    assert name == "pwcnet"
    jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parametrize(
  ("fault", "message"),
  [
    ("missing", "missing estimator2/flow/kernel"),
    ("unexpected", r"unexpected conv7a\.0\.weight"),
    ("misshapen", r"conv1a\.0\.weight of shape"),
  ],
)
def test_what_does_not_fit_is_named(fault, message):
  state = dict(made_up())
  if fault == "missing":
    del state["predict_flow2.weight"]
  elif fault == "unexpected":
    state["conv7a.0.weight"] = np.zeros((196, 196, 3, 3), np.float32)
  else:
    state["conv1a.0.weight"] = np.zeros((16, 3, 5, 5), np.float32)
  with pytest.raises(UserError, match=message):
    pwcnet_conversion.from_state_dict(state)
