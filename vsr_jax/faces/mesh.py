"""468 landmarks of a face in three dimensions: MediaPipe's face mesh.

Kartynnik, Ablavatski, Grishchenko, Grundmann: Real-time Facial Surface Geometry from Monocular
Video on Mobile GPUs, CVPR workshops 2019, arXiv 1907.06724. The network is that of MediaPipe 0.10
(face_landmark.tflite, 0.6 million parameters), without its attention variant. Inference only.

Parameters are {"mesh": tree}, and ship.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import array_files, tflite_files
from vsr_jax.conversion import Rule, Transform, as_is, convert
from vsr_jax.layers import DenseOfImage, PRelu
from vsr_jax.ops.channels import broadcast_channels, pad_channels
from vsr_jax.ops.depthwise import depthwise_convolve_strided
from vsr_jax.ops.pooling import max_pool

ASSET = Path(__file__).parent / "assets" / "mesh.npz"

SIZE = 192  # pixels, a face's side
COUNT = 468  # landmarks

Params = Mapping[str, Any]


class Block(nn.Module):
  """A depthwise 3x3 and a 1x1 convolution beside a skip, then PReLU: [n h w c].

  At stride 2 the skip is a maximum over 2x2 pixels, and the depthwise convolution begins at the
  first pixel's centre: an even side is padded at its end only, as TensorFlow does. Channels that
  the skip lacks are zeros.
  """

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    kernel = self.param("depthwise_kernel", nn.initializers.lecun_normal(), (3, 3, c))
    bias = self.param("depthwise_bias", nn.initializers.zeros, (c,))
    y = depthwise_convolve_strided(x, kernel, self.stride, self.stride - 1)
    y = nn.Conv(self.features, (1, 1), name="pointwise")(y + broadcast_channels(bias, y))
    if self.stride == 2:
      x = max_pool(x, 2, 2)
    return PRelu(name="prelu")(pad_channels(x, self.features - c) + y)


class Head(nn.Module):
  """Features [n 6 6 128] -> numbers [n features]: blocks, a narrow one, and all of 3x3 pixels."""

  blocks: int
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.blocks):
      x = Block(128, 1 if i else 2, name=f"block{i}")(x)
    x = PRelu(name="prelu")(nn.Conv(32, (1, 1), name="narrow")(x))
    x = Block(32, name="last")(x)
    return DenseOfImage(self.features, use_bias=True, name="dense")(x)


class FaceMesh(nn.Module):
  """Faces RGB [n 192 192 3] in [0, 1] -> landmarks [n 1404] and logits [n 1]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = PRelu(name="stem_prelu")(nn.Conv(16, (3, 3), (2, 2), "SAME", name="stem")(x))
    widths = (16, 16, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128)
    for i, width in enumerate(widths):
      halved = i in (2, 5, 8, 11)
      x = Block(width, 2 if halved else 1, name=f"block{i}")(x)
    return Head(3, 3 * COUNT, name="landmarks")(x), Head(1, 1, name="score")(x)


@jax.default_matmul_precision("float32")
def landmarks(params: Params, faces: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Finds the landmarks of faces.

  Args:
    params: from `load`.
    faces: RGB [n 192 192 3] in [0, 1], an upright face in each. MediaPipe gives it the square about
      the middle of the landmarks, 1.5 times their extent, turned so that the eyes are level. In
      a crop of `faces.align` with 512 pixels that is a square of 493 about (254, 302), in the mean
      of 48 portraits. The whole crop, reduced to 192 pixels by area, serves as well: the landmarks
      are then 3.6 pixels of 512 from those in MediaPipe's square, on average of these.

  Returns:
    float32 [n 468 3]: x and y in pixels of `faces`, z in the same unit, smaller closer; in
    MediaPipe's order. And float32 [n], from 0 to 1: how sure it is that there is a face.

  Raises:
    ValueError: the shape is another.
  """
  if faces.ndim != 4 or faces.shape[1:] != (SIZE, SIZE, 3):
    raise ValueError(f"faces of shape {faces.shape}, not [n {SIZE} {SIZE} 3]")
  points, logits = FaceMesh().apply({"params": params["mesh"]}, faces.astype(jnp.float32))
  return points.reshape(-1, COUNT, 3), nn.sigmoid(logits[:, 0])


def load(path: str | Path | None = None) -> dict[str, Any]:
  """Reads the parameters for `landmarks`.

  Args:
    path: None for what ships, or MediaPipe's face_landmark.tflite.

  Returns:
    the parameters, on the default device.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  if path is None:
    return array_files.load_params(ASSET, template())
  return jax.tree.map(jnp.asarray, from_tflite(tflite_files.load(path), str(path)))


def template() -> dict[str, Any]:
  """The shapes of the parameters."""
  faces = jnp.zeros((1, SIZE, SIZE, 3))
  return {"mesh": jax.eval_shape(FaceMesh().init, jax.random.key(0), faces)["params"]}


def from_tflite(state: Mapping[str, np.ndarray], source: str = "constants") -> dict[str, Any]:
  """Converts the constants of face_landmark.tflite."""
  return convert(state, rules(), template(), source)


def rules() -> list[Rule]:
  """The table of face_landmark.tflite, whose layers are numbered by kind."""
  table = [
    *_conv("conv2d_1", "mesh/stem"),
    *_prelu(1, "mesh/stem_prelu"),
    Rule(r"channel_padding_\d/Paddings", None),  # how many channels a skip lacks
  ]
  for i in range(14):
    table += _block(i + 1, i + 2, i + 2, f"mesh/block{i}")
  for i in range(3):
    table += _block(i + 15, i + 16, i + 16, f"mesh/landmarks/block{i}")
  table += _head(18, 19, "mesh/landmarks")
  table += _block(23, 28, 26, "mesh/score/block0")
  table += _head(24, 29, "mesh/score", prelu=27)
  return table


def _head(depthwise: int, conv: int, ours: str, prelu: int | None = None) -> list[Rule]:
  """What follows a head's blocks; PReLUs have the convolutions' numbers where none is given."""
  prelu = conv if prelu is None else prelu
  return [
    *_conv(f"conv2d_{conv}", f"{ours}/narrow"),
    *_prelu(prelu, f"{ours}/prelu"),
    *_block(depthwise, conv + 1, prelu + 1, f"{ours}/last"),
    *_conv(f"conv2d_{conv + 2}", f"{ours}/dense"),
  ]


def _block(depthwise: int, conv: int, prelu: int, ours: str) -> list[Rule]:
  theirs = f"depthwise_conv2d_{depthwise}"
  return [
    Rule(f"{theirs}/Kernel", f"{ours}/depthwise_kernel", lambda x: x.squeeze(0)),
    Rule(f"{theirs}/Bias", f"{ours}/depthwise_bias"),
    *_conv(f"conv2d_{conv}", f"{ours}/pointwise"),
    *_prelu(prelu, f"{ours}/prelu"),
  ]


def _conv(theirs: str, ours: str) -> list[Rule]:
  """A kernel [out h w in] and its bias."""
  leaves: list[tuple[str, str, Transform]] = [
    ("Kernel", "kernel", lambda x: x.transpose(1, 2, 3, 0)),
    ("Bias", "bias", as_is),
  ]
  return [Rule(f"{theirs}/{name}", f"{ours}/{leaf}", transform) for name, leaf, transform in leaves]


def _prelu(number: int, ours: str) -> list[Rule]:
  return [Rule(f"p_re_lu_{number}/Alpha", f"{ours}/slope", np.ravel)]
