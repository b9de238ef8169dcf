"""SPyNet against its definition in NumPy and SciPy, and its released weights on real frames.

The frames are two of Big Buck Bunny (Blender Foundation, CC BY 3.0), from parity/raft.npz.
"""

from __future__ import annotations

import functools
import io
import tracemalloc
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from tests.parity import weights
from tests.support.torch_writer import save_state_dict
from vsr_jax.errors import UserError
from vsr_jax.flow import raft, raft_conversion, spynet, spynet_conversion
from vsr_jax.ops.warp import backward_warp

PARITY = Path(__file__).parents[2] / "parity"
CHANNELS = (8, 32, 64, 32, 16, 2)

run = jax.jit(spynet.spynet)


def images(crop: tuple[slice, slice] = (slice(None), slice(None))) -> list[np.ndarray]:
  with np.load(PARITY / "raft.npz") as file:
    return [np.float32(file[key][:, *crop]) for key in ("image1", "image2")]


def names(layer: str = "basic_module.{level}.basic_module.{twice}") -> dict[str, list[int]]:
  """Keys and shapes of a PyTorch file; the layers' names are BasicSR's by default."""
  found = {}
  for level in range(6):
    for i in range(5):
      key = layer.format(level=level, twice=2 * i, i=i, number=level + 1)
      between = "/" if "/" in key else "."
      found[f"{key}{between}weight"] = [CHANNELS[i + 1], CHANNELS[i], 7, 7]
      found[f"{key}{between}bias"] = [CHANNELS[i + 1]]
  return found


@functools.cache
def released() -> dict[str, np.ndarray]:
  """Made-up weights in BasicSR's layout, whose flows leave the image here and there."""
  state = weights.state_dict(names(), 1234, 1.2)
  return state | {key: np.ones((1, 3, 1, 1), np.float32) for key in ("mean", "std")}


def reference(state, image1, image2):
  """SPyNet by its definition, one pair [h w 3] in float64: [h w 2]."""
  mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
  pair = [(np.float64(x) / 255 - mean) / deviation for x in (image1, image2)]
  pyramids = [[x] for x in pair]
  for pyramid in pyramids:
    for _ in range(5):
      x = pyramid[0]
      pyramid.insert(0, (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4)
  flow = np.zeros((*pyramids[0][0].shape[:2], 2))
  for level, (first, second) in enumerate(zip(*pyramids, strict=True)):
    if level:
      # Zooming by order 1 is bilinear with the corners aligned.
      flow = 2 * scipy.ndimage.zoom(flow, (2, 2, 1), order=1)
    y, x = np.mgrid[: first.shape[0], : first.shape[1]]
    points = [y + flow[..., 1], x + flow[..., 0]]
    warped = [
      scipy.ndimage.map_coordinates(second[..., c], points, order=1, mode="nearest")
      for c in range(3)
    ]
    x = np.concatenate([first, np.stack(warped, axis=-1), flow], axis=-1)
    for i in range(5):
      key = f"basic_module.{level}.basic_module.{2 * i}"
      x = np.maximum(x, 0) if i else x
      padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
      windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (0, 1))
      x = np.tensordot(windows, state[f"{key}.weight"], ([2, 3, 4], [1, 2, 3]))
      x += state[f"{key}.bias"]
    flow += x
  return flow


def error(flow, reference) -> float:
  """Mean end-point difference in pixels."""
  return float(np.linalg.norm(np.asarray(flow) - np.asarray(reference), axis=-1).mean())


def test_equals_its_definition():
  pair = images((slice(0, 64), slice(32, 128)))
  want = reference(released(), *(x[0] for x in pair))
  end = want + np.stack(np.mgrid[:64, :96][::-1], axis=-1)
  assert ((end < 0) | (end > [95, 63])).any(-1).mean() > 0.01  # the image's border counts
  flow = run(spynet_conversion.from_state_dict(released()), *pair)
  # Rounding of float32, of flows of some pixels.
  assert error(flow[0], want) < 1e-4


@pytest.mark.slow
def test_the_released_weights_agree_with_raft(shared):
  pair = images()
  flow = run(spynet_conversion.load(shared / "weights" / "spynet_sintel_final.npz"), *pair)
  net, params = raft_conversion.load(shared / "weights" / "raft-small.pth")
  other = jax.jit(raft.raft, static_argnums=0)(net, params, *pair)
  # Of 2.4 px on average; measured 0.87, as a PyTorch SPyNet has it, too.
  assert error(flow, other) < 1
  # And the second image, warped by it, equals the first one to half of what it did; measured 0.45,
  # 0.57 by RAFT's flow.
  warped = backward_warp(jnp.asarray(pair[1]), spynet.within_image(flow))
  assert np.abs(warped - pair[0]).mean() < 0.5 * np.abs(pair[1] - pair[0]).mean()


