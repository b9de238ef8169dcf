"""Resizing against its definitions and against numbers of PyTorch and MATLAB."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_jax.ops.resize import bicubic_matrix, pixel_shuffle, resize_bicubic, resize_bilinear

sizes = st.integers(1, 9)
jitted_bilinear = jax.jit(resize_bilinear, static_argnums=1)
jitted_shuffle = jax.jit(pixel_shuffle, static_argnums=1)


def bilinear_by_interp(x: np.ndarray, scale: int) -> np.ndarray:
  """Half-pixel centres, coordinates clamped to the outermost centres: np.interp's rule."""
  for axis in (-3, -2):
    n = x.shape[axis]
    points = (np.arange(scale * n) + 0.5) / scale - 0.5
    x = np.apply_along_axis(lambda line, p=points, n=n: np.interp(p, np.arange(n), line), axis, x)
  return x


@settings(max_examples=15, deadline=None)
@given(b=st.integers(1, 2), h=sizes, w=sizes, c=st.integers(1, 3), scale=st.integers(1, 5))
def test_bilinear_interpolates_between_pixel_centres(b, h, w, c, scale):
  x = np.random.default_rng(h * w).uniform(-1, 1, (b, h, w, c)).astype(np.float32)
  out = jitted_bilinear(x, scale)
  assert out.shape == (b, scale * h, scale * w, c)
  np.testing.assert_allclose(out, bilinear_by_interp(x, scale), atol=1e-6)  # float32 rounding


def test_bilinear_equals_pytorch():
  # torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
  out = resize_bilinear(jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, ..., None], 2)
  expected = [
    [1.0, 1.25, 1.75, 2.0],
    [1.5, 1.75, 2.25, 2.5],
    [2.5, 2.75, 3.25, 3.5],
    [3.0, 3.25, 3.75, 4.0],
  ]
  np.testing.assert_array_equal(out[0, ..., 0], expected)  # exact: dyadic weights


def test_bilinear_gradient_is_its_transpose():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((1, 3, 4, 1)).astype(np.float32)
  cotangent = rng.standard_normal((1, 9, 12, 1)).astype(np.float32)
  gradient = jax.jit(jax.grad(lambda x: jnp.vdot(resize_bilinear(x, 3), cotangent)))(x)
  units = np.eye(12).reshape(12, 3, 4, 1)
  expected = [np.vdot(bilinear_by_interp(unit, 3), cotangent[0]) for unit in units]
  np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_bilinear_keeps_the_dtype(scale):
  x = jnp.linspace(0, 1, 24, dtype=jnp.bfloat16).reshape(1, 3, 4, 2)
  assert resize_bilinear(x, scale).dtype == jnp.bfloat16


@settings(max_examples=15, deadline=None)
@given(
  lead=st.lists(st.integers(1, 2), max_size=2),
  h=st.integers(1, 4),
  w=st.integers(1, 4),
  c=st.integers(1, 3),
  scale=st.integers(1, 4),
)
def test_pixel_shuffle_places_each_channel(lead, h, w, c, scale):
  shape = (*lead, h, w, c * scale**2)
  x = np.arange(math.prod(shape)).reshape(shape)
  out = np.asarray(jitted_shuffle(x, scale))
  assert out.shape == (*lead, scale * h, scale * w, c)
  for i in range(scale):
    for j in range(scale):
      for k in range(c):
        expected = x[..., (k * scale + i) * scale + j]
        np.testing.assert_array_equal(out[..., i::scale, j::scale, k], expected)


@pytest.mark.parametrize("scale", [0, -2, 1.5, Fraction(2)])
def test_layers_refuse_other_than_positive_integer_scales(scale):
  x = jnp.zeros((1, 2, 2, 4))
  with pytest.raises(ValueError, match="positive integer"):
    resize_bilinear(x, scale)
  with pytest.raises(ValueError, match="positive integer"):
    pixel_shuffle(x, scale)


def test_pixel_shuffle_refuses_indivisible_channels():
  with pytest.raises(ValueError, match="6 channels"):
    pixel_shuffle(jnp.zeros((1, 2, 2, 6)), 2)


def keys_cubic(x: float) -> float:
  x = abs(x)
  if x <= 1:
    return 1.5 * x**3 - 2.5 * x**2 + 1
  return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def bicubic_by_loop(line: np.ndarray, out_size: int, scale: float) -> np.ndarray:
  """One axis of the definition, output by output, mirroring one step at a time."""
  n = len(line)
  shrink = min(scale, 1.0)
  out = np.zeros(out_size)
  for o in range(out_size):
    centre = (o + 0.5) / scale - 0.5
    total = 0.0
    for i in range(math.floor(centre - 2 / shrink) - 2, math.ceil(centre + 2 / shrink) + 3):
      weight = keys_cubic((centre - i) * shrink)
      while not 0 <= i < n:
        i = -1 - i if i < 0 else 2 * n - 1 - i
      out[o] += weight * line[i]
      total += weight
    out[o] /= total
  return out


@given(n=st.integers(1, 24), out_size=st.integers(1, 40))
def test_bicubic_matrix_is_the_definition(n, out_size):
  scale = Fraction(out_size, n)
  line = np.random.default_rng(n).uniform(0, 255, n)
  out = bicubic_matrix(n, out_size, scale) @ line
  np.testing.assert_allclose(out, bicubic_by_loop(line, out_size, float(scale)), atol=1e-10)


