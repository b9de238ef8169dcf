"""GMFlow against the released code, its parts against their definitions.

parity/gmflow.npz: every third pixel, which meets each of the 64 sub-pixels of x8, of the flow
that the released code gives for the frames of parity/raft.npz (Big Buck Bunny, Blender
Foundation, CC BY 3.0), with the deterministic weights of parity/weights.py.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import weights
from tests.support.programs import jit
from tests.support.torch_writer import save_state_dict
from vsr_jax.conversion import Rule, convert, to_state_dict
from vsr_jax.errors import UserError
from vsr_jax.flow import gmflow, gmflow_conversion
from vsr_jax.ops import attention

PARITY = Path(__file__).parents[2] / "parity"
MANIFEST = PARITY / "gmflow.manifest.json"


run = jit(gmflow.gmflow, static_argnums=3)


@functools.cache
def golden() -> dict[str, np.ndarray]:
  with np.load(PARITY / "gmflow.npz") as file, np.load(PARITY / "raft.npz") as frames:
    return dict(file) | {key: frames[key] for key in ("image1", "image2")}


@functools.cache
def released() -> dict[str, np.ndarray]:
  """A state dict of the released layout."""
  return weights.state_dict(MANIFEST, int(golden()["seed"]), float(golden()["gain"]))


@functools.cache
def params() -> gmflow.Params:
  return gmflow_conversion.from_state_dict(released())


def images() -> list[jax.Array]:
  return [jnp.asarray(golden()[key], jnp.float32) for key in ("image1", "image2")]


@functools.cache
def flow() -> np.ndarray:
  return np.asarray(run(params(), *images(), jnp.float32))


def error(flow: jax.Array, reference: np.ndarray) -> float:
  """Mean end-point error in pixels."""
  return float(np.linalg.norm(np.asarray(flow) - reference, axis=-1).mean())


def small_pair() -> list[jax.Array]:
  """Frames [2 32 48 3] of odd windows: 2 by 3 features each."""
  return [jnp.concatenate([x[:, :32, :48], x[:, 64:96, 80:128]]) for x in images()]


def test_equals_the_released_code():
  # Required: 2e-3; flows are up to 13 px here. The reference moves by 5e-4 when its input does
  # by one part in a million. Measured 3e-5.
  assert error(flow()[:, ::3, ::3], golden()["flow"]) < 5e-4


def test_features_computed_once_serve_both_pairs():
  first, second = small_pair()
  video = jnp.concatenate([first, second[:1]])
  features = jit(gmflow.encode)(params(), video)
  assert features.shape == (3, 4, 6, gmflow.WIDTH)
  found = jit(gmflow.flow_from_features)(params(), features[:2], features[1:])
  pairs = run(params(), video[:2], video[1:], jnp.float32)
  np.testing.assert_allclose(found, pairs, atol=2e-3)


def test_frames_of_a_batch_do_not_mix():
  first, second = small_pair()
  together = run(params(), first, second, jnp.float32)
  swapped = run(params(), first[::-1], second[::-1], jnp.float32)
  np.testing.assert_allclose(together[::-1], swapped, atol=2e-3)


def test_matching_finds_a_known_motion():
  """Distinct features, rolled by (3, -2): but for what has left the frame, exactly that."""
  features = jax.random.normal(jax.random.key(0), (2, 8, 10, gmflow.WIDTH)) * 5
  found = jit(gmflow.match)(features, jnp.roll(features, (-2, 3), (1, 2)))
  np.testing.assert_allclose(found[:, 2:, :-3], np.broadcast_to([3, -2], (2, 6, 7, 2)), atol=1e-3)


def test_identical_features_do_not_move():
  features = jax.random.normal(jax.random.key(0), (1, 8, 10, gmflow.WIDTH)) * 5
  np.testing.assert_allclose(jit(gmflow.match)(features, features), 0, atol=1e-3)


def test_propagation_averages_the_flow():
  """What moves as a whole keeps its motion, whatever it looks like."""
  features = jax.random.normal(jax.random.key(0), (1, 8, 10, gmflow.WIDTH))
  uniform = jnp.broadcast_to(jnp.array([3.0, -2.0]), (1, 8, 10, 2))
  net = gmflow.Propagation()
  found = net.apply({"params": params()["propagation"]}, features, uniform)
  np.testing.assert_allclose(found, uniform, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_runs():
  """Random weights magnify rounding: measured 1.1 px, where the flow is 6.2 px on average."""
  found = run(params(), *images(), jnp.bfloat16)
  assert found.dtype == jnp.float32
  assert error(found, flow()) < 0.4 * float(np.linalg.norm(flow(), axis=-1).mean())


def test_parameter_count():
  shapes = jax.eval_shape(gmflow.init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 4_680_288  # 4.7 M in the paper


def test_smallest_frame():
  """One feature a window: shifting means nothing there."""
  frame = images()[0][:, :16, :16]
  assert jnp.isfinite(run(params(), frame, frame, jnp.float32)).all()


@pytest.mark.parametrize("shape", [(1, 24, 32, 3), (1, 32, 24, 3), (1, 16, 16, 1), (16, 16, 3)])
def test_wrong_frames_are_refused(shape):
  with pytest.raises(ValueError, match=r"frames of shape .* multiples of 16"):
    gmflow.encode({}, jnp.zeros(shape))


def test_frames_of_two_sizes_are_refused():
  with pytest.raises(ValueError, match="images of shapes"):
    gmflow.gmflow({}, jnp.zeros((1, 16, 32, 3)), jnp.zeros((1, 32, 16, 3)))
  with pytest.raises(ValueError, match="features of shapes"):
    gmflow.flow_from_features({}, jnp.zeros((1, 2, 4, 128)), jnp.zeros((1, 4, 2, 128)))


def swin(query, key, value, shift):
  """Shifted windows as they are defined: rolled in, and -100 between what is not adjacent."""
  h, w, c = query.shape
  shifts = (shift * (h // 4), shift * (w // 4))
  query, key, value = (np.roll(x, (-shifts[0], -shifts[1]), (0, 1)) for x in (query, key, value))
  # Rolled places that have come round the border are told apart by this.
  y, x = np.arange(h) >= h - shifts[0], np.arange(w) >= w - shifts[1]
  region = 2 * y[:, None] + x[None]
  out = np.empty_like(value)
  for rows in (slice(0, h // 2), slice(h // 2, h)):
    for columns in (slice(0, w // 2), slice(w // 2, w)):
      q, k, v = (x[rows, columns].reshape(-1, c) for x in (query, key, value))
      r = region[rows, columns].reshape(-1)
      scores = q @ k.T / np.sqrt(c) - 100.0 * (r[:, None] != r)
      attention = np.exp(scores - scores.max(-1, keepdims=True))
      attention /= attention.sum(-1, keepdims=True)
      out[rows, columns] = (attention @ v).reshape(h // 2, w // 2, c)
  return np.roll(out, shifts, (0, 1))


@pytest.mark.parametrize("size", [(8, 12), (6, 10), (2, 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_without_roll_or_mask(size, shifted):
  arrays = np.random.default_rng(0).normal(size=(3, 2, *size, 16)).astype(np.float32)
  windows = tuple(gmflow.window_sizes(n, shifted) for n in size)

  @jit
  def both(*arrays):
    forms = attention.attend_in_windows, attention.attend_in_windows_definition
    return [form(*arrays, windows) for form in forms]

  # What other platforms run, all frames at once, is the same function.
  found, at_once = both(*arrays)
  np.testing.assert_allclose(found, at_once, atol=1e-5)
  for i in range(2):
    np.testing.assert_allclose(found[i], swin(*arrays[:, i], shifted), atol=1e-5)


def test_position_code():
  code = np.asarray(gmflow.position_code(4, 6))
  for y, x, i in ((0, 0, 0), (3, 2, 5), (1, 5, 31)):
    frequency = 10000 ** (-i / 32)
    for place, size, first in ((y, 4, 0), (x, 6, 64)):
      angle = 2 * np.pi * (place + 1) / size * frequency
      pair = code[y, x, first + 2 * i : first + 2 * i + 2]
      np.testing.assert_allclose(pair, [np.sin(angle), np.cos(angle)], atol=1e-6)


@pytest.mark.parametrize("wrapper", [None, "model"])
def test_loads_a_file(wrapper, tmp_path):
  save_state_dict(tmp_path / "x.pth", {wrapper: released()} if wrapper else released())
  loaded = gmflow_conversion.load(tmp_path / "x.pth")
  jax.tree.map(np.testing.assert_array_equal, loaded, params())


def test_the_table_reads_both_ways():
  state = released()
  back = to_state_dict(params(), gmflow_conversion.rules(), {k: v.shape for k, v in state.items()})
  jax.tree.map(np.testing.assert_array_equal, back, state)


def test_the_table_inside_a_larger_model():
  """As in KEEP's checkpoints; a prefix is no pattern."""
  state = {f"flownet.model.{key}": value for key, value in released().items()}
  rules = [*gmflow_conversion.rules("flownet.model.", "flow/"), Rule(r"scale", "scale")]
  template = {"flow": params(), "scale": np.ones(1, np.float32)}
  found = convert(state | {"scale": np.ones(1, np.float32)}, rules, template)
  jax.tree.map(np.testing.assert_array_equal, found["flow"], params())
  with pytest.raises(UserError, match="unexpected flownet_model"):
    convert({k.replace(".", "_", 1): v for k, v in state.items()}, rules, template)


def test_weights_of_another_shape_are_refused():
  """Such as the released files with refinement, which have tensors this network lacks."""
  state = dict(released())
  state["backbone.conv1.weight"] = state["backbone.conv1.weight"][:, :1]
  del state["transformer.layers.5.cross_attn_ffn.norm2.bias"]
  state["backbone.trident_conv.weight"] = np.ones((128, 128, 3, 3), np.float32)
  with pytest.raises(UserError) as caught:
    gmflow_conversion.from_state_dict(state, "x.pth")
  for part in (
    "x.pth",
    "encoder/conv1/kernel",
    "missing transformer/layer5_ffn/norm/bias",
    "unexpected backbone.trident_conv.weight",
  ):
    assert part in str(caught.value)
