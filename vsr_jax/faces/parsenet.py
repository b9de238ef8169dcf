"""ParseNet: semantic segmentation of an aligned face (from PSFR-GAN: Chen et al., CVPR 2021).

The released KEEP uses it as a mask for pasting: skin, features, ears and hair are pasted, but not
background, hat, necklace, neck and clothes. Inference only: batch norms use stored statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import torch_files
from vsr_jax.conversion import Rule, batch_norm, convert, with_bias
from vsr_jax.layers import FrozenBatchNorm

SIZE = 512  # pixels, the side of the faces that it was trained with

# Classes that are not pasted: background, hat, necklace, neck and cloth, in CelebAMask-HQ's order
# of 19 (... 13 hair, 14 hat, 15 earring, 16 necklace, 17 neck, 18 cloth).
_LEFT_ALONE = (0, 14, 16, 17, 18)

_BLUR = 101, 11.0  # kernel and sigma in pixels of a face of 512, applied twice
_BORDER = 10  # pixels at the edge that are never pasted


def _conv(x: jax.Array, features: int, name: str, stride: int = 1, bias: bool = False) -> jax.Array:
  """A 3x3 convolution of [b h w c], reflected at the borders."""
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
  return nn.Conv(features, (3, 3), (stride, stride), "VALID", use_bias=bias, name=name)(x)


def _double(x: jax.Array) -> jax.Array:
  return x.repeat(2, axis=1).repeat(2, axis=2)


class ResidualBlock(nn.Module):
  """Two normalised 3x3 convolutions and a skip: [b h w c] at the same, half or double the size."""

  features: int
  scale: str = "same"  # or "down", "up"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    stride = 2 if self.scale == "down" else 1
    if self.scale == "up":
      x = _double(x)
    y = nn.leaky_relu(FrozenBatchNorm(name="norm1")(_conv(x, self.features, "conv1")), 0.2)
    y = FrozenBatchNorm(name="norm2")(_conv(y, self.features, "conv2", stride))
    if self.scale != "same" or x.shape[-1] != self.features:
      x = _conv(x, self.features, "skip", stride, bias=True)
    return x + y


class ParseNet(nn.Module):
  """[b h w 3] in [-1, 1], sides multiples of 16 -> logits [b h w classes].

  Attributes:
    width: channels at full size; four halvings double them up to `limit`.
    limit: the most channels.
    depth: number of blocks at the smallest size.
    classes: number of classes.
  """

  width: int = 64
  limit: int = 256
  depth: int = 10
  classes: int = 19

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    widths = [min(self.width * 2**i, self.limit) for i in range(5)]
    x = _conv(x, widths[0], "first", bias=True)
    for i, features in enumerate(widths[1:]):
      x = ResidualBlock(features, "down", name=f"down{i + 1}")(x)
    y = x
    for i in range(self.depth):
      y = ResidualBlock(widths[-1], name=f"body{i}")(y)
    x += y
    for i, features in enumerate(widths[-2::-1]):
      x = ResidualBlock(features, "up", name=f"up{i}")(x)
    return _conv(x, self.classes, "last", bias=True)


def rules() -> list[Rule]:
  """The table of parsing_parsenet.pth."""
  block = r"{}\.(\d+)"
  return [
    *with_bias(r"encoder\.0\.conv2d", "first"),
    *_block(block.format("encoder"), "down"),
    *_block(block.format("body"), "body"),
    *_block(block.format("decoder"), "up"),
    *with_bias(r"out_mask_conv\.conv2d", "last"),
    Rule(r"out_img_conv\.conv2d\.(weight|bias)", None),  # the face again, for training
  ]


def _block(theirs: str, ours: str) -> list[Rule]:
  ours = rf"{ours}\1"
  normed = rf"{theirs}\.conv([12])\.norm\.norm"
  return [
    *with_bias(rf"{theirs}\.shortcut_func\.conv2d", f"{ours}/skip"),
    *with_bias(rf"{theirs}\.conv([12])\.conv2d", rf"{ours}/conv\2"),
    *batch_norm(normed, rf"{ours}/norm\2"),
  ]


def load(path: str | Path) -> dict[str, Any]:
  """Reads the released checkpoint, parsing_parsenet.pth, as parameters of `ParseNet()`.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  state = torch_files.unwrap(torch_files.load(path), source=str(path))
  return jax.tree.map(jnp.asarray, from_state_dict(state, str(path)))


def from_state_dict(
  state: Mapping[str, np.ndarray], source: str = "state dict", net: ParseNet | None = None
) -> dict[str, Any]:
  """Converts a state dict; `load` without the file."""
  image = jnp.zeros((1, 16, 16, 3))
  template = jax.eval_shape((net or ParseNet()).init, jax.random.key(0), image)["params"]
  return convert(state, rules(), template, source)


@functools.partial(jax.jit, static_argnums=0)
def classify(net: ParseNet, params: Mapping[str, Any], faces: jax.Array) -> jax.Array:
  """The class of each pixel of aligned faces: uint8 RGB [b h w 3] -> uint8 [b h w]."""
  images = faces.astype(jnp.float32) / 127.5 - 1
  return net.apply({"params": params}, images).argmax(-1).astype(jnp.uint8)


def face_masks(params: Mapping[str, Any], faces: np.ndarray) -> np.ndarray:
  """Masks for pasting, from the class of each pixel.

  Args:
    params: `ParseNet()`'s, from `load`.
    faces: uint8 RGB [b size size 3], aligned; of another size than 512 they are resized for it.

  Returns:
    float32 [b size size] in [0, 1].
  """
  size = faces.shape[1]
  if size != SIZE:
    faces = np.stack([cv2.resize(face, (SIZE, SIZE)) for face in faces])
  classes = np.asarray(classify(ParseNet(), params, jnp.asarray(faces)))
  masks = [soft_mask(image) for image in classes]
  if size != SIZE:
    masks = [cv2.resize(mask, (size, size)) for mask in masks]
  return np.stack(masks)


def soft_mask(classes: np.ndarray) -> np.ndarray:
  """The mask of one face, blurred: classes uint8 [512 512] -> float32 [512 512] in [0, 1]."""
  mask = (~np.isin(classes, _LEFT_ALONE)).astype(np.float32)
  kernel, sigma = _BLUR
  for _ in range(2):
    mask = cv2.GaussianBlur(mask, (kernel, kernel), sigma)
  inside = np.zeros_like(mask)
  inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = mask[_BORDER:-_BORDER, _BORDER:-_BORDER]
  return inside.clip(0, 1)
