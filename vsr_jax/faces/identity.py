"""Whose face it is: unit vectors whose dot product is high for one person and low for two.

Two networks. MobileFace Identification V2 (github becauseofAI/MobileFace; 0.9 million parameters)
ships. IR-SE50, of ArcFace (Deng et al., CVPR 2019), is what papers on face restoration measure
with; its weights, model_ir_se50.pth, are limited to research and do not ship. Both see a face of
112x112, cut out by `align`. Inference only; batch norms use stored statistics.

Parameters are {"mobileface" or "ir_se50": tree} and say which network it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import array_files, mxnet_files, torch_files
from vsr_jax.conversion import (
  Rule,
  Transform,
  batch_norm,
  conv2d,
  convert,
  dense,
  depthwise,
  with_bias,
)
from vsr_jax.faces import align as similarity
from vsr_jax.layers import ConvNorm, DenseOfImage, DepthwiseNorm, FrozenBatchNorm, PRelu

ASSET = Path(__file__).parent / "assets" / "mobileface.npz"

SIZE = 112  # pixels, a face's side

# Where eyes, nose and mouth corners (left before right, as seen) lie in a face of SIZE: ArcFace's
# template, used by all that compare with it.
TEMPLATE = np.array(
  [
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
  ]
)

Params = Mapping[str, Any]


class InvertedResidual(nn.Module):
  """A 1x1 convolution, a depthwise 3x3 one and a 1x1 one, normalised; a skip where sizes agree."""

  hidden: int
  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu6(ConvNorm(self.hidden, 1, epsilon=1e-3, name="expand")(x))
    y = nn.relu6(DepthwiseNorm(self.stride, 1e-3, name="depthwise")(y))
    y = ConvNorm(self.features, 1, epsilon=1e-3, name="project")(y)
    return x + y if self.stride == 1 else y


class MobileFace(nn.Module):
  """Faces RGB [n 112 112 3] in [-1, 1] -> [n 256]; MobileNet's second version, narrow."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu6(ConvNorm(32, 3, 2, use_bias=True, epsilon=1e-3, name="stem")(x))
    stages = [(96, 96, 32), (96, 96, 32), (96, 192, 64), (192, 384, 128)]
    for i, (first, hidden, features) in enumerate(stages):
      x = InvertedResidual(first, features, 2, name=f"block{i}_0")(x)
      x = InvertedResidual(hidden, features, name=f"block{i}_1")(x)
      x = InvertedResidual(hidden, features, name=f"block{i}_2")(x)
    return FrozenBatchNorm(1e-3, name="norm")(DenseOfImage(256, name="dense")(x))


class SqueezeExcite(nn.Module):
  """Weighs each channel by a number in (0, 1) that all channels' means decide: [n h w c]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    y = x.mean((1, 2), keepdims=True)
    y = nn.relu(nn.Dense(c // 16, use_bias=False, name="squeeze")(y))
    return x * nn.sigmoid(nn.Dense(c, use_bias=False, name="excite")(y))


class ResidualUnit(nn.Module):
  """Norm, 3x3, PReLU, 3x3 at the stride, norm, channel weights; a skip, projected if widths differ.

  That of the network in github TreB1eN/InsightFace_Pytorch, from which model_ir_se50.pth comes.
  """

  features: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = FrozenBatchNorm(name="norm")(x)
    y = nn.Conv(self.features, (3, 3), padding=1, use_bias=False, name="conv1")(y)
    y = ConvNorm(self.features, 3, self.stride, name="conv2")(PRelu(name="prelu")(y))
    y = SqueezeExcite(name="channels")(y)
    if x.shape[-1] == self.features:
      x = x[:, :: self.stride, :: self.stride]
    else:
      x = ConvNorm(self.features, 1, self.stride, name="skip")(x)
    return x + y


class IRSE50(nn.Module):
  """Faces RGB [n 112 112 3] in [-1, 1] -> [n 512].

  Attributes:
    widths: channels of the four stages, each of which begins by halving the size.
    depths: units of each.
    features: length of the vector.
  """

  widths: tuple[int, ...] = (64, 128, 256, 512)
  depths: tuple[int, ...] = (3, 4, 14, 3)
  features: int = 512

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = PRelu(name="stem_prelu")(ConvNorm(self.widths[0], name="stem")(x))
    units = [
      (width, 1 if i else 2)
      for width, depth in zip(self.widths, self.depths, strict=True)
      for i in range(depth)
    ]
    for i, (width, stride) in enumerate(units):
      x = ResidualUnit(width, stride, name=f"unit{i}")(x)
    x = DenseOfImage(self.features, use_bias=True, name="dense")(FrozenBatchNorm(name="norm1")(x))
    return FrozenBatchNorm(name="norm2")(x)


@jax.default_matmul_precision("float32")
def embed(params: Params, faces: jax.Array) -> jax.Array:
  """Describes whose faces they are.

  Args:
    params: from `load`.
    faces: RGB [n 112 112 3] in [0, 255], from `align`.

  Returns:
    float32 [n d] of length 1; d is 256 for MobileFace, 512 for IR-SE50.

  Raises:
    ValueError: the shape is another.
  """
  if faces.ndim != 4 or faces.shape[1:] != (SIZE, SIZE, 3):
    raise ValueError(f"faces of shape {faces.shape}, not [n {SIZE} {SIZE} 3]")
  x = faces.astype(jnp.float32) - 127.5
  if "mobileface" in params:
    y = MobileFace().apply({"params": params["mobileface"]}, x / 128)
  else:
    y = IRSE50().apply({"params": params["ir_se50"]}, x / 127.5)
  return y / jnp.linalg.norm(y, axis=-1, keepdims=True)


def align(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
  """Cuts a face out as the networks were trained: `TEMPLATE`, least squares, black outside.

  Args:
    frame: uint8 RGB [h w 3].
    landmarks: [5 2], eyes, nose and mouth corners in pixels of the frame.

  Returns:
    uint8 RGB [112 112 3].

  Raises:
    ValueError: the landmarks are (nearly) one point.
  """
  matrices, _ = similarity.fit(landmarks[None], SIZE, robust=False, template=TEMPLATE)
  return similarity.align(frame, matrices[0], SIZE, border=(0, 0, 0))


def load(path: str | Path | None = None) -> dict[str, Any]:
  """Reads the parameters for `embed`.

  Args:
    path: None for MobileFace, which ships; MobileFace_Identification_V2-0000.params; or a PyTorch
      file of IR-SE50, such as model_ir_se50.pth.

  Returns:
    the parameters, on the default device.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  if path is None:
    return array_files.load_params(ASSET, mobileface_template())
  if Path(path).suffix == ".params":
    params = from_mxnet(mxnet_files.load(path), str(path))
  else:
    params = from_state_dict(
      torch_files.unwrap(torch_files.load(path), source=str(path)), str(path)
    )
  return jax.tree.map(jnp.asarray, params)


