"""RetinaFace: faces and five landmarks from one pass over the frame (Deng et al., CVPR 2020).

The paper: RetinaFace: Single-stage Dense Face Localisation in the Wild, arXiv 1905.00641. The
networks are those of the PyTorch versions that face restorers use: a MobileNet of a quarter
of the width or a ResNet-50, a feature pyramid, a context module a level and 1x1 heads. Inference
only; batch norms use the checkpoint's statistics. Everything is float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax.faces.detections import Detections, suppress
from vsr_jax.layers import ConvNorm, DepthwiseNorm

THRESHOLD = 0.8  # least score of a face
IOU_THRESHOLD = 0.4  # intersection over union above which two boxes are one face
STRIDES = (8, 16, 32)  # the pyramid's levels'
MEAN = (123.0, 117.0, 104.0)  # RGB mean of the backbones' training images, subtracted from frames
_VARIANCES = (0.1, 0.2)  # units of offsets and of the logarithms of sizes


def _leaky(x: jax.Array, slope: float) -> jax.Array:
  return nn.leaky_relu(x, slope) if slope else nn.relu(x)


class SeparableBlock(nn.Module):
  """A depthwise and a 1x1 convolution."""

  features: int
  stride: int
  slope: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = _leaky(DepthwiseNorm(self.stride, name="depthwise")(x), self.slope)
    return _leaky(ConvNorm(self.features, 1, name="pointwise")(x), self.slope)


class MobileNet(nn.Module):
  """Images [b h w 3] to features at the three strides; MobileNet's first version, width 1/4."""

  slope: float

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    stages = (
      ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)),
      ((128, 2), *[(128, 1)] * 5),
      ((256, 2), (256, 1)),
    )
    x = _leaky(ConvNorm(8, 3, 2, name="stem")(x), self.slope)
    outputs = []
    for i, stage in enumerate(stages, 1):
      first = 1 if i == 1 else 0  # the stem is the first stage's block 0
      for j, (features, stride) in enumerate(stage, first):
        x = SeparableBlock(features, stride, self.slope, name=f"stage{i}_{j}")(x)
      outputs.append(x)
    return outputs


class Bottleneck(nn.Module):
  """A residual block whose 3x3 convolution works on a quarter of the channels."""

  features: int
  stride: int
  project: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    narrow = self.features // 4
    y = nn.relu(ConvNorm(narrow, 1, name="conv1")(x))
    y = nn.relu(ConvNorm(narrow, 3, self.stride, name="conv2")(y))
    y = ConvNorm(self.features, 1, name="conv3")(y)
    if self.project:
      x = ConvNorm(self.features, 1, self.stride, name="skip")(x)
    return nn.relu(x + y)


class ResNet50(nn.Module):
  """Images [b h w 3] to features at the three strides."""

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    x = nn.relu(ConvNorm(64, 7, 2, name="stem")(x))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    outputs = []
    for i, blocks in enumerate((3, 4, 6, 3), 1):
      for j in range(blocks):
        stride = 2 if j == 0 and i > 1 else 1
        x = Bottleneck(128 * 2**i, stride, j == 0, name=f"layer{i}_{j}")(x)
      outputs.append(x)
    return outputs[1:]


class Pyramid(nn.Module):
  """Feature pyramid network: all levels at one width, each plus its enlarged coarser neighbour."""

  features: int
  slope: float

  @nn.compact
  def __call__(self, levels: list[jax.Array]) -> list[jax.Array]:
    fine, middle, coarse = (
      _leaky(ConvNorm(self.features, 1, name=f"output{i}")(x), self.slope)
      for i, x in enumerate(levels, 1)
    )
    middle = middle + _enlarge(coarse, middle.shape)
    middle = _leaky(ConvNorm(self.features, name="merge2")(middle), self.slope)
    fine = fine + _enlarge(middle, fine.shape)
    fine = _leaky(ConvNorm(self.features, name="merge1")(fine), self.slope)
    return [fine, middle, coarse]


