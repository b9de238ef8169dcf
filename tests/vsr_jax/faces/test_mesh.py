"""The face mesh against TensorFlow Lite, and the file that it comes from.

parity/face_networks.npz: in/faces_192, uint8 pictures of two faces that do not exist (CC0);
facemesh_landmarks in pixels and facemesh_score, a logit: what TensorFlow Lite computes from them.
"""

from __future__ import annotations

import functools
import itertools
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import hostile_weights
from vsr_jax import tflite_files
from vsr_jax.conversion import to_state_dict
from vsr_jax.errors import UserError
from vsr_jax.faces import mesh

PARITY = Path(__file__).parents[2] / "parity" / "face_networks.npz"


@functools.cache
def params():
  return mesh.load()


def test_equals_tensorflow_lite():
  with np.load(PARITY) as golden:
    faces = np.float32(golden["in/faces_192"]) / 255
    want, want_logits = golden["facemesh_landmarks"], golden["facemesh_score"]
  faces = np.concatenate([faces, np.full_like(faces[:1], 0.5)])

  @jax.jit
  def run(params, faces):
    _, logits = mesh.FaceMesh().apply({"params": params["mesh"]}, faces)
    return *mesh.landmarks(params, faces), logits[:, 0]

  points, scores, logits = run(params(), faces)
  # Required: 0.05 pixels; rounding of float32 is all that differs, measured 1.2e-4.
  np.testing.assert_allclose(points[:2], want, atol=2e-3)
  np.testing.assert_allclose(logits[:2], want_logits, atol=1e-3)
  np.testing.assert_allclose(scores, [1, 1, 0], atol=0.01)  # the last is plain grey


@pytest.mark.parametrize("shape", [(1, 192, 96, 3), (192, 192, 3), (1, 192, 192, 1)])
def test_wrong_shapes_are_refused(shape):
  with pytest.raises(ValueError, match="faces of shape"):
    mesh.landmarks({"mesh": {}}, jnp.zeros(shape))


def mesh_shapes() -> dict[str, tuple[int, ...]]:
  """Names and shapes of the released file's weights."""
  shapes = {"conv2d_1/Kernel": (16, 3, 3, 3), "conv2d_1/Bias": (16,), "p_re_lu_1/Alpha": (1, 1, 16)}

  def conv(number, features, width, size=1):
    shapes[f"conv2d_{number}/Kernel"] = (features, size, size, width)
    shapes[f"conv2d_{number}/Bias"] = (features,)

  def block(depthwise, number, prelu, width, features):
    shapes[f"depthwise_conv2d_{depthwise}/Kernel"] = (1, 3, 3, width)
    shapes[f"depthwise_conv2d_{depthwise}/Bias"] = (width,)
    conv(number, features, width)
    shapes[f"p_re_lu_{prelu}/Alpha"] = (1, 1, features)

  widths = [16, 16, 16, 32, 32, 32, 64, 64, 64, *[128] * 9]
  for i, (width, features) in enumerate(itertools.pairwise(widths), 1):
    block(i, i + 1, i + 1, width, features)
  block(23, 28, 26, 128, 128)
  for number, prelu, depthwise, features in [(19, 19, 18, 1404), (29, 27, 24, 1)]:
    conv(number, 32, 128)
    shapes[f"p_re_lu_{prelu}/Alpha"] = (1, 1, 32)
    block(depthwise, number + 1, prelu + 1, 32, 32)
    conv(number + 2, features, 32, 3)
  return shapes


def test_the_released_file_becomes_what_ships(shared):
  path = shared / "weights" / "face_landmark.tflite"
  jax.tree.map(np.testing.assert_array_equal, mesh.load(path), params())
  weights = {k: x.shape for k, x in tflite_files.load(path).items() if "Paddings" not in k}
  assert weights == mesh_shapes()


def test_its_constants_become_what_ships():
  state = to_state_dict(params(), mesh.rules(), mesh_shapes())
  state["channel_padding_1/Paddings"] = np.zeros((4, 2), np.int32)
  jax.tree.map(np.testing.assert_array_equal, mesh.from_tflite(state), params())
  del state["conv2d_29/Bias"]
  state["conv2d_32/Bias"] = np.zeros(3, np.float32)
  with pytest.raises(UserError, match=r"unexpected conv2d_32/Bias; missing mesh/score/narrow/bias"):
    mesh.from_tflite(state)