def mobileface_template() -> dict[str, Any]:
  """The shapes of MobileFace's parameters."""
  return _template("mobileface", MobileFace())


def from_mxnet(state: Mapping[str, np.ndarray], source: str = "state dict") -> dict[str, Any]:
  """Converts the arrays of MobileFace_Identification_V2-0000.params."""
  return convert(state, mobileface_rules(), mobileface_template(), source)


def from_state_dict(state: Mapping[str, np.ndarray], source: str = "state dict") -> dict[str, Any]:
  """Converts a state dict of IR-SE50."""
  return convert(state, ir_se50_rules(), _template("ir_se50", IRSE50()), source)


def _template(name: str, net: MobileFace | IRSE50) -> dict[str, Any]:
  faces = jnp.zeros((1, SIZE, SIZE, 3))
  return {name: jax.eval_shape(net.init, jax.random.key(0), faces)["params"]}


def mobileface_rules() -> list[Rule]:
  """The table of MobileFace's file, whose convolutions are numbered in the order of computing."""
  table = [
    Rule("conv1_weight", "mobileface/stem/conv/kernel", conv2d),
    Rule("conv1_bias", "mobileface/stem/conv/bias"),
    *_mxnet_norm("bn1", "mobileface/stem/norm"),
    Rule("fc5_weight", "mobileface/dense/kernel", _after_flattening(4)),
    *_mxnet_norm("fc5_bn", "mobileface/norm"),
  ]
  for i in range(12):
    block = f"mobileface/block{i // 3}_{i % 3}"
    for j, (ours, transform) in enumerate(
      [("expand/conv", conv2d), ("depthwise", depthwise), ("project/conv", conv2d)], 3 * i
    ):
      table.append(Rule(f"convolution{j}_weight", f"{block}/{ours}/kernel", transform))
      table += _mxnet_norm(f"batchnorm{j}", f"{block}/{ours.removesuffix('/conv')}/norm")
  return table


def _mxnet_norm(theirs: str, ours: str) -> list[Rule]:
  names = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_var": "var"}
  return [Rule(f"{theirs}_{name}", f"{ours}/{leaf}") for name, leaf in names.items()]


def ir_se50_rules() -> list[Rule]:
  """The table of model_ir_se50.pth and its kin."""
  unit, ours = r"body\.(\d+)", r"ir_se50/unit\1"
  return [
    Rule(r"input_layer\.0\.weight", "ir_se50/stem/conv/kernel", conv2d),
    *batch_norm(r"input_layer\.1", "ir_se50/stem/norm"),
    Rule(r"input_layer\.2\.weight", "ir_se50/stem_prelu/slope"),
    *batch_norm(rf"{unit}\.res_layer\.0", f"{ours}/norm"),
    Rule(rf"{unit}\.res_layer\.1\.weight", f"{ours}/conv1/kernel", conv2d),
    Rule(rf"{unit}\.res_layer\.2\.weight", f"{ours}/prelu/slope"),
    Rule(rf"{unit}\.res_layer\.3\.weight", f"{ours}/conv2/conv/kernel", conv2d),
    *batch_norm(rf"{unit}\.res_layer\.4", f"{ours}/conv2/norm"),
    Rule(rf"{unit}\.res_layer\.5\.fc1\.weight", f"{ours}/channels/squeeze/kernel", dense),
    Rule(rf"{unit}\.res_layer\.5\.fc2\.weight", f"{ours}/channels/excite/kernel", dense),
    Rule(rf"{unit}\.shortcut_layer\.0\.weight", f"{ours}/skip/conv/kernel", conv2d),
    *batch_norm(rf"{unit}\.shortcut_layer\.1", f"{ours}/skip/norm"),
    *batch_norm(r"output_layer\.0", "ir_se50/norm1"),
    *with_bias(r"output_layer\.3", "ir_se50/dense", _after_flattening(7)),
    *batch_norm(r"output_layer\.4", "ir_se50/norm2"),
  ]


def _after_flattening(side: int) -> Transform:
  """A matrix [out, c * side * side] over a flattened image, to a kernel [side side c out]."""
  return lambda x: conv2d(x.reshape(len(x), -1, side, side))
