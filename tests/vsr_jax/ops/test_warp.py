"""The backward warp against SciPy in float64, the references' output and plain shifts."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from vsr_jax.ops.warp import backward_warp, backward_warp_definition, resize_flow, sample_bilinear

PARITY = pathlib.Path(__file__).resolve().parents[2] / "parity"

jitted_warp = jax.jit(backward_warp)


def warp_by_scipy(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
  """The definition in float64: "grid-constant" blends with zeros beyond the border."""
  b, h, w, c = image.shape
  y, x = np.mgrid[:h, :w]
  out = np.empty(image.shape)
  for i in range(b):
    points = np.stack([y + flow[i, ..., 1], x + flow[i, ..., 0]])
    for k in range(c):
      plane = image[i, ..., k].astype(np.float64)
      out[i, ..., k] = map_coordinates(plane, points, order=1, mode="grid-constant", cval=0.0)
  return out


def random_case(seed: int, b: int = 2, h: int = 6, w: int = 9, c: int = 3, reach: float = 4.0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(-1, 1, (b, h, w, c)).astype(np.float32)
  return image, rng.uniform(-reach, reach, (b, h, w, 2)).astype(np.float32)


@settings(max_examples=8, deadline=None)
@given(
  b=st.integers(1, 2),
  h=st.integers(1, 8),
  w=st.integers(1, 8),
  c=st.integers(1, 4),
  reach=st.sampled_from([0.5, 3.0, 20.0]),
)
def test_warp_is_bilinear_with_zeros_outside(b, h, w, c, reach):
  image, flow = random_case(h + w, b, h, w, c, reach)
  # The coordinates are float32, off by up to 2e-6 pixels at 28.
  np.testing.assert_allclose(jitted_warp(image, flow), warp_by_scipy(image, flow), atol=1e-5)


def test_warp_equals_the_reference_model():
  with np.load(PARITY / "flow_warp.npz") as file:  # the released KEEP, channels first
    image, flow, expected = (np.moveaxis(file[name], 1, -1) for name in ("x", "flow", "out"))
  assert (expected == 0).any()  # the flow leaves the image
  np.testing.assert_allclose(jitted_warp(image, flow), expected, atol=1e-5)


@pytest.mark.parametrize(  # a single image is warped by a program of its own
  ("b", "n", "masked"), [(1, 1, False), (1, 3, True), (2, 1, True), (2, 3, False)]
)
def test_every_form_equals_the_definition(b, n, masked):
  image, _ = random_case(6, b=b)
  rng = np.random.default_rng(7)
  flow = rng.uniform(-4, 4, (*image.shape[:3], n, 2)).astype(np.float32)
  mask = rng.uniform(0, 1, (*image.shape[:3], n)).astype(np.float32)
  args = (image, flow, mask) if masked else (image, flow)

  def value_and_gradients(form):
    def loss(*args):
      y = form(*args)
      return jnp.square(y).sum(), y

    return jax.jit(lambda *a: (form(*a), jax.grad(loss, tuple(range(len(a))), has_aux=True)(*a)))

  forms = backward_warp, backward_warp_definition
  got, want = (jax.tree.leaves(value_and_gradients(form)(*args)) for form in forms)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_mask_multiplies_the_samples():
  image, flow = random_case(6)
  mask = np.random.default_rng(7).uniform(0, 1, image.shape[:3]).astype(np.float32)
  want = np.asarray(jitted_warp(image, flow)) * mask[..., None]
  np.testing.assert_allclose(jitted_warp(image, flow, mask), want, rtol=1e-6, atol=1e-7)


def test_zero_flow_is_the_identity():
  image, flow = random_case(0)
  np.testing.assert_array_equal(jitted_warp(image, np.zeros_like(flow)), image)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (-2, 3), (9, 0), (0, -6)])
def test_whole_pixel_flow_shifts_and_fills_with_zeros(dx, dy):
  image, flow = random_case(1)
  _, h, w, _ = image.shape
  padded = np.pad(image, ((0, 0), (10, 10), (10, 10), (0, 0)))
  expected = padded[:, 10 + dy : 10 + dy + h, 10 + dx : 10 + dx + w]
  flow = np.broadcast_to(np.float32([dx, dy]), flow.shape)
  np.testing.assert_array_equal(jitted_warp(image, flow), expected)


def test_half_a_pixel_outside_counts_half():
  image = np.ones((1, 3, 4, 1), np.float32)
  flow = np.broadcast_to(np.float32([-0.5, 0]), (1, 3, 4, 2))
  np.testing.assert_array_equal(jitted_warp(image, flow)[0, 1, :, 0], [0.5, 1, 1, 1])


@pytest.mark.parametrize("distance", [1e2, 1e9, 3e38])
def test_flow_far_outside_reads_zeros_and_passes_no_gradient(distance):
  image, flow = random_case(2)
  flow = np.where(flow < 0, -distance, distance).astype(np.float32)
  np.testing.assert_array_equal(jitted_warp(image, flow), np.zeros_like(image))
  gradients = jax.jit(jax.grad(lambda *x: backward_warp(*x).sum(), (0, 1)))(image, flow)
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_gradients_equal_finite_differences():
  # Within a cell the warp is linear in dx and in dy, so central differences of
  # the float64 definition are exact as long as no step crosses a pixel.
  image, flow = random_case(3, b=1, h=4, w=5, c=2, reach=2.5)
  flow = np.floor(flow) + np.clip(flow - np.floor(flow), 0.1, 0.9)
  cotangent = np.random.default_rng(4).uniform(-1, 1, image.shape).astype(np.float32)

  def loss(*x):
    return jnp.vdot(backward_warp(*x), cotangent)

  of_image, of_flow = jax.jit(jax.grad(loss, (0, 1)))(image, flow)

  def differences(x, out_of, step):
    result = np.empty(x.size)
    for i in range(x.size):
      change = np.zeros(x.size)
      change[i] = step
      change = change.reshape(x.shape)
      result[i] = np.vdot(out_of(x + change) - out_of(x - change), cotangent) / (2 * step)
    return result.reshape(x.shape)

  expected = differences(image, lambda image: warp_by_scipy(image, flow), 0.5)
  np.testing.assert_allclose(of_image, expected, atol=1e-5)
  expected = differences(flow, lambda flow: warp_by_scipy(image, flow), 0.05)
  np.testing.assert_allclose(of_flow, expected, atol=1e-5)


def test_bfloat16_images_are_read_at_float32_points():
  image, flow = random_case(5, h=3, w=300, reach=0.9)
  out = jitted_warp(jnp.asarray(image, jnp.bfloat16), jnp.asarray(flow))
  assert out.dtype == jnp.bfloat16
  # Coordinates near 300 in bfloat16 would be off by a pixel; values and weights
  # in bfloat16 are off by 2**-8 each.
  np.testing.assert_allclose(out.astype(jnp.float32), warp_by_scipy(image, flow), atol=0.03)


@pytest.mark.parametrize(
  "shape", [(2, 6, 9, 3), (2, 6, 8, 2), (2, 9, 6, 2), (1, 6, 9, 2), (6, 9, 2)]
)
def test_warp_refuses_flow_of_another_shape(shape):
  with pytest.raises(ValueError, match="flow of shape"):
    backward_warp(jnp.zeros((2, 6, 9, 3)), jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 3, 6, 9), (2, 6, 9, 1)])
def test_warp_refuses_a_mask_of_another_shape(shape):
  with pytest.raises(ValueError, match="mask of shape"):
    backward_warp(jnp.zeros((2, 6, 9, 3)), jnp.zeros((2, 6, 9, 3, 2)), jnp.zeros(shape))


def test_sample_takes_points_of_any_shape():
  image = jnp.arange(12.0).reshape(3, 4, 1)
  sample = jax.jit(sample_bilinear)
  assert sample(image, jnp.array([1.5, 1.0])).tolist() == [5.5]
  points = jnp.array([[[0.0, 0.0], [3.0, 2.0]], [[1.0, 0.5], [3.5, 2.0]]])
  expected = [[[0.0], [11.0]], [[3.0], [5.5]]]
  assert sample(image, points).tolist() == expected


def test_resized_flow_points_as_far_in_larger_pixels():
  flow = np.random.default_rng(6).uniform(-1, 1, (1, 3, 5, 2)).astype(np.float32)
  out = jax.jit(resize_flow, static_argnums=1)(flow, 4)
  assert out.shape == (1, 12, 20, 2)
  # Output (6, 6) has its centre at (1.125, 1.125) of the input: an eighth past (1, 1).
  along_x = flow[0, :, 1] * 7 / 8 + flow[0, :, 2] / 8
  expected = 4 * (along_x[1] * 7 / 8 + along_x[2] / 8)
  np.testing.assert_allclose(out[0, 6, 6], expected, atol=1e-6)
