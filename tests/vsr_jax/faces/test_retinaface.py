"""RetinaFace against the PyTorch code that the released KEEP runs; the converter.

parity/retinaface.npz: scores, boxes and landmarks of every anchor of a made-up 76x101 picture,
with the deterministic weights of parity/weights.py (seed 77, gains below), for both backbones; and
what the same code, with the ReLUs and anchors of Face-Detector-1MB-with-landmark, finds with that
project's released weights in frame 100 of faces/liveportrait_s18.mp4.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import weights
from tests.support.torch_writer import save_state_dict
from vsr_jax import video
from vsr_jax.errors import UserError
from vsr_jax.faces import retinaface, retinaface_conversion

PARITY = Path(__file__).parents[2] / "parity"
NETS = {"mobile": retinaface.MOBILE, "resnet50": retinaface.RESNET50}
GAINS = {"mobile": 1.0, "resnet50": 0.75}  # of the weights; more, and its boxes are 1e8 px
run = jax.jit(retinaface.forward, static_argnums=0)


@functools.cache
def golden() -> dict[str, np.ndarray]:
  with np.load(PARITY / "retinaface.npz") as file:
    return dict(file)


@functools.cache
def released(name: str) -> dict[str, np.ndarray]:
  """A state dict of the released layout."""
  return weights.state_dict(PARITY / f"retinaface_{name}.manifest.json", 77, GAINS[name])


def picture() -> np.ndarray:
  pixels = np.rint(weights.inputs((3, 76, 101), 5) * 255)
  return pixels.astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("name", ["mobile", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_equals_the_released_code(name, tmp_path):
  """From a file of the released layout, its keys as data-parallel training leaves them."""
  file = tmp_path / "detector.pth"
  save_state_dict(file, {f"module.{key}": value for key, value in released(name).items()})
  params = retinaface_conversion.load(NETS[name], file)
  got = run(NETS[name], params, jnp.asarray(picture())[None])
  for key, value in zip(("scores", "boxes", "landmarks"), got, strict=True):
    want = golden()[f"{name}/{key}"]
    # The reference's float32 rounding through 30 or 60 layers; boxes are up to 1,000 px.
    error = np.abs(np.asarray(value[0]) - want).max() / np.abs(want).max()
    assert error < 1e-5, key


def test_finds_what_the_released_code_finds(shared):
  file = shared / "weights" / "retinaface_mobilenet0.25_Final.pth"
  params = retinaface_conversion.load(retinaface.MOBILE_1MB, file)
  clip = str(shared / "data" / "faces" / "liveportrait_s18.mp4")
  with video.open_reader(clip, 100, 101) as reader:
    frame = next(reader).image
  found, mirrored = retinaface.detect(
    retinaface.MOBILE_1MB, params, [frame, np.ascontiguousarray(frame[:, ::-1])]
  )
  want = golden()["real"]  # boxes, scores, landmarks
  assert len(found) == len(want)
  # Rounding; measured 2e-4 px.
  np.testing.assert_allclose(found.boxes, want[:, :4], atol=0.01)
  np.testing.assert_allclose(found.scores, want[:, 4], atol=1e-5)
  np.testing.assert_allclose(found.landmarks.reshape(-1, 10), want[:, 5:], atol=0.01)
  # The mirrored frame of the same batch: the same face, to what the network is not symmetric in.
  flipped = frame.shape[1] - mirrored.landmarks[0, [1, 0, 2, 4, 3], 0]
  np.testing.assert_allclose(flipped, found.landmarks[0, :, 0], atol=15)


@functools.cache
def param_shapes(net):
  return jax.eval_shape(functools.partial(retinaface.init, net), jax.random.key(0))


@pytest.mark.parametrize(
  ("net", "count"),
  [
    (retinaface.MOBILE, 426_608),
    (retinaface.MOBILE_1MB, 426_608),
    (retinaface.RESNET50, 27_293_600),
  ],
  ids=["mobile", "mobile_1mb", "resnet50"],
)
def test_parameter_count(net, count):
  leaves = jax.tree_util.tree_leaves_with_path(param_shapes(net))
  learned = [leaf.size for path, leaf in leaves if path[-1].key not in ("mean", "var")]
  assert sum(learned) == count


def test_the_released_layout_fills_the_whole_resnet():
  manifest = json.loads((PARITY / "retinaface_resnet50.manifest.json").read_text())
  zero = np.zeros((), np.float32)
  state = {key: np.broadcast_to(zero, shape) for key, shape in manifest.items()}
  params = retinaface_conversion.from_state_dict(retinaface.RESNET50, state)
  counters = sum(key.endswith("num_batches_tracked") for key in manifest)
  total = sum(int(np.prod(shape)) for shape in manifest.values())
  assert sum(x.size for x in jax.tree.leaves(params)) == total - counters


@pytest.mark.parametrize("shape", [(1, 1), (33, 200), (100, 31)])
def test_any_size_has_an_anchor_for_every_output(shape):
  shapes = param_shapes(retinaface.MOBILE)
  forward = functools.partial(retinaface.forward, retinaface.MOBILE)
  image = jax.ShapeDtypeStruct((2, *shape, 3), jnp.uint8)
  score, boxes, landmarks = jax.eval_shape(forward, shapes, image)
  count = len(retinaface.anchor_boxes(retinaface.MOBILE, *shape))
  assert (score.shape, boxes.shape, landmarks.shape) == (
    (2, count),
    (2, count, 4),
    (2, count, 5, 2),
  )


def test_anchors():
  """Two squares at every place; places row by row, levels from fine to coarse."""
  anchors = retinaface.anchor_boxes(retinaface.MOBILE, 33, 65)
  assert len(anchors) == 2 * (5 * 9 + 3 * 5 + 2 * 3)
  assert anchors[:3].tolist() == [[4, 4, 16, 16], [4, 4, 32, 32], [12, 4, 16, 16]]
  assert anchors[-1].tolist() == [80, 48, 512, 512]


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen", "another model"])
def test_what_does_not_fit_is_named(fault):
  state = dict(released("mobile"))
  net = retinaface.MOBILE
  if fault == "missing":
    del state["ssh2.conv7X7_2.1.running_var"]
    message = "missing context2/by7_2/norm/var"
  elif fault == "unexpected":
    state["body.fc.weight"] = np.zeros((3, 3), np.float32)
    message = "unexpected body.fc.weight"
  elif fault == "misshapen":
    state["ClassHead.0.conv1x1.weight"] = np.zeros((6, 64, 1, 1), np.float32)
    message = "ClassHead.0.conv1x1.weight of shape"
  else:
    net = retinaface.RESNET50
    message = "unexpected body.stage1.0.0.weight"
  with pytest.raises(UserError, match=message):
    retinaface_conversion.from_state_dict(net, state)
