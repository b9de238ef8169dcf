"""The released RetinaFace checkpoints as parameters: the tables and the loader.

They read detection_mobilenet0.25_Final.pth and detection_Resnet50_Final.pth, which the face
restorers download, and mobilenet0.25_Final.pth of biubug6/Face-Detector-1MB-with-landmark. All
were trained on BGR; the first kernel's inputs are turned round here, so that frames stay RGB.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import torch_files
from vsr_jax.conversion import Rule, batch_norm, conv2d, convert, depthwise, with_bias
from vsr_jax.faces.retinaface import ResNet50, RetinaFace, init


def load(net: RetinaFace, path: str | Path) -> dict[str, Any]:
  """Reads a released checkpoint.

  Args:
    net: the variant. The two MobileNets' files hold the same names and shapes, so which of them a
      file is cannot be told from it.
    path: the file, its keys with or without "module.".

  Returns:
    the variant's parameters, on the default device.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  state = torch_files.unwrap(torch_files.load(path), source=str(path))
  return jax.tree.map(jnp.asarray, from_state_dict(net, state, str(path)))


def from_state_dict(
  net: RetinaFace, state: Mapping[str, np.ndarray], source: str = "state dict"
) -> dict[str, Any]:
  """Converts a state dict; `load` without the file."""
  template = jax.eval_shape(functools.partial(init, net), jax.random.key(0))
  return convert(state, rules(net), template, source)


def rules(net: RetinaFace) -> list[Rule]:
  """The table of a variant's files."""
  return [
    *(_resnet() if isinstance(net.body, ResNet50) else _mobilenet()),
    *_conv_norm(r"fpn\.(output|merge)(\d)\.", r"pyramid/\1\2"),
    *_conv_norm(r"ssh(\d)\.conv3X3\.", r"context\1/by3"),
    *_conv_norm(r"ssh(\d)\.conv5X5_(\d)\.", r"context\1/by5_\2"),
    *_conv_norm(r"ssh(\d)\.conv7[Xx]7_(\d)\.", r"context\1/by7_\2"),
    *with_bias(r"ClassHead\.(\d)\.conv1x1", r"heads/scores\1"),
    *with_bias(r"BboxHead\.(\d)\.conv1x1", r"heads/boxes\1"),
    *with_bias(r"LandmarkHead\.(\d)\.conv1x1", r"heads/landmarks\1"),
  ]


def _mobilenet() -> list[Rule]:
  block = r"body\.stage(?!1\.0\.)(\d)\.(\d)"  # all but the stem
  return [
    Rule(r"body\.stage1\.0\.0\.weight", "body/stem/conv/kernel", _from_bgr),
    *batch_norm(r"body\.stage1\.0\.1", "body/stem/norm"),
    Rule(rf"{block}\.0\.weight", r"body/stage\1_\2/depthwise/kernel", depthwise),
    *batch_norm(rf"{block}\.1", r"body/stage\1_\2/depthwise/norm"),
    Rule(rf"{block}\.3\.weight", r"body/stage\1_\2/pointwise/conv/kernel", conv2d),
    *batch_norm(rf"{block}\.4", r"body/stage\1_\2/pointwise/norm"),
  ]


def _resnet() -> list[Rule]:
  block = r"body\.layer(\d)\.(\d)"
  return [
    Rule(r"body\.conv1\.weight", "body/stem/conv/kernel", _from_bgr),
    *batch_norm(r"body\.bn1", "body/stem/norm"),
    Rule(rf"{block}\.conv(\d)\.weight", r"body/layer\1_\2/conv\3/conv/kernel", conv2d),
    *batch_norm(rf"{block}\.bn(\d)", r"body/layer\1_\2/conv\3/norm"),
    *_conv_norm(rf"{block}\.downsample\.", r"body/layer\1_\2/skip"),
  ]


def _conv_norm(theirs: str, ours: str) -> list[Rule]:
  """A sequence of a convolution without bias and a batch norm."""
  return [
    Rule(rf"{theirs}0\.weight", f"{ours}/conv/kernel", conv2d),
    *batch_norm(rf"{theirs}1", f"{ours}/norm"),
  ]


def _from_bgr(x: np.ndarray) -> np.ndarray:
  """A kernel over BGR, [out 3 h w], to one over RGB, [h w 3 out]."""
  return conv2d(x[:, ::-1])
