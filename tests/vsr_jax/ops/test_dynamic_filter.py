"""FGDF: the definition against loops, the fast forms against the definition.

All numbers are of order 1 and sums have up to 5 x 400 terms with weights that add up to about 1:
float32 rounding stays below 1e-5.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fmanet_jax import golden
from vsr_jax.ops import dynamic_filter as filtering

CLOSE = {"rtol": 0, "atol": 1e-5}
# Kernel and scale: each of both at least once, the released ones, the smallest and the largest.
SIZES_DOWN = [(4, 4), (5, 1), (5, 3), (6, 2), (8, 4), (10, 2), (20, 4)]
SIZES_UP = [(1, 1), (1, 4), (3, 2), (3, 3), (5, 1), (5, 4), (7, 2), (7, 3)]


def with_frames(sizes):
  """Each (k, s) with one of T = 1, 3, 5 in turn."""
  cases = [(*size, (1, 3, 5)[i % 3]) for i, size in enumerate(sizes)]
  return pytest.mark.parametrize(("k", "scale", "t"), cases)


def normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def case_down(k: int, scale: int, t: int, b=1, h=2, w=3, c=2) -> tuple[jax.Array, jax.Array]:
  """Frames to be made smaller and logits of K^D."""
  return normal(1, b, t, h * scale, w * scale, c), normal(2, b, t, h, w, k * k)


def case_up(k: int, scale: int, t: int, b=1, h=4, w=3, c=2) -> tuple[jax.Array, jax.Array]:
  """Frames to be made larger and kernels before normalisation."""
  return normal(1, b, t, h, w, c), normal(2, b, t, h, w, k * k, scale * scale) / (k * k * t)


def clamped(frame: np.ndarray, y: int, x: int) -> np.ndarray:
  """A pixel of [h w c], of the border for positions beyond it."""
  h, w, _ = frame.shape
  return frame[min(max(y, 0), h - 1), min(max(x, 0), w - 1)]


def loop_down(frames: np.ndarray, weights: np.ndarray, scale: int) -> np.ndarray:
  """One window [t sh sw c], weights [t h w k*k]."""
  t, h, w, taps = weights.shape
  k = round(taps**0.5)
  out = np.zeros((h, w, frames.shape[-1]))
  for f, y, x, i, j in np.ndindex(t, h, w, k, k):
    at = (y * scale + i - (k - scale) // 2, x * scale + j - (k - scale) // 2)
    out[y, x] += weights[f, y, x, i * k + j] * clamped(frames[f], *at)
  return out


def loop_up(frames: np.ndarray, weights: np.ndarray, scale: int) -> np.ndarray:
  """One window [t h w c], weights [t h w k*k s*s]."""
  t, h, w, taps, _ = weights.shape
  k = round(taps**0.5)
  out = np.zeros((h * scale, w * scale, frames.shape[-1]))
  for f, y, x, i, j, p, q in np.ndindex(t, h, w, k, k, scale, scale):
    weight = weights[f, y, x, i * k + j, p * scale + q]
    out[y * scale + p, x * scale + q] += weight * clamped(frames[f], y + i - k // 2, x + j - k // 2)
  return out


def both_down(scale: int):
  """`frames, logits -> [the fast form's result, the definition's]`."""

  def compute(frames, logits):
    weights = filtering.normalise_down(logits)
    forms = filtering.dynamic_downsample, filtering.dynamic_downsample_definition
    return [form(frames, weights, scale) for form in forms]

  return compute


def both_up(scale: int):
  """`frames, kernels -> [the fast form's result, the definition's]`."""

  def compute(frames, kernels):
    weights = filtering.normalise_up(kernels)
    definition = filtering.dynamic_upsample_definition(frames, weights, scale)
    return [filtering.normalise_and_upsample(frames, kernels, scale), definition]

  return compute


@pytest.mark.parametrize(("k", "scale"), [(5, 1), (4, 2), (5, 3), (8, 4)])
def test_definition_of_downsampling(k, scale):
  frames, logits = case_down(k, scale, 3, b=2)

  @golden.jit
  def compute(frames, logits):
    weights = filtering.normalise_down(logits)
    return weights, filtering.dynamic_downsample_definition(frames, weights, scale)

  weights, got = compute(frames, logits)
  for b in range(2):
    want = loop_down(np.asarray(frames[b]), np.asarray(weights[b]), scale)
    np.testing.assert_allclose(got[b], want, **CLOSE)


@pytest.mark.parametrize(("k", "scale"), [(3, 1), (1, 2), (5, 3), (3, 4)])
def test_definition_of_upsampling(k, scale):
  frames, kernels = case_up(k, scale, 3, b=2)

  @golden.jit
  def compute(frames, kernels):
    weights = filtering.normalise_up(kernels)
    return weights, filtering.dynamic_upsample_definition(frames, weights, scale)

  weights, got = compute(frames, kernels)
  for b in range(2):
    want = loop_up(np.asarray(frames[b]), np.asarray(weights[b]), scale)
    np.testing.assert_allclose(got[b], want, **CLOSE)


@with_frames(SIZES_DOWN)
def test_fast_downsampling_equals_the_definition(k, scale, t):
  np.testing.assert_allclose(*golden.jit(both_down(scale))(*case_down(k, scale, t)), **CLOSE)


@with_frames(SIZES_UP)
def test_fast_upsampling_equals_the_definition(k, scale, t):
  case = case_up(k, scale, t, c=1)  # the unrolled form compiles in proportion to t k^2 c
  np.testing.assert_allclose(*golden.jit(both_up(scale))(*case), **CLOSE)


@settings(max_examples=3, deadline=None)
@given(
  b=st.integers(1, 2),
  size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
  t=st.sampled_from([1, 3]),
  c=st.integers(1, 4),
  scale=st.integers(1, 4),
  more=st.integers(0, 3),
)
def test_any_shape(b, size, t, c, scale, more):
  case = case_down(scale + 2 * more, scale, t, b, *size, c)
  got, want = golden.jit(both_down(scale))(*case)
  assert got.shape == (b, *size, c)
  np.testing.assert_allclose(got, want, **CLOSE)
  case = case_up(1 + 2 * more, scale, t, b, *size, c)
  got, want = golden.jit(both_up(scale))(*case)
  assert got.shape == (b, size[0] * scale, size[1] * scale, c)
  np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize(("k", "scale"), [(5, 3), (6, 4)])
def test_gradient_of_fast_downsampling(k, scale):
  assert_same_gradients(both_down(scale), *case_down(k, scale, 3))


@pytest.mark.parametrize(("k", "scale"), [(3, 4), (5, 1)])
def test_gradient_of_fast_upsampling(k, scale):
  """It is written by hand."""
  assert_same_gradients(both_up(scale), *case_up(k, scale, 3))


def assert_same_gradients(both, frames, kernels):
  def energy(form, *args):
    return jnp.square(both(*args)[form]).sum()

  def gradients(*args):
    return [jax.grad(functools.partial(energy, form), (0, 1))(*args) for form in (0, 1)]

  for got, want in zip(*golden.jit(gradients)(frames, kernels), strict=True):
    assert np.abs(want).max() > 0.01
    # Sums of products over all pixels and sub-pixels.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_normalised_kernels_sum_to_one():
  down = filtering.normalise_down(100 * normal(0, 2, 3, 4, 5, 36))
  assert (down >= 0).all()
  np.testing.assert_allclose(down.sum((1, 4)), 1, rtol=1e-5)
  up = filtering.normalise_up(100 * normal(0, 2, 3, 4, 5, 25, 16))
  # The values that cancel are of order 100, and 75 of them.
  np.testing.assert_allclose(up.sum((1, 4)), 1, rtol=1e-3)
  assert (up < 0).any()


def test_low_precision_in_float32_out():
  for both, case in ((both_down(4), case_down(8, 4, 3)), (both_up(4), case_up(1, 4, 3))):
    low = [x.astype(jnp.bfloat16) for x in case]
    got, want = golden.jit(both)(*low), golden.jit(both)(*(x.astype(jnp.float32) for x in low))
    for a, b in zip(got, want, strict=True):
      assert a.dtype == jnp.float32
      np.testing.assert_allclose(a, b, **CLOSE)