def test_finds_a_known_motion(shared):
  params = spynet_conversion.load(shared / "weights" / "spynet_sintel_final.npz")
  frame = images()[0]
  flow = run(params, frame, jnp.roll(frame, (-2, 3), (1, 2)))
  inner = np.asarray(flow)[0, 24:-24, 24:-24]
  np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [3, -2], atol=0.25)


def test_parameter_count():
  shapes = jax.eval_shape(spynet.init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_440_300


def test_pairs_of_a_batch_are_independent():
  params = spynet_conversion.from_state_dict(released())
  a, b = (np.concatenate([x[:, :32, :64], x[:, 64:96, 64:128]]) for x in images())
  flow = run(params, a, b)
  assert flow.shape == (2, 32, 64, 2)
  np.testing.assert_allclose(flow[::-1], run(params, a[::-1], b[::-1]), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 48, 32, 3), (1, 32, 48, 3), (1, 32, 32, 1), (32, 32, 3)])
def test_wrong_shapes_are_refused(shape):
  with pytest.raises(ValueError, match="multiples of 32"):
    spynet.spynet({}, jnp.zeros(shape), jnp.zeros(shape))
  with pytest.raises(ValueError, match="images of shapes"):
    spynet.spynet({}, jnp.zeros(shape), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
  "layer",
  [
    "netBasic.{level}.netBasic.{twice}",
    "moduleBasic.{level}.moduleBasic.{twice}",
    "basic_module.{level}.basic_module.{i}.conv",
  ],
)
def test_all_names_are_understood(layer, tmp_path):
  want = spynet_conversion.from_state_dict(released())
  state = dict(zip(names(layer), (released()[key] for key in names()), strict=True))
  save_state_dict(tmp_path / "spynet.pth", state)
  jax.tree.map(np.testing.assert_array_equal, spynet_conversion.load(tmp_path / "spynet.pth"), want)


def test_an_npz_file_is_read(tmp_path):
  keys = names("L{number}/conv{i}")
  state = dict(zip(keys, (released()[key] for key in names()), strict=True))
  np.savez(tmp_path / "spynet.npz", **state)
  want = spynet_conversion.from_state_dict(released())
  jax.tree.map(np.testing.assert_array_equal, spynet_conversion.load(tmp_path / "spynet.npz"), want)


def npz_bytes(shape: str, data: bytes = bytes(8), method: int = zipfile.ZIP_STORED) -> bytes:
  """An .npz with one float32 array of that shape, whatever its data are."""
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
  npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as archive:
    archive.writestr("L1/conv0/bias.npy", npy)
  return file.getvalue()


@pytest.mark.parametrize(
  "data",
  [
    npz_bytes("(10000000000,)"),
    npz_bytes("(-2,)"),
    npz_bytes("(" * 3000 + "2" + ",)" * 3000),
    npz_bytes("(2,)", bytes(2**27), zipfile.ZIP_DEFLATED),
    npz_bytes("(2,)")[:100],
    b"PK",
  ],
  ids=["large", "negative", "nested", "bomb", "cut", "no zip"],
)
def test_a_hostile_npz_file_is_refused_before_it_takes_memory(data, tmp_path):
  (tmp_path / "x.npz").write_bytes(data)
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match=r"x.npz is damaged or no .npz file") as error:
      spynet_conversion.load(tmp_path / "x.npz")
    assert tracemalloc.get_traced_memory()[1] < 5e6
  finally:
    tracemalloc.stop()
  assert str(error.value).isprintable()


@pytest.mark.parametrize(
  ("fault", "message"),
  [
    ("missing", "missing level5/conv4/kernel"),
    ("unexpected", "unexpected basic_module.6.basic_module.0.weight"),
    ("misshapen", "basic_module.0.basic_module.0.weight of shape"),
  ],
)
def test_what_does_not_fit_is_named(fault, message):
  state = dict(released())
  if fault == "missing":
    del state["basic_module.5.basic_module.8.weight"]
  elif fault == "unexpected":
    state["basic_module.6.basic_module.0.weight"] = np.zeros((32, 8, 7, 7), np.float32)
  else:
    state["basic_module.0.basic_module.0.weight"] = np.zeros((32, 8, 5, 5), np.float32)
  with pytest.raises(UserError, match=message):
    spynet_conversion.from_state_dict(state)


@pytest.mark.parametrize("contents", [None, b"", b"PK\x03\x04 no archive"])
def test_a_bad_npz_file_is_named(contents, tmp_path):
  path = tmp_path / "spynet.npz"
  if contents is not None:
    path.write_bytes(contents)
  with pytest.raises(UserError, match=r"spynet\.npz .*\.npz file"):
    spynet_conversion.load(path)