def _enlarge(x: jax.Array, shape: Sequence[int]) -> jax.Array:
  """[b h w c] to the height and width of `shape`, each pixel its nearest on the left or above."""
  rows, columns = (np.arange(n) * m // n for n, m in zip(shape[1:3], x.shape[1:3], strict=True))
  return x[:, rows][:, :, columns]


class Context(nn.Module):
  """Three receptive fields side by side: 3x3, 5x5 and 7x7, by stacked 3x3 convolutions."""

  features: int
  slope: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    narrow = self.features // 4
    by3 = ConvNorm(self.features // 2, name="by3")(x)
    x = _leaky(ConvNorm(narrow, name="by5_1")(x), self.slope)
    by5 = ConvNorm(narrow, name="by5_2")(x)
    x = _leaky(ConvNorm(narrow, name="by7_2")(x), self.slope)
    by7 = ConvNorm(narrow, name="by7_3")(x)
    return nn.relu(jnp.concatenate([by3, by5, by7], axis=-1))


class Heads(nn.Module):
  """Features of the levels to logits [b n 2], boxes [b n 4] and landmarks [b n 10], as offsets."""

  anchors: int  # at every place

  @nn.compact
  def __call__(self, levels: list[jax.Array]) -> list[jax.Array]:
    outputs = []
    for name, size in (("scores", 2), ("boxes", 4), ("landmarks", 10)):
      parts = [
        nn.Conv(self.anchors * size, (1, 1), name=f"{name}{i}")(x).reshape(len(x), -1, size)
        for i, x in enumerate(levels)
      ]
      outputs.append(jnp.concatenate(parts, axis=1))
    return outputs


@dataclasses.dataclass(frozen=True)
class RetinaFace:
  """A variant of RetinaFace.

  Attributes:
    body: the backbone.
    features: width of the pyramid and the context modules.
    slope: negative slope of the leaky ReLUs after the backbone (the MobileNet has its own).
    anchors: for each level, the sides in pixels of the anchor squares at every position.
  """

  body: MobileNet | ResNet50
  features: int
  slope: float
  anchors: tuple[tuple[int, ...], ...]

  def nets(self) -> dict[str, nn.Module]:
    """The sub-networks, named as in the parameters."""
    return {
      "body": self.body,
      "pyramid": Pyramid(self.features, self.slope),
      **{f"context{i}": Context(self.features, self.slope) for i in (1, 2, 3)},
      "heads": Heads(len(self.anchors[0])),
    }


_ANCHORS = ((16, 32), (64, 128), (256, 512))
MOBILE = RetinaFace(MobileNet(0.1), 64, 0.1, _ANCHORS)
# Face-Detector-1MB-with-landmark trained the same layers with plain ReLUs and smaller anchors.
MOBILE_1MB = RetinaFace(MobileNet(0.0), 64, 0.0, ((10, 20), (32, 64), (128, 256)))
RESNET50 = RetinaFace(ResNet50(), 256, 0.0, _ANCHORS)


def init(net: RetinaFace, key: jax.Array) -> dict[str, Any]:
  """Random parameters; under `jax.eval_shape` the template for the converter."""
  params: dict[str, Any] = {}

  def initialise(name: str, x: Any) -> Any:
    module = net.nets()[name]
    params[name] = module.init(jax.random.fold_in(key, len(params)), x)["params"]
    return module.apply({"params": params[name]}, x)

  _forward(initialise, jnp.zeros((1, 32, 32, 3)))
  return params


def _forward(call: Callable[[str, Any], Any], images: jax.Array) -> list[jax.Array]:
  """The whole network; `call` applies a sub-network by its name."""
  levels = call("pyramid", call("body", images))
  return call("heads", [call(f"context{i}", x) for i, x in enumerate(levels, 1)])


def anchor_boxes(net: RetinaFace, height: int, width: int) -> np.ndarray:
  """The anchors of an image, [n 4] float32: centre x, centre y, width, height in pixels."""
  levels = []
  for stride, sides in zip(STRIDES, net.anchors, strict=True):
    y, x, side = np.meshgrid(
      (np.arange(-(-height // stride)) + 0.5) * stride,
      (np.arange(-(-width // stride)) + 0.5) * stride,
      sides,
      indexing="ij",
    )
    levels.append(np.stack([x, y, side, side], -1).reshape(-1, 4))
  return np.concatenate(levels).astype(np.float32)


def forward(
  net: RetinaFace, params: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Scores, boxes and landmarks of every anchor.

  Args:
    net: the variant.
    params: its parameters.
    images: RGB [b h w 3] in [0, 255], any size and number type.

  Returns:
    scores [b n] in [0, 1], boxes [b n 4] (left, top, right, bottom) and landmarks [b n 5 2],
    in pixels.
  """
  nets = net.nets()
  x = images.astype(jnp.float32) - jnp.array(MEAN)[None, None, None]
  logits, boxes, points = _forward(lambda name, x: nets[name].apply({"params": params[name]}, x), x)
  anchors = jnp.asarray(anchor_boxes(net, *images.shape[1:3]))[None]
  centre, size = anchors[..., :2], anchors[..., 2:]
  middle = centre + boxes[..., :2] * _VARIANCES[0] * size
  half = size * jnp.exp(boxes[..., 2:] * _VARIANCES[1]) / 2
  points = points.reshape(*points.shape[:2], 5, 2)
  landmarks = centre[:, :, None] + points * _VARIANCES[0] * size[:, :, None]
  score = jax.nn.sigmoid(logits[..., 1] - logits[..., 0])
  return score, jnp.concatenate([middle - half, middle + half], -1), landmarks


_forward_jit = jax.jit(forward, static_argnums=0)


def detect(
  net: RetinaFace,
  params: Mapping[str, Any],
  frames: Sequence[np.ndarray],
  *,
  threshold: float = THRESHOLD,
) -> list[Detections]:
  """Finds the faces of frames.

  Args:
    net: the variant.
    params: its parameters.
    frames: uint8 RGB [h w 3], all of one size; compiled once a size and number of them.
    threshold: least score.

  Returns:
    The faces of each frame.
  """
  outputs = jax.device_get(_forward_jit(net, params, np.stack(frames)))
  found = []
  for score, box, landmarks in zip(*outputs, strict=True):
    sure = score > threshold
    every = Detections(box[sure], score[sure], landmarks[sure])
    found.append(every[suppress(every.boxes, every.scores, IOU_THRESHOLD)])
  return found