@given(n=st.integers(1, 30), scale=st.sampled_from([0.25, 1 / 3, 0.4, 0.5, 1.0, 1.7, 2.0, 3.0]))
def test_bicubic_keeps_constants_and_mirrors(n, scale):
  matrix = bicubic_matrix(n, math.ceil(scale * n), scale)
  np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
  by_size = bicubic_matrix(n, 5, Fraction(5, n))
  np.testing.assert_allclose(by_size[::-1, ::-1], by_size, atol=1e-12)


@pytest.mark.parametrize("scale", [Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), 1, 2, 3, 4])
def test_bicubic_keeps_ramps_inside(scale):
  ramp = np.arange(48.0)
  out = bicubic_matrix(48, int(48 * scale), scale) @ ramp
  centres = (np.arange(len(out)) + 0.5) / float(scale) - 0.5
  inside = slice(math.ceil(2 * max(scale, 1)), -math.ceil(2 * max(scale, 1)))
  np.testing.assert_allclose(out[inside], centres[inside], atol=1e-12)


# Computed by MATLAB R2019b: imresize(x, scale or size).
SQUARE = np.arange(64.0).reshape(8, 8, 1)
CORNER = np.zeros((4, 4, 1))
CORNER[0, :, 0] = [100, 1, 0, 100]
CORNER[1, 0, 0] = 10


def test_bicubic_equals_matlab_shrinking_by_four():
  expected = [[12.3837890625, 16.6318359375], [46.3681640625, 50.6162109375]]
  np.testing.assert_allclose(resize_bicubic(SQUARE, 0.25)[..., 0], expected, atol=1e-12)


def test_bicubic_equals_matlab_shrinking_each_axis_differently():
  expected = [
    [6.472528773310022, 8.511591273310021, 10.535028773310023, 12.57409127331002],
    [28.44921875, 30.48828125, 32.51171875, 34.55078125],
    [50.42590872668998, 52.46497122668998, 54.48840872668998, 56.52747122668998],
  ]
  out = resize_bicubic(SQUARE, size=(3, 4))
  np.testing.assert_allclose(out[..., 0], expected, atol=1e-12)


def test_bicubic_equals_matlab_enlarging():
  expected = [
    [108.685225, 27.6970975, -12.4465625, 26.8841925, 109.2025],
    [35.471365, 8.970789, -3.5895625, 6.637437, 26.961],
    [-0.6503125, -0.21221875, 0.39453125, -1.60790625, -6.53125],
    [-0.768075, -0.18963, 0.0459375, 0, 0],
    [0, 0, 0, 0, 0],
  ]
  out = resize_bicubic(CORNER, size=(5, 5))
  np.testing.assert_allclose(out[..., 0], expected, atol=1e-11)


def test_bicubic_output_size_is_rounded_up():
  assert resize_bicubic(np.zeros((2, 9, 6, 3)), 0.25).shape == (2, 3, 2, 3)
  assert resize_bicubic(np.zeros((9, 6, 3)), Fraction(1, 3)).shape == (3, 2, 3)


def rounded(x: np.ndarray) -> np.ndarray:
  return np.clip(np.floor(x + 0.5), 0, 255)


@pytest.mark.parametrize(("size", "rows_first"), [((4, 6), True), ((4, 8), True), ((8, 4), False)])
def test_bicubic_of_uint8_rounds_after_each_axis_smaller_scale_first(size, rows_first):
  x = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
  steps = [(size[0], 24), size] if rows_first else [(16, size[1]), size]
  expected = x.astype(np.float64)
  for step in steps:
    expected = rounded(resize_bicubic(expected, size=step))
  out = resize_bicubic(x, size=size)
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, expected)


def test_bicubic_of_uint8_rounds_halves_up_and_clips():
  column = np.array([0, 1], np.uint8).reshape(2, 1, 1)
  assert resize_bicubic(column, 0.5).item() == 1  # exactly 0.5; half to even would give 0
  step = np.repeat(np.array([0, 255], np.uint8), 8).reshape(1, 16, 1)
  out = resize_bicubic(step.astype(np.float64), size=(1, 32))
  assert out.min() < -1  # the cubic overshoots ...
  assert out.max() > 256
  clipped = resize_bicubic(step, size=(1, 32))
  np.testing.assert_array_equal(clipped, rounded(out))  # ... and must not wrap around


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_bicubic_keeps_numpy_and_dtype(dtype):
  out = resize_bicubic(np.ones((4, 4, 3), dtype), 0.5)
  assert isinstance(out, np.ndarray)
  assert out.dtype == dtype


def test_bicubic_on_jax_equals_numpy():
  x = np.random.default_rng(2).uniform(size=(2, 12, 16, 3)).astype(np.float32)
  shrink = jax.jit(lambda x: resize_bicubic(x, 0.25))
  np.testing.assert_allclose(shrink(x), resize_bicubic(x, 0.25), atol=1e-6)  # float32 rounding
  levels = (255 * x).astype(np.uint8)
  out = shrink(levels)
  assert out.dtype == jnp.uint8
  # Exact: at scale 1/4 the weights are dyadic, so float32 makes no error.
  np.testing.assert_array_equal(out, resize_bicubic(levels, 0.25))


def test_bicubic_refuses_bad_requests():
  x = np.zeros((4, 4, 3))
  with pytest.raises(ValueError, match="either"):
    resize_bicubic(x)
  with pytest.raises(ValueError, match="either"):
    resize_bicubic(x, 0.5, size=(2, 2))
  with pytest.raises(ValueError, match="cannot resize 4 pixels to 0"):
    resize_bicubic(x, size=(2, 0))
  with pytest.raises(ValueError, match="cannot resize"):
    resize_bicubic(x, -0.5)
  with pytest.raises(TypeError, match="int64"):
    resize_bicubic(np.zeros((4, 4, 3), np.int64), 0.5)
