"""MTCNN: faces and five landmarks by a cascade of three small networks (Zhang et al., 2016).

The paper: Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks,
IEEE Signal Processing Letters 23(10), arXiv 1604.02878. Networks, weights, constants and the
order of steps are those of facenet-pytorch 2.6.0 (MIT, copyright 2019 Timothy Esler), whose
`MTCNN.detect(landmarks=True)` this equals but for rounding. Everything is float32.

The networks are compiled for shapes that depend on the frames' size only. The proposals, whose
number varies, are selected on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax.faces.detections import Detections, none_found, suppress
from vsr_jax.layers import PRelu

THRESHOLDS = (0.6, 0.7, 0.7)  # least score after each of the networks
FACTOR = 0.709  # between the pyramid's levels: half the area
MIN_FACE = 20  # pixels
_CELL = 12  # receptive field of the proposal network, in pixels; its stride is 2
_REFINE_BATCH, _OUTPUT_BATCH = 32, 8  # crops of one compiled call; the last is padded

Params = Mapping[str, Any]
Maps = Sequence[tuple[np.ndarray, np.ndarray]]  # by level, scores [h w], corrections [h w 4]


def _conv(features: int, size: int, name: str) -> nn.Conv:
  return nn.Conv(features, (size, size), padding="VALID", name=name)


def _max_pool(x: jax.Array, size: int) -> jax.Array:
  """Maxima of [b h w c] at a stride of 2; windows may reach over the end (PyTorch's ceil_mode)."""
  over = [(0, -(n - size) % 2) for n in x.shape[1:3]]
  return nn.max_pool(x, (size, size), (2, 2), over)


class ProposalNet(nn.Module):
  """Images [b h w 3] to a score [b h' w'] and a correction [b h' w' 4] for each cell."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = PRelu(name="prelu1")(_conv(10, 3, "conv1")(x))
    x = _max_pool(x, 2)
    x = PRelu(name="prelu2")(_conv(16, 3, "conv2")(x))
    x = PRelu(name="prelu3")(_conv(32, 3, "conv3")(x))
    return _face_score(_conv(2, 1, "score")(x)), _conv(4, 1, "box")(x)


class RefineNet(nn.Module):
  """Crops [n 24 24 3] to a score [n] and a correction [n 4]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = _max_pool(PRelu(name="prelu1")(_conv(28, 3, "conv1")(x)), 3)
    x = _max_pool(PRelu(name="prelu2")(_conv(48, 3, "conv2")(x)), 3)
    x = PRelu(name="prelu3")(_conv(64, 2, "conv3")(x))
    x = PRelu(name="prelu4")(nn.Dense(128, name="dense")(x.reshape(len(x), -1)))
    return _face_score(nn.Dense(2, name="score")(x)), nn.Dense(4, name="box")(x)


class OutputNet(nn.Module):
  """Crops [n 48 48 3] to a score [n], a correction [n 4] and landmarks [n 10], all x first."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = _max_pool(PRelu(name="prelu1")(_conv(32, 3, "conv1")(x)), 3)
    x = _max_pool(PRelu(name="prelu2")(_conv(64, 3, "conv2")(x)), 3)
    x = _max_pool(PRelu(name="prelu3")(_conv(64, 3, "conv3")(x)), 2)
    x = PRelu(name="prelu4")(_conv(128, 2, "conv4")(x))
    x = PRelu(name="prelu5")(nn.Dense(256, name="dense")(x.reshape(len(x), -1)))
    score = _face_score(nn.Dense(2, name="score")(x))
    return score, nn.Dense(4, name="box")(x), nn.Dense(10, name="landmarks")(x)


def _face_score(logits: jax.Array) -> jax.Array:
  """The softmax's second value."""
  return jax.nn.sigmoid(logits[..., 1] - logits[..., 0])


NETS: dict[str, nn.Module] = {
  "proposal": ProposalNet(),
  "refine": RefineNet(),
  "output": OutputNet(),
}
_SIDES = {"proposal": _CELL, "refine": 24, "output": 48}


def init(key: jax.Array) -> dict[str, Any]:
  """Random parameters; under `jax.eval_shape` the template for the converter."""
  keys = jax.random.split(key, len(NETS))
  images = {name: jnp.zeros((1, side, side, 3)) for name, side in _SIDES.items()}
  return {
    name: net.init(k, images[name])["params"]
    for k, (name, net) in zip(keys, NETS.items(), strict=True)
  }


def detect(
  params: Params,
  frames: Sequence[np.ndarray],
  *,
  min_face: float = MIN_FACE,
  thresholds: tuple[float, float, float] = THRESHOLDS,
  factor: float = FACTOR,
) -> list[Detections]:
  """Finds the faces of frames.

  Args:
    params: as `init` makes them.
    frames: uint8 RGB [h w 3], all of one size, for which the pyramid is compiled once.
    min_face: side in pixels of the smallest face looked for; below 12 the frames are enlarged.
    thresholds: least score after each network.
    factor: between the pyramid's levels, below 1.

  Returns:
    The faces of each frame.
  """
  shape = frames[0].shape[:2]
  scales = pyramid_scales(shape, min_face, factor)
  if not scales:  # the frame is smaller than the smallest face
    return [none_found() for _ in frames]
  sums = [cv2.integral(np.ascontiguousarray(frame)) for frame in frames]
  sizes = tuple((int(shape[0] * s + 1), int(shape[1] * s + 1)) for s in scales)
  maps = jax.device_get([_propose(params["proposal"], s, sizes) for s in sums])
  boxes = [_proposals(levels, scales, thresholds[0]) for levels in maps]
  boxes = _refine(params["refine"], sums, boxes, thresholds[1])
  return _finish(params["output"], sums, boxes, thresholds[2])


def pyramid_scales(shape: tuple[int, int], min_face: float, factor: float) -> list[float]:
  """The scales at which the proposal network sees a frame of shape (h, w), the largest first."""
  scale = _CELL / min_face
  side = min(shape) * scale
  scales = []
  while side >= _CELL:
    scales.append(scale)
    scale *= factor
    side *= factor
  return scales


@functools.partial(jax.jit, static_argnums=2)
def _propose(
  params: Params, sums: jax.Array, sizes: tuple[tuple[int, int], ...]
) -> list[tuple[jax.Array, jax.Array]]:
  """The proposal network's maps of a frame, given as its integral image, at several sizes."""
  levels = []
  for size in sizes:
    image = _area_resize(sums, size)
    score, box = NETS["proposal"].apply({"params": params}, image[None])
    levels.append((score[0], box[0]))
  return levels


def _area_resize(sums: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Means over a grid of `size`, in the networks' range; from an integral image [h+1 w+1 3].

  Cells overlap where the grid does not divide the image, as PyTorch's mode "area" has it.
  """
  (top, bottom), (left, right) = (_bins(n - 1, m) for n, m in zip(sums.shape, size, strict=False))
  rows = sums[bottom] - sums[top]
  cells = (rows[:, right] - rows[:, left]).astype(jnp.float32)
  area = (bottom - top)[:, None, None] * (right - left)[None, :, None]
  return (cells / area.astype(np.float32) - 127.5) / 128


def _bins(n: np.ndarray | int, parts: int) -> tuple[np.ndarray, np.ndarray]:
  """Start and end of each of `parts` cells of n pixels; n may be an array of lengths [k 1]."""
  i = np.arange(parts)
  return i * n // parts, -(-(i + 1) * n // parts)


def _proposals(levels: Maps, scales: list[float], threshold: float) -> np.ndarray:
  """Proposals of a frame, squares [n 4], from the proposal network's maps, after suppression."""
  rows = []
  for (score, correction), scale in zip(levels, scales, strict=True):
    y, x = np.nonzero(score >= threshold)
    corner = np.stack([x, y], 1).astype(np.float32) * 2 + 1
    boxes = np.concatenate([corner, corner + (_CELL - 1)], 1) / np.float32(scale)
    boxes = np.floor(boxes)
    kept = suppress(boxes, score[y, x], 0.5)
    level = np.concatenate([boxes, score[y, x, None], correction[y, x]], 1)
    rows.append(level[kept])
  found = np.concatenate(rows)
  found = found[suppress(found[:, :4], found[:, 4], 0.7)]
  return _squares(_corrected(found[:, :4], found[:, 5:], 0))


def _refine(
  params: Params, sums: list[np.ndarray], boxes: list[np.ndarray], threshold: float
) -> list[np.ndarray]:
  """The squares of each frame that the second network takes for faces, corrected."""
  crops, boxes = _crop_all(sums, boxes, 24)
  score, correction = _run_padded("refine", params, crops, _REFINE_BATCH)
  refined, start = [], 0
  for box in boxes:
    part = slice(start, start + len(box))
    start += len(box)
    sure = score[part] > threshold
    box, box_score, move = box[sure], score[part][sure], correction[part][sure]
    kept = suppress(box, box_score, 0.7)
    refined.append(_squares(_corrected(box[kept], move[kept], 1)))
  return refined


def _finish(
  params: Params, sums: list[np.ndarray], boxes: list[np.ndarray], threshold: float
) -> list[Detections]:
  """The faces among the squares, with their landmarks, by the third network."""
  crops, boxes = _crop_all(sums, boxes, 48)
  score, correction, points = _run_padded("output", params, crops, _OUTPUT_BATCH)
  found, start = [], 0
  for box in boxes:
    part = slice(start, start + len(box))
    start += len(box)
    sure = score[part] > threshold
    box, box_score = box[sure], score[part][sure]
    # x of all five, then y; counted from 1 before and from 0 after.
    relative = points[part][sure].reshape(-1, 2, 5).swapaxes(1, 2)
    landmarks = relative * (box[:, None, 2:] - box[:, None, :2] + 1) + box[:, None, :2] - 1
    box = _corrected(box, correction[part][sure], 1)
    kept = suppress(box, box_score, 0.7, relative_to_smaller=True, inclusive=True)
    found.append(Detections(box[kept], box_score[kept], landmarks[kept]))
  return found


def _corrected(boxes: np.ndarray, correction: np.ndarray, extra: int) -> np.ndarray:
  """Moves each side by `correction`, in units of the box's size plus `extra` pixels."""
  size = boxes[:, 2:] - boxes[:, :2] + np.float32(extra)
  return boxes + correction * np.concatenate([size, size], 1)


def _squares(boxes: np.ndarray) -> np.ndarray:
  """The squares about the boxes' centres with their longer side."""
  size = boxes[:, 2:] - boxes[:, :2]
  side = size.max(1, keepdims=True)
  corner = boxes[:, :2] + size * np.float32(0.5) - side * np.float32(0.5)
  return np.concatenate([corner, corner + side], 1)


def _crop_all(
  sums: list[np.ndarray], boxes: list[np.ndarray], size: int
) -> tuple[np.ndarray, list[np.ndarray]]:
  """Crops [n size size 3] of all frames' boxes, and the boxes that have pixels in the frame."""
  crops, inside = [], []
  for s, box in zip(sums, boxes, strict=True):
    # Pixels are counted from 1 here and the last one belongs to the box.
    height, width = s.shape[0] - 1, s.shape[1] - 1
    left, top, right, bottom = np.trunc(box).astype(np.int64).T
    left, top = np.maximum(left, 1) - 1, np.maximum(top, 1) - 1
    right, bottom = np.minimum(right, width), np.minimum(bottom, height)
    ok = (right > left) & (bottom > top)
    inside.append(box[ok])
    crops.append(_area_crops(s, left[ok], top[ok], right[ok], bottom[ok], size))
  return np.concatenate(crops), inside


def _area_crops(
  sums: np.ndarray,
  left: np.ndarray,
  top: np.ndarray,
  right: np.ndarray,
  bottom: np.ndarray,
  size: int,
) -> np.ndarray:
  """`_area_resize` of many parts [n] of one frame, on the host: [n size size 3]."""
  y0, y1 = (b + top[:, None] for b in _bins((bottom - top)[:, None], size))
  x0, x1 = (b + left[:, None] for b in _bins((right - left)[:, None], size))
  area = ((y1 - y0)[:, :, None] * (x1 - x0)[:, None, :])[..., None]
  corners = [sums[y[:, :, None], x[:, None, :]] for y in (y0, y1) for x in (x0, x1)]
  total = corners[3] - corners[2] - corners[1] + corners[0]
  return (total.astype(np.float32) / area.astype(np.float32) - np.float32(127.5)) / np.float32(128)


@functools.partial(jax.jit, static_argnums=0)
def _apply(name: str, params: Params, crops: jax.Array) -> tuple[jax.Array, ...]:
  return NETS[name].apply({"params": params}, crops)


def _run_padded(name: str, params: Params, crops: np.ndarray, batch: int) -> list[np.ndarray]:
  """Runs a network over any number of crops in batches of one shape."""
  count = len(crops)
  crops = np.pad(crops, ((0, -count % batch or (0 if count else batch)), (0, 0), (0, 0), (0, 0)))
  parts = [_apply(name, params, crops[i : i + batch]) for i in range(0, len(crops), batch)]
  parts = jax.device_get(parts)
  return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]
