"""ncnn's files: what they hold is read, and damaged ones end in one line."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import hostile_weights
from tests.support.ncnn_writer import save_network
from tests.vsr_jax.enlarge import small
from vsr_jax import ncnn_files
from vsr_jax.errors import UserError


@pytest.fixture
def path(tmp_path):
  save_network(tmp_path / "small", small.state_dict(), 2)
  return tmp_path / "small.param"


def test_layers_come_with_their_options_and_weights(path):
  layers = ncnn_files.load(path)
  assert [layer.kind for layer in layers[:4]] == ["Input", "Split", "Convolution", "PReLU"]
  assert layers[2].inputs == ("left",)
  assert layers[1].outputs == ("left", "right")
  assert layers[2].options == {0: 4, 1: 3, 4: 1, 5: 1, 6: 108}
  assert layers[2].weights["weight"].shape == (4, 3, 3, 3)
  assert layers[2].weights["weight"].dtype == np.float16
  np.testing.assert_array_equal(layers[2].weights["bias"], small.state_dict()["body.0.bias"])


@pytest.mark.parametrize("suffix", [".param", ".bin"])
def test_a_missing_half_is_named(path, suffix):
  path.with_suffix(suffix).unlink()
  with pytest.raises(UserError, match=rf"small{suffix} cannot be read: No such file.*beside"):
    ncnn_files.load(path)


def change(old, new):
  return lambda param, weights: (param.replace(old, new, 1), weights)


@pytest.mark.parametrize(
  ("damage", "told"),
  [
    (lambda param, weights: (param, weights[:-4]), "small.bin is damaged or no .bin file.*short"),
    (lambda param, weights: (param, weights + bytes(8)), "8 bytes too many"),
    (lambda param, weights: (param, b""), "too short"),
    (lambda param, weights: (param, b"\x38\x4b\x0d\x00" + weights[4:]), "neither float16 nor"),
    (lambda param, weights: (b"", weights), "small.param is damaged"),
    (lambda param, weights: (b"\xff" + param, weights), "small.param is damaged"),
    (lambda param, weights: (param + bytes(2**20), weights), "has more than 1048576 bytes"),
    (change(b"7767517", b"7767518"), "its first line is 7767518"),
    (change(b"10 11", b"12 11"), "10 layers of 12"),
    (change(b"6=108", b"6=109"), "cannot reshape"),
    (change(b"6=108", b"6=999999999999"), "too short|no option"),
    (change(b"6=108", b"6=1e300"), "too short|too large|cannot"),
    (change(b"6=108", b"6=-108"), "option 6 is -108"),
    (change(b"0=4 ", b"0=0 "), "cannot reshape|division"),
    (change(b"0=4 ", b"0=0.5 "), "option 0 is 0.5"),
    (change(b"0=4 ", b"0=nan "), "0=nan is no option"),
    (change(b"0=4 ", b""), "option 0 is None"),
    (change(b"1=3 ", b"1=3 11=1 "), "not square"),
    (change(b" 1 1 left 0 ", b" 9 9 left 0 "), "names fewer arrays"),
    (change(b" 1 1 left 0 ", b" -1 1 left 0 "), "names fewer arrays"),
  ],
)
def test_what_does_not_fit_is_refused(path, damage, told):
  weights = path.with_suffix(".bin")
  param, data = damage(path.read_bytes(), weights.read_bytes())
  path.write_bytes(param)
  weights.write_bytes(data)
  with pytest.raises(UserError, match=told) as e:
    ncnn_files.load(path)
  assert len(str(e.value)) < 600
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("suffix", [".param", ".bin"])
def test_damaged_files_are_refused_or_read(path, suffix):
  random = np.random.default_rng(0)
  target = path.with_suffix(suffix)
  good = target.read_bytes()
  told = []
  for _ in range(200):
    target.write_bytes(hostile_weights.damaged(good, random))
    try:
      ncnn_files.load(path)
    except UserError as e:
      told.append(str(e))
  assert len(told) > 50
  assert all(line.isprintable() for line in told)
