"""Identity networks against their own runtimes and definitions, and the files they come from.

parity/face_networks.npz: in/faces_112, uint8 pictures of two faces that do not exist (CC0), and
mobileface_v2, what MXNet computes from them with the released weights.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import hostile_weights
from tests.support.torch_writer import save_state_dict
from tests.vsr_jax.ops import numeric
from vsr_jax import mxnet_files
from vsr_jax.conversion import to_state_dict
from vsr_jax.errors import UserError
from vsr_jax.faces import identity

PARITY = Path(__file__).parents[2] / "parity" / "face_networks.npz"


@functools.cache
def params():
  return identity.load()


def test_equals_mxnet():
  with np.load(PARITY) as golden:
    faces, want = golden["in/faces_112"], golden["mobileface_v2"]
  got = np.asarray(jax.jit(identity.embed)(params(), faces))
  assert got.dtype == np.float32
  # Required: 1e-4; rounding of float32 is all that differs, measured 4e-7.
  np.testing.assert_allclose(got, want / np.linalg.norm(want, axis=1, keepdims=True), atol=5e-6)
  assert got[0] @ got[1] < 0.2  # two people


@pytest.mark.parametrize("shape", [(1, 112, 96, 3), (112, 112, 3), (1, 112, 112, 1)])
def test_wrong_shapes_are_refused(shape):
  with pytest.raises(ValueError, match="faces of shape"):
    identity.embed({"mobileface": {}}, jnp.zeros(shape))


def mobileface_shapes() -> dict[str, tuple[int, ...]]:
  """Names and shapes of the released file."""
  shapes = {"conv1_weight": (32, 3, 3, 3), "conv1_bias": (32,), "fc5_weight": (256, 2048)}
  norms = {"bn1": 32, "fc5_bn": 256}
  width, number = 32, 0
  for first, hidden, features in [(96, 96, 32), (96, 96, 32), (96, 192, 64), (192, 384, 128)]:
    for wide in (first, hidden, hidden):
      for shape in [(wide, width, 1, 1), (wide, 1, 3, 3), (features, wide, 1, 1)]:
        shapes[f"convolution{number}_weight"] = shape
        norms[f"batchnorm{number}"] = shape[0]
        number += 1
      width = features
  for name, size in norms.items():
    shapes |= {f"{name}_{s}": (size,) for s in ("gamma", "beta", "moving_mean", "moving_var")}
  return shapes


def mxnet_bytes(state: dict[str, np.ndarray]) -> bytes:
  """What MXNet 1.2 writes for a model."""
  out = struct.pack("<QQQ", 0x112, 0, len(state))
  for x in state.values():
    out += struct.pack(f"<IiI{x.ndim}Qiii", 0xF993FAC9, 0, x.ndim, *x.shape, 1, 0, 0) + x.tobytes()
  out += struct.pack("<Q", len(state))
  for key in state:
    name = f"{'aux' if 'moving' in key else 'arg'}:{key}".encode()
    out += struct.pack("<Q", len(name)) + name
  return out


def released_mobileface() -> dict[str, np.ndarray]:
  return to_state_dict(params(), identity.mobileface_rules(), mobileface_shapes())


def test_mxnets_file_becomes_what_ships(tmp_path):
  (tmp_path / "x.params").write_bytes(mxnet_bytes(released_mobileface()))
  loaded = identity.load(tmp_path / "x.params")
  jax.tree.map(np.testing.assert_array_equal, loaded, params())
  assert sum(x.size for x in jax.tree.leaves(loaded)) == 892_384


def test_the_released_file_becomes_what_ships(shared):
  path = shared / "weights" / "MobileFace_Identification_V2-0000.params"
  jax.tree.map(np.testing.assert_array_equal, identity.load(path), params())
  assert {k: x.shape for k, x in mxnet_files.load(path).items()} == mobileface_shapes()


SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b_moving_var": np.float32([4])}


def test_mxnets_arrays_are_read(tmp_path):
  path = tmp_path / "x.params"
  path.write_bytes(mxnet_bytes(SMALL))
  jax.tree.map(np.testing.assert_array_equal, mxnet_files.load(path), SMALL)


def test_damaged_files_of_mxnets_are_refused_or_harmless(tmp_path):
  path = tmp_path / "x.params"
  good = mxnet_bytes(SMALL)
  texts = []
  huge = good.replace(struct.pack("<Q", 3), struct.pack("<Q", 2**40))
  for data in (b"", good[:30], good + b"x", huge, *hostile_weights.mutants(good, 0, 100)):
    path.write_bytes(data)
    try:
      assert sum(x.nbytes for x in mxnet_files.load(path).values()) < 1000
    except UserError as e:
      texts.append(str(e))
  assert len(texts) > 50
  assert all("x.params is damaged" in text and text.isprintable() for text in texts)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_what_does_not_fit_is_named(fault):
  state = released_mobileface()
  if fault == "missing":
    del state["batchnorm7_gamma"]
    message = "missing mobileface/block0_2/depthwise/norm/scale"
  elif fault == "unexpected":
    state["convolution36_weight"] = np.zeros((1, 1, 1, 1), np.float32)
    message = "unexpected convolution36_weight"
  else:
    state["fc5_weight"] = np.zeros((256, 2047), np.float32)
    message = "fc5_weight of shape"
  with pytest.raises(UserError, match=message):
    identity.from_mxnet(state)


TINY = identity.IRSE50((16, 16, 32, 32), (2, 1, 1, 1), 8)


def ir_se50_state(net: identity.IRSE50) -> dict[str, np.ndarray]:
  """Random weights with the names of model_ir_se50.pth."""
  rng = np.random.default_rng(0)
  state: dict[str, np.ndarray] = {}

  def kernel(key, *shape):
    scale = np.sqrt(2 / np.prod(shape[1:]))
    state[f"{key}.weight"] = (scale * rng.standard_normal(shape)).astype(np.float32)

  def norm(key, width):
    for name in ("weight", "bias", "running_mean"):
      value = (name == "weight") + 0.2 * rng.standard_normal(width)
      state[f"{key}.{name}"] = value.astype(np.float32)
    state[f"{key}.running_var"] = rng.uniform(0.5, 2, width).astype(np.float32)
    state[f"{key}.num_batches_tracked"] = np.array(7)

  def prelu(key, width):
    state[f"{key}.weight"] = rng.uniform(-0.5, 0.5, width).astype(np.float32)

  c = net.widths[0]
  kernel("input_layer.0", c, 3, 3, 3)
  norm("input_layer.1", c)
  prelu("input_layer.2", c)
  widths = [w for w, depth in zip(net.widths, net.depths, strict=True) for _ in range(depth)]
  for i, width in enumerate(widths):
    key = f"body.{i}.res_layer"
    norm(f"{key}.0", c)
    kernel(f"{key}.1", width, c, 3, 3)
    prelu(f"{key}.2", width)
    kernel(f"{key}.3", width, width, 3, 3)
    norm(f"{key}.4", width)
    kernel(f"{key}.5.fc1", width // 16, width, 1, 1)
    kernel(f"{key}.5.fc2", width, width // 16, 1, 1)
    if width != c:
      kernel(f"body.{i}.shortcut_layer.0", width, c, 1, 1)
      norm(f"body.{i}.shortcut_layer.1", width)
    c = width
  norm("output_layer.0", c)
  kernel("output_layer.3", net.features, 49 * c)
  state["output_layer.3.bias"] = rng.standard_normal(net.features).astype(np.float32)
  norm("output_layer.4", net.features)
  return state


def ir_se50_by_definition(state, x):
  """ArcFace's network from its state dict, in float64: [n 112 112 3] -> [n features]."""

  def norm(key, x):
    scale = state[f"{key}.weight"] / np.sqrt(np.float64(state[f"{key}.running_var"]) + 1e-5)
    return (x - state[f"{key}.running_mean"]) * scale + state[f"{key}.bias"]

  def conv(key, x):
    return numeric.conv(x, np.float64(state[f"{key}.weight"]).transpose(2, 3, 1, 0))

  def prelu(key, x):
    return np.where(x >= 0, x, state[f"{key}.weight"] * x)

  x = prelu("input_layer.2", norm("input_layer.1", conv("input_layer.0", np.float64(x))))
  for i in range(5):
    key = f"body.{i}.res_layer"
    stride = 1 if i == 1 else 2  # TINY's stages begin at units 0, 2, 3 and 4
    y = prelu(f"{key}.2", conv(f"{key}.1", norm(f"{key}.0", x)))
    y = norm(f"{key}.4", conv(f"{key}.3", y)[:, ::stride, ::stride])
    weight = conv(f"{key}.5.fc1", y.mean((1, 2), keepdims=True))
    weight = 1 / (1 + np.exp(-conv(f"{key}.5.fc2", np.maximum(weight, 0))))
    x = x[:, ::stride, ::stride]
    if f"body.{i}.shortcut_layer.0.weight" in state:
      x = norm(f"body.{i}.shortcut_layer.1", conv(f"body.{i}.shortcut_layer.0", x))
    x = x + y * weight
  flat = norm("output_layer.0", x).transpose(0, 3, 1, 2).reshape(len(x), -1)
  y = flat @ np.float64(state["output_layer.3.weight"]).T + state["output_layer.3.bias"]
  return norm("output_layer.4", y)


