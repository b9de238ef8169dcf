"""RAFT against the released code, its parts against their definitions.

parity/raft.npz: two frames of Big Buck Bunny (Blender Foundation, CC BY 3.0) and the top left
64x80 of the flow that the released code gives for them, after 1 and 12 iterations, with
the deterministic weights of parity/weights.py. released/flow: every fourth pixel of the small
one's with its released weights.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import weights
from tests.support.torch_writer import save_state_dict
from vsr_jax.errors import UserError
from vsr_jax.flow import common, raft, raft_conversion

PARITY = Path(__file__).parents[2] / "parity"
VARIANTS = pytest.mark.parametrize(("name", "net"), [("small", raft.SMALL), ("large", raft.LARGE)])
run = jax.jit(raft.raft, static_argnums=(0, 4))
lookup = jax.jit(raft.lookup, static_argnums=2)


def released(name: str, gain: float = 1.0) -> dict[str, np.ndarray]:
  """A state dict of the released layout; the large one holds one norm under two names."""
  state = weights.state_dict(PARITY / f"raft_{name}.manifest.json", 1234, gain)
  return {key: state[key.replace(".norm3.", ".downsample.1.")] for key in state}


@functools.cache
def golden() -> dict[str, np.ndarray]:
  with np.load(PARITY / "raft.npz") as file:
    return dict(file)


def images() -> list[jax.Array]:
  return [jnp.asarray(golden()[key], jnp.float32) for key in ("image1", "image2")]


def error(flow: jax.Array, reference: np.ndarray) -> float:
  """Mean end-point error in pixels."""
  return float(np.linalg.norm(np.asarray(flow) - reference, axis=-1).mean())


@VARIANTS
@pytest.mark.parametrize(("key", "iterations"), [("flow_iter1", 1), ("flow", 12)])
def test_equals_the_released_code(name, net, key, iterations):
  found, params = raft_conversion.from_state_dict(released(name, golden()[f"{name}/gain"]))
  assert found == net
  flow = run(net, params, *images(), iterations)[:, :64, :80]
  # The reference's rounding, grown by 12 iterations: a tenth of what the released weights
  # are held to. Flows are up to 55 px here; measured 4e-5.
  assert error(flow, golden()[f"{name}/{key}"]) < 1e-4


@pytest.mark.parametrize(("key", "iterations"), [("flow_iter1", 1), ("flow", 12)])
def test_equals_the_released_code_with_released_weights(shared, key, iterations):
  net, params = raft_conversion.load(shared / "weights" / "raft-small.pth")
  flow = run(net, params, *images(), iterations)
  with np.load(shared / "golden" / "flow.npz") as file:
    reference = np.moveaxis(file[f"raft_small/{key}"], 1, -1)
  assert error(flow, reference) < 1e-4  # required: 1e-3; measured 5e-6


def test_what_ships_equals_the_released_weights_but_for_rounding():
  net, params = raft_conversion.load()
  flow = run(net, params, *images(), 12)[:, ::4, ::4]
  # Required: 0.02 pixels. float16 makes the difference: measured 0.0025 at most, 0.0006 on average.
  difference = np.linalg.norm(flow - golden()["released/flow"], axis=-1)
  assert difference.max() < 0.01
  assert difference.mean() < 0.001


def test_what_ships_is_the_released_file(shared):
  _, params = raft_conversion.load(shared / "weights" / "raft-small.pth")
  half = jax.tree.map(lambda x: np.float16(x).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, raft_conversion.load()[1], half)


def test_finds_a_known_motion():
  net, params = raft_conversion.load()
  frame = images()[0]
  flow = run(net, params, frame, jnp.roll(frame, (-2, 3), (1, 2)), 12)
  inner = np.asarray(flow)[0, 24:-24, 24:-24]
  np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [3, -2], atol=0.25)


@pytest.mark.parametrize(
  ("net", "count"), [(raft.SMALL, 990_162), (raft.LARGE, 5_257_536)], ids=["small", "large"]
)
def test_parameter_count(net, count):
  shapes = jax.eval_shape(functools.partial(raft.init, net), jax.random.key(0))
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  learned = [leaf.size for path, leaf in leaves if path[-1].key not in ("mean", "var")]
  assert sum(learned) == count


@VARIANTS
def test_smallest_image_and_batches(name, net):
  """Down to one feature: levels that the image is too small for read zero."""
  _, params = raft_conversion.from_state_dict(released(name, 0.7))
  a, b = (jnp.concatenate([x[:, :8, :16], x[:, 40:48, 80:96]]) for x in images())
  flow = run(net, params, a, b, 2)
  assert flow.shape == (2, 8, 16, 2)
  assert jnp.isfinite(flow).all()
  np.testing.assert_allclose(flow[::-1], run(net, params, a[::-1], b[::-1], 2), atol=1e-5)


def test_starts_where_it_is_told():
  net, params = raft_conversion.from_state_dict(released("small"))
  start = jax.random.normal(jax.random.key(1), (1, 2, 3, 2))
  image = jnp.zeros((1, 16, 24, 3))
  flow = run(net, params, image, image, 0, start)
  np.testing.assert_allclose(flow, common.upsample_align_corners(start), atol=1e-6)


@pytest.mark.parametrize(
  ("first", "second"),
  [
    ((1, 20, 24, 3), (1, 20, 24, 3)),
    ((1, 24, 20, 3), (1, 24, 20, 3)),
    ((1, 16, 24, 3), (1, 24, 16, 3)),
    ((1, 16, 24, 1), (1, 16, 24, 1)),
    ((16, 24, 3), (16, 24, 3)),
    ((1, 0, 24, 3), (1, 0, 24, 3)),
  ],
)
def test_wrong_shapes_are_refused(first, second):
  with pytest.raises(ValueError, match="images of shape"):
    raft.raft(raft.SMALL, {}, jnp.zeros(first), jnp.zeros(second))


def test_pyramid_pools_the_products():
  a, b = jax.random.normal(jax.random.key(0), (2, 1, 9, 6, 16))
  pyramid = raft.correlation_pyramid(a[:, :2, :3], b)
  product = np.einsum("bhwc,bijc->bhwij", a[:, :2, :3], b) / 4
  assert [level.shape[3:] for level in pyramid] == [(9, 6), (4, 3), (2, 1), (1, 0)]
  for level in pyramid[:3]:
    np.testing.assert_allclose(level, product, atol=1e-5)
    h, w = product.shape[3] // 2, product.shape[4] // 2
    even = product[..., : 2 * h, : 2 * w]
    product = even.reshape(*product.shape[:3], h, 2, w, 2).mean((4, 6))


def test_lookup_reads_windows_x_first_and_zeros_outside():
  radius = 2
  level = np.random.default_rng(0).normal(size=(1, 1, 2, 5, 6)).astype(np.float32)
  points = np.array([[[[2.0, 3.0], [0.25, 3.5]]]], np.float32)
  got = np.asarray(lookup([jnp.asarray(level)], jnp.asarray(points), radius))
  windows = got.reshape(2, 5, 5)

  def read(query, x, y):
    inside = 0 <= y < 5 and 0 <= x < 6
    return level[0, 0, query, y, x] if inside else 0.0

  for i in range(5):
    for j in range(5):
      x, y = i - radius, j - radius
      assert windows[0, i, j] == pytest.approx(read(0, 2 + x, 3 + y), abs=1e-6)
      blend = sum(
        wx * wy * read(1, x + dx, 3 + y + dy)
        for dx, wx in ((0, 0.75), (1, 0.25))
        for dy, wy in ((0, 0.5), (1, 0.5))
      )
      assert windows[1, i, j] == pytest.approx(blend, abs=1e-6)


def test_lookup_of_a_coarser_level_halves_the_point():
  levels = [jnp.ones((1, 1, 1, 8, 8)), jnp.arange(16.0).reshape(1, 1, 1, 4, 4)]
  window = lookup(levels, jnp.array([[[[4.0, 2.0]]]]), 1)[0, 0, 0, 9:]
  np.testing.assert_array_equal(window.reshape(3, 3).T, np.arange(16.0).reshape(4, 4)[:3, 1:4])


def test_bilinear_upsampling_keeps_the_corners():
  flow = jax.random.normal(jax.random.key(0), (1, 3, 4, 2))
  large = np.asarray(common.upsample_align_corners(flow))
  assert large.shape == (1, 24, 32, 2)
  columns = np.linspace(0, 3, 32)
  for row, small in ((0, 0), (23, 2)):
    for c in range(2):
      line = 8 * np.interp(columns, np.arange(4), flow[0, small, :, c])
      np.testing.assert_allclose(large[0, row, :, c], line, atol=1e-5)


def test_convex_upsampling_chooses_neighbours_by_sub_pixel():
  flow = jax.random.normal(jax.random.key(0), (1, 3, 4, 2))
  neighbour = np.random.default_rng(0).integers(0, 9, (1, 3, 4, 8, 8))
  logits = 1000.0 * jax.nn.one_hot(neighbour, 9, axis=3)
  large = np.asarray(common.upsample_convex(flow, logits.reshape(1, 3, 4, -1)))
  padded = np.pad(np.asarray(flow), ((0, 0), (1, 1), (1, 1), (0, 0)))
  y, x = np.mgrid[:24, :32]
  k = neighbour[0, y // 8, x // 8, y % 8, x % 8]
  np.testing.assert_allclose(large[0], 8 * padded[0, y // 8 + k // 3, x // 8 + k % 3], atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_loads_a_file(prefix, wrapped, tmp_path):
  state = {prefix + key: value for key, value in released("small").items()}
  save_state_dict(tmp_path / "x.pth", {"state_dict": state} if wrapped else state)
  net, params = raft_conversion.load(tmp_path / "x.pth")
  assert net == raft.SMALL
  kernel = params["update"]["gru0_z"]["kernel"]
  original = state[f"{prefix}update_block.gru.convz.weight"]
  np.testing.assert_array_equal(kernel, original.transpose(2, 3, 1, 0))


def test_altered_repetition_is_refused(tmp_path):
  state = released("large")
  state["cnet.layer2.0.norm3.bias"] = state["cnet.layer2.0.norm3.bias"] + 1
  with pytest.raises(UserError, match=r"x.pth: cnet.layer2.0.norm3.bias differs"):
    raft_conversion.from_state_dict(state, "x.pth")


@pytest.mark.parametrize("name", ["small", "large"])
def test_weights_of_another_shape_are_refused(name):
  state = released(name)
  state["fnet.conv1.weight"] = state["fnet.conv1.weight"][:, :1]
  del state["cnet.conv2.bias"]
  state["fnet.extra"] = np.ones(1)
  with pytest.raises(UserError) as caught:
    raft_conversion.from_state_dict(state, "x.pth")
  for part in ("features/conv1/kernel", "missing context/conv2/bias", "unexpected fnet.extra"):
    assert part in str(caught.value)