def table(fields: dict[int, bytes | tuple[bytes, ...]], at: int) -> bytes:
  """A FlatBuffer's table for the place `at`: numbers as bytes, and what a field leads to after it.

  A field of several parts is a vector of tables, which are made for their places; one part of more
  than four bytes is a vector of bytes or numbers.
  """
  count = max(fields) + 1
  listed = struct.pack("<HH", 4 + 2 * count, 4 + 4 * len(fields))
  places = {number: 4 + 4 * i for i, number in enumerate(fields)}
  listed += b"".join(struct.pack("<H", places.get(number, 0)) for number in range(count))
  listed += bytes(-len(listed) % 4)
  start = at + len(listed)
  inline, after = b"", b""
  end = start + 4 + 4 * len(fields)
  for number, value in fields.items():
    if isinstance(value, bytes) and len(value) == 4:
      inline += value
      continue
    inline += struct.pack("<I", end + len(after) - (start + places[number]))
    after += vector(value, end + len(after))
  return listed + struct.pack("<i", len(listed)) + inline + after


def vector(value: tuple | list, at: int) -> bytes:
  if isinstance(value, list):  # tables, as functions of their places
    offsets, body = b"", b""
    for i, make in enumerate(value):
      place = at + 4 + 4 * len(value) + len(body)
      made, root = make(place)
      offsets += struct.pack("<I", root - (at + 4 + 4 * i))
      body += made
    return struct.pack("<I", len(value)) + offsets + body
  data, count = value
  return struct.pack("<I", count) + data + bytes(-len(data) % 4)


def tabled(fields):
  def make(at):
    made = table(fields, at)
    lead = 4 + 2 * (max(fields) + 1)
    return made, at + lead + -lead % 4

  return make


def tflite_bytes(arrays: dict[str, np.ndarray]) -> bytes:
  """A model that has nothing but constants; the first buffer is empty, as in all models."""
  buffers = [tabled({1: bytes(4)})]
  tensors = []
  for i, (name, x) in enumerate(arrays.items(), 1):
    buffers.append(tabled({0: (x.tobytes(), x.nbytes)}))
    kind = {"float32": 0, "float16": 1, "int32": 2}[x.dtype.name]
    shape = struct.pack(f"<{x.ndim}i", *x.shape), x.ndim
    text = name.encode(), len(name)
    number = struct.pack("<I", i)
    tensors.append(tabled({0: shape, 1: struct.pack("<I", kind), 2: number, 3: text}))
  tensors.append(tabled({0: (b"", 0), 2: bytes(4), 3: (b"input", 5)}))
  model = {0: struct.pack("<I", 3), 2: [tabled({0: tensors})], 4: buffers}
  made, root = tabled(model)(8)
  return struct.pack("<I", root) + b"TFL3" + made


SMALL = {
  "conv/Kernel": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
  "bias": np.float32([1.5]),
  "pads": np.int32([[0, 1]]),
}


def test_constants_of_a_model_are_read(tmp_path):
  (tmp_path / "x.tflite").write_bytes(tflite_bytes(SMALL))
  found = tflite_files.load(tmp_path / "x.tflite")
  assert {k: x.dtype for k, x in found.items()} == {k: x.dtype for k, x in SMALL.items()}
  jax.tree.map(np.testing.assert_array_equal, found, SMALL)


def test_damaged_models_are_refused_or_harmless(tmp_path):
  path = tmp_path / "x.tflite"
  good = tflite_bytes(SMALL)
  texts = []
  for data in (b"", good[:20], b"\xff\xff\xff\xffTFL3", *hostile_weights.mutants(good, 0, 200)):
    path.write_bytes(data)
    try:
      assert sum(x.nbytes for x in tflite_files.load(path).values()) < 1000
    except UserError as e:
      texts.append(str(e))
  assert len(texts) > 50
  assert all("x.tflite is damaged" in text and text.isprintable() for text in texts)