def test_ir_se50_equals_its_definition(monkeypatch):
  state = ir_se50_state(TINY)
  with np.load(PARITY) as golden:
    faces = golden["in/faces_112"][:1]
  want = ir_se50_by_definition(state, faces / np.float32(127.5) - 1)
  monkeypatch.setattr(identity, "IRSE50", lambda: TINY)
  got = jax.jit(identity.embed)(identity.from_state_dict(state), faces)
  np.testing.assert_allclose(got, want / np.linalg.norm(want), atol=1e-5)


def test_ir_se50_has_the_released_layers(tmp_path):
  shapes = identity._template("ir_se50", identity.IRSE50())["ir_se50"]
  skips = {name for name, unit in shapes.items() if "skip" in unit}
  assert skips == {"unit3", "unit7", "unit21"}
  assert shapes["dense"]["kernel"].shape == (7, 7, 512, 512)
  assert len([name for name in shapes if name.startswith("unit")]) == 24
  state = ir_se50_state(TINY)
  save_state_dict(tmp_path / "small.pth", state)
  with pytest.raises(UserError, match=r"small.pth does not hold .*input_layer.0.weight of shape"):
    identity.load(tmp_path / "small.pth")


def test_faces_are_cut_out_by_the_template():
  rng = np.random.default_rng(0)
  frame = rng.integers(0, 256, (120, 140, 3), np.uint8)
  offset = np.array([20, -30])  # the face's top lies outside of the frame
  face = identity.align(frame, identity.TEMPLATE + offset)
  assert face.shape == (112, 112, 3)
  np.testing.assert_array_equal(face[31:], frame[1:82, 20:132])
  assert not face[:29].any()
  small = identity.align(frame, 0.5 * identity.TEMPLATE)
  np.testing.assert_array_equal(small[::2, ::2], frame[:56, :56])
