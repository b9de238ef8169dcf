"""Real-ESRGAN's network against the released weights' values, and the layouts of its weights.

parity/realesrgan.npz: what ncnn computes from `frame`, uint8 RGB of a face (CC0), with both general
models, in float32; every third pixel, not clipped.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import programs
from tests.support.ncnn_writer import save_network
from tests.support.torch_writer import save_state_dict
from tests.vsr_jax.enlarge import small
from vsr_jax.enlarge import srvgg_conversion
from vsr_jax.errors import UserError

PARITY = Path(__file__).parents[2] / "parity" / "realesrgan.npz"


@pytest.fixture(scope="module")
def golden():
  with np.load(PARITY) as file:
    return dict(file)


@pytest.fixture(scope="module")
def general():
  """The network of the models that ship, as a function of its parameters and images in [0, 1]."""
  net, params = srvgg_conversion.load_general()
  assert (net.features, net.convs, net.scale) == (64, 32, 4)
  assert sum(x.size for x in jax.tree.leaves(params)) == 1_213_296
  return programs.jit(lambda params, x: net.apply({"params": params}, x))


@pytest.mark.parametrize("name", ["strong", "weak"])
def test_the_models_that_ship_compute_what_ncnn_computes(golden, general, name):
  path = {"strong": srvgg_conversion.STRONG, "weak": srvgg_conversion.WEAK}[name]
  _, params = srvgg_conversion.load(path)
  frame = jnp.asarray(golden["frame"][None], jnp.float32) / 255
  enlarged = np.asarray(general(params, frame))[0]
  assert enlarged.shape == (128, 192, 3)
  np.testing.assert_allclose(enlarged[::3, ::3], golden[name], atol=1e-4)


def test_all_the_pixels_of_the_fixtures(shared, general):
  with np.load(shared / "golden" / "face_networks.npz") as file:
    frames = jnp.asarray(file["in/small"], jnp.float32) / 255
    for path in (srvgg_conversion.STRONG, srvgg_conversion.WEAK):
      _, params = srvgg_conversion.load(path)
      for frame, expected in zip(frames, file[path.stem], strict=True):
        enlarged = np.asarray(general(params, frame[None]))[0]
        np.testing.assert_allclose(enlarged, expected, atol=1e-4)


def test_the_strength_leads_from_noise_to_none(general):
  """Noise about grey: each step removes more of it."""
  noise = jax.random.normal(jax.random.key(0), (1, 32, 48, 3)) * 10 / 255 + 0.5
  ends = [srvgg_conversion.load_general(part)[1] for part in (0, 1)]
  for params, path in zip(ends, (srvgg_conversion.WEAK, srvgg_conversion.STRONG), strict=True):
    jax.tree.map(np.testing.assert_array_equal, params, srvgg_conversion.load(path)[1])
  mixtures = [srvgg_conversion.mix(ends[1], ends[0], part) for part in (0, 0.5, 1)]
  left = [float(general(params, noise)[:, 16:-16, 16:-16].std()) * 255 for params in mixtures]
  assert left[0] > 8
  assert left[0] > left[1] + 2 > left[2] + 2
  assert left[2] < 2


def test_a_mixture_is_between_its_two_networks():
  first, second = ({"conv0": {"bias": np.float32(x)}} for x in ([1, 2], [5, 10]))
  mixed = srvgg_conversion.mix(first, second, 0.25)["conv0"]["bias"]
  np.testing.assert_array_equal(mixed, np.float32([4, 8]))
  assert mixed.dtype == np.float32


@pytest.mark.parametrize("wrapper", ["params", "params_ema", None])
def test_the_authors_files_are_read(tmp_path, wrapper):
  state = small.state_dict()
  contents = state if wrapper is None else {wrapper: state}
  save_state_dict(tmp_path / "small.pth", contents)
  net, params = srvgg_conversion.load(tmp_path / "small.pth")
  assert net == small.NET
  jax.tree.map(np.testing.assert_array_equal, params, small.params())


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
@pytest.mark.parametrize("suffix", [".param", ".bin"])
def test_the_files_of_ncnn_are_read(tmp_path, dtype, suffix):
  save_network(tmp_path / "small", small.state_dict(), 2, dtype)
  net, params = srvgg_conversion.load(tmp_path / f"small{suffix}")
  assert net == small.NET
  jax.tree.map(np.testing.assert_array_equal, params, small.params())


def without(key):
  return {k: v for k, v in small.state_dict().items() if k != key}


@pytest.mark.parametrize(
  ("state", "told"),
  [
    ({"conv.weight": np.zeros((3, 3), np.float32)}, "missing body.0.weight"),
    (without("body.4.weight"), "missing body.4.weight|unexpected body.4"),
    (without("body.3.weight"), "prelu3/slope"),
    (small.state_dict() | {"body.1.weight": np.zeros(1, np.float32)}, "body.1.weight of shape"),
    (small.state_dict() | {"body.5.weight": np.zeros(4, np.float32)}, "unexpected body.5.weight"),
    (small.state_dict() | {"body.0.bias": np.full(4, np.nan, np.float32)}, "NaN"),
    (small.state_dict() | {"body.4.weight": np.zeros((2, 4, 3, 3), np.float32)}, "misshapen"),
  ],
)
def test_a_state_dict_of_another_network_is_refused(state, told):
  with pytest.raises(UserError, match=told):
    srvgg_conversion.from_state_dict(state)


@pytest.mark.parametrize(
  ("old", "new", "told"),
  [
    ("Interp nearest 1 1 right repeated 0=1", "Interp nearest 1 1 right repeated 0=2", "layer 7"),
    ("1 1 right repeated", "1 1 4 repeated", "layer 7"),
    ("4=1 5=1 6=108", "4=1 5=1 6=108 9=2 -23310=1,2.000000e-01", "layer 1 "),
    ("4=1 5=1 6=108", "4=0 5=1 6=108", "layer 1 "),
    ("shuffled 0=2", "shuffled 0=4", "layer 6 "),
    ("BinaryOp sum", "Eltwise sum", "layers of the kinds Eltwise"),
    ("1 1 1 2 ", "1 1 nowhere 2 ", "missing nowhere"),
  ],
)
def test_ncnn_layers_that_compute_something_else_are_refused(tmp_path, old, new, told):
  save_network(tmp_path / "small", small.state_dict(), 2)
  path = tmp_path / "small.param"
  text = path.read_text()
  assert text.count(old) == 1
  path.write_text(text.replace(old, new))
  with pytest.raises(UserError, match=told) as e:
    srvgg_conversion.load(path)
  assert str(path) in str(e.value)
