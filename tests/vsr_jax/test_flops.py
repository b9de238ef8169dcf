from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from vsr_jax.flops import count_flops
from vsr_jax.ops.warp import backward_warp
from vsr_jax.sharding import make_mesh

PRODUCT = 2 * 64**3  # of two matrices [64 64]


def of_xla(function, *args):
  return jax.jit(function).lower(*args).cost_analysis()["flops"]


def convolution(stride, groups=1):
  def function(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )  # fmt: skip

  return function


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 3)])
def test_convolutions_and_their_gradients_are_counted_as_by_xla(stride, groups):
  x, kernel = jnp.ones((2, 17, 19, 6)), jnp.ones((3, 3, 6 // groups, 9))
  run = convolution(stride, groups)
  assert count_flops(run, x, kernel) == of_xla(run, x, kernel)
  gradient = jax.grad(lambda x, kernel: run(x, kernel).sum(), argnums=(0, 1))
  assert count_flops(gradient, x, kernel) == pytest.approx(of_xla(gradient, x, kernel), rel=1e-3)


def test_products_elements_and_sums_are_counted():
  def function(x, y):
    return jnp.einsum("bij,bjk->bik", x, y).sum() + jnp.square(x).sum()

  x, y = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
  assert count_flops(function, x, y) == 2 * 2 * 3 * 4 * 5 + 2 * 3 * 5 + 2 * (2 * 3 * 4) + 1


def test_loops_are_counted_by_turns():
  x = jnp.ones((64, 64))

  def five_times_three(x):
    three = jax.jit(lambda y: lax.fori_loop(0, 3, lambda _, z: jnp.dot(z, x), y))
    return lax.fori_loop(0, 5, lambda _, y: three(y), x)

  assert count_flops(five_times_three, x) == 15 * PRODUCT


def test_what_no_output_needs_is_not_counted():
  def function(x):
    used, _ = jax.jit(lambda x: (x @ x, x @ x @ x))(x)
    return used

  assert count_flops(function, jnp.ones((64, 64))) == PRODUCT


def test_of_branches_the_platforms_own_or_the_most_costly_one_counts():
  x = jnp.ones((64, 64))

  def by_platform(x):
    return lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x @ x)

  assert count_flops(by_platform, x, platform="cpu") == PRODUCT
  assert count_flops(by_platform, x, platform="tpu") == 2 * PRODUCT

  def by_value(x):
    return lax.cond((x > 0).all(), lambda x: x @ x, lambda x: x, x)

  assert count_flops(by_value, x) == PRODUCT


def test_the_parts_of_all_devices_are_counted():
  mesh = make_mesh(devices=jax.devices()[:4])
  split = PartitionSpec("data")

  def function(x, kernel):
    each = jax.shard_map(lambda x: x @ kernel, in_specs=split, out_specs=split, check_vma=False)
    return each(x)

  with jax.set_mesh(mesh):
    assert count_flops(function, jnp.ones((64, 64)), jnp.ones((64, 64))) == PRODUCT
    image, flow = jnp.ones((4, 8, 8, 3)), jnp.ones((4, 8, 8, 2))
    on_mesh = count_flops(backward_warp, image, flow)
  assert on_mesh == count_flops(backward_warp, image, flow) > 0
