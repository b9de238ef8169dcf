"""MTCNN against facenet-pytorch, its parts against their definitions.

parity/mtcnn.npz: boxes, scores and landmarks that facenet-pytorch 2.6.0 finds, with
`MTCNN(keep_all=True, select_largest=False).detect(frame, landmarks=True)`, in scikit-image's
astronaut and in single frames of the clips in ../shared/data, named CLIP/FRAME.
"""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import skimage

from tests.support.torch_writer import save_state_dict
from vsr_jax import array_files, video
from vsr_jax.conversion import to_state_dict
from vsr_jax.errors import UserError
from vsr_jax.faces import mtcnn, mtcnn_conversion

PARITY = Path(__file__).parents[2] / "parity" / "mtcnn.npz"


@functools.cache
def golden() -> dict[str, np.ndarray]:
  with np.load(PARITY) as file:
    return dict(file)


@functools.cache
def params():
  return mtcnn_conversion.load()


def assert_equals_the_reference(found, name):
  boxes, landmarks = golden()[f"{name}/boxes"], golden()[f"{name}/landmarks"]
  assert len(found) == len(boxes)
  # Required: 1 pixel. Rounding of the networks' sums is all that differs; measured 1.3e-4.
  np.testing.assert_allclose(found.boxes, boxes, atol=0.01)
  np.testing.assert_allclose(found.landmarks, landmarks, atol=0.01)
  np.testing.assert_allclose(found.scores, golden()[f"{name}/scores"], atol=1e-5)
  assert {x.dtype for x in (found.boxes, found.scores, found.landmarks)} == {np.dtype(np.float32)}


def test_equals_facenet_pytorch():
  photo = skimage.data.astronaut()
  # The second frame of a batch has candidates of its own, and none that are faces.
  found = mtcnn.detect(params(), [photo, photo[::-1]])
  assert_equals_the_reference(found[0], "astronaut")
  (alone,) = mtcnn.detect(params(), [photo[::-1]])
  np.testing.assert_allclose(found[1].scores, alone.scores, atol=1e-5)


REAL = sorted({key.rsplit("/", 1)[0] for key in golden()} - {"astronaut"})


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_equals_facenet_pytorch_on_real_frames(shared, name):
  clip, index = name.rsplit("/", 1)
  with video.open_reader(
    str(shared / "data" / f"{clip}.mp4"), int(index), int(index) + 1
  ) as reader:
    (found,) = mtcnn.detect(params(), [next(reader).image])
  assert_equals_the_reference(found, name)


def test_the_pyramid_is_compiled_once_a_frame_size():
  frame = np.zeros((70, 90, 3), np.uint8)
  mtcnn.detect(params(), [frame])
  compiled = mtcnn._propose._cache_size()
  mtcnn.detect(params(), [frame + np.uint8(90), frame])
  assert mtcnn._propose._cache_size() == compiled


@pytest.mark.parametrize("shape", [(12, 300, 3), (1, 1, 3), (64, 64, 3)])
def test_frames_without_faces(shape):
  for frame in (np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
    (found,) = mtcnn.detect(params(), [frame])
    assert (found.boxes.shape, found.scores.shape, found.landmarks.shape) == (
      (0, 4),
      (0,),
      (0, 5, 2),
    )


def area_mean(image, size):
  """PyTorch's adaptive average pooling, by its definition."""
  out = np.empty((*size, 3))
  for i in range(size[0]):
    rows = image[i * len(image) // size[0] : -(-(i + 1) * len(image) // size[0])]
    for j in range(size[1]):
      width = rows.shape[1]
      out[i, j] = rows[:, j * width // size[1] : -(-(j + 1) * width // size[1])].mean((0, 1))
  return out


@hypothesis.settings(max_examples=5)  # each compiles
@hypothesis.given(*[st.integers(1, 40)] * 4)
def test_resampling_is_a_mean_over_areas(height, width, rows, columns):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (height + 3, width + 5, 3), np.uint8)
  sums = cv2.integral(image)
  size = (rows, columns)
  got = mtcnn._area_resize(jax.numpy.asarray(sums), size)
  # float32 rounding of a value in [-1, 1]
  np.testing.assert_allclose(got, (area_mean(image, size) - 127.5) / 128, atol=1e-6)
  left, top, right, bottom = (np.array([v]) for v in (2, 1, width + 2, height + 1))
  (crop,) = mtcnn._area_crops(sums, left, top, right, bottom, rows)
  part = image[1 : height + 1, 2 : width + 2]
  np.testing.assert_allclose(crop, (area_mean(part, (rows, rows)) - 127.5) / 128, atol=1e-6)


# The layers of facenet-pytorch's files, and the slopes after the first of them.
KERNELS = {
  "proposal": {
    "conv1": (10, 3, 3, 3),
    "conv2": (16, 10, 3, 3),
    "conv3": (32, 16, 3, 3),
    "conv4_1": (2, 32, 1, 1),
    "conv4_2": (4, 32, 1, 1),
  },
  "refine": {
    "conv1": (28, 3, 3, 3),
    "conv2": (48, 28, 3, 3),
    "conv3": (64, 48, 2, 2),
    "dense4": (128, 576),
    "dense5_1": (2, 128),
    "dense5_2": (4, 128),
  },
  "output": {
    "conv1": (32, 3, 3, 3),
    "conv2": (64, 32, 3, 3),
    "conv3": (64, 64, 3, 3),
    "conv4": (128, 64, 2, 2),
    "dense5": (256, 1152),
    "dense6_1": (2, 256),
    "dense6_2": (4, 256),
    "dense6_3": (10, 256),
  },
}
SLOPES = {"proposal": 3, "refine": 4, "output": 5}


def released() -> dict[str, dict[str, np.ndarray]]:
  """The state dicts that the weights that ship were made from."""
  shapes = {}
  for net, layers in KERNELS.items():
    for i, (layer, shape) in enumerate(layers.items(), 1):
      shapes[f"{net}.{layer}.weight"] = shape
      shapes[f"{net}.{layer}.bias"] = shape[:1]
      if i <= SLOPES[net]:
        shapes[f"{net}.prelu{i}.weight"] = shape[:1]
  state = to_state_dict(params(), mtcnn_conversion.rules(), shapes)
  return {
    net: {k.removeprefix(f"{net}."): v for k, v in state.items() if k.startswith(f"{net}.")}
    for net in KERNELS
  }


def test_facenet_pytorchs_files_become_what_ships(tmp_path):
  for net, state in released().items():
    save_state_dict(tmp_path / mtcnn_conversion.FILES[net], state)
  loaded = mtcnn_conversion.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, loaded, params())
  array_files.save_params(loaded, tmp_path / "mtcnn.npz")
  with np.load(tmp_path / "mtcnn.npz") as ours, np.load(mtcnn_conversion.ASSET) as shipped:
    assert set(ours) == set(shipped)
    assert sum(ours[key].size for key in ours) == 495_850


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen", "no file"])
def test_what_does_not_fit_is_named(fault, tmp_path):
  states = released()
  if fault == "missing":
    del states["refine"]["dense4.bias"]
    message = "missing refine/dense/bias"
  elif fault == "unexpected":
    states["output"]["dense7.weight"] = np.zeros((2, 256), np.float32)
    message = "unexpected output.dense7.weight"
  elif fault == "misshapen":
    states["refine"]["dense4.weight"] = np.zeros((128, 575), np.float32)
    message = "refine.dense4.weight of shape"
  else:
    del states["proposal"]
    message = "pnet.pt cannot be read"
  for net, state in states.items():
    save_state_dict(tmp_path / mtcnn_conversion.FILES[net], state)
  with pytest.raises(UserError, match=message):
    mtcnn_conversion.load(tmp_path)
