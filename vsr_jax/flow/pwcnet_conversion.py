"""The released PWC-Net weights as parameters: the table and the loader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import torch_files
from vsr_jax.conversion import Rule, convert, with_bias
from vsr_jax.flow import pwcnet

# Names of numbers in pytorch-pwc's keys: level 1, 2, ... and layer 1, 2, ...
_NUMBERS = ("One", "Two", "Thr", "Fou", "Fiv", "Six")


def load(path: str | Path) -> dict[str, Any]:
  """Reads released weights, such as pwc_net.pth.tar or network-default.pytorch.

  Args:
    path: a PyTorch file, with the names of NVlabs/PWC-Net or of pytorch-pwc.

  Returns:
    the parameters.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  state = torch_files.unwrap(torch_files.load(path), ("state_dict",), str(path))
  return jax.tree.map(jnp.asarray, from_state_dict(state, str(path)))


def from_state_dict(state: Mapping[str, np.ndarray], source: str = "state dict") -> dict[str, Any]:
  """Converts a state dict; `load` without the file."""
  template = jax.eval_shape(pwcnet.init, jax.random.key(0))
  rules = _authors_rules() if "conv1a.0.weight" in state else _pytorch_pwc_rules()
  return convert(state, rules, template, source)


def transposed(x: np.ndarray) -> np.ndarray:
  """[c d k k] of a transposed convolution -> [k k c d] of the convolution that it is."""
  return x.transpose(2, 3, 0, 1)[::-1, ::-1]


def _authors_rules() -> list[Rule]:
  """The table of pwc_net.pth.tar."""
  rules = [
    # At the sixth level "aa" comes before "a".
    *with_bias(r"conv6aa\.0", "features/conv6_0"),
    *with_bias(r"conv6a\.0", "features/conv6_1"),
    *with_bias(r"conv([1-5])a\.0", r"features/conv\1_0"),
    *with_bias(r"conv([1-5])aa\.0", r"features/conv\1_1"),
    *with_bias(r"conv(\d)b\.0", r"features/conv\1_2"),
    *with_bias(r"conv(\d)_(\d)\.0", r"estimator\1/conv\2"),
    *with_bias(r"predict_flow(\d)", r"estimator\1/flow"),
    Rule(r"deconv2\.\w+", None),  # the last level's flow is enlarged bilinearly
    *(rule for i in range(6) for rule in with_bias(rf"dc_conv{i + 1}\.0", f"context/conv{i}")),
    *with_bias("dc_conv7", "context/conv6"),
  ]
  for level in pwcnet.LEVELS[:-1]:
    rules += with_bias(f"deconv{level}", f"estimator{level - 1}/up_flow", transposed)
    rules += with_bias(f"upfeat{level}", f"estimator{level - 1}/up_features", transposed)
  return rules


def _pytorch_pwc_rules() -> list[Rule]:
  """The table of pytorch-pwc's network-default.pytorch."""
  rules, net = [], "(?:module|net)"  # its loader puts the second in the first's place
  for level, number in enumerate(_NUMBERS, start=1):
    for i in range(3):
      theirs = rf"{net}Extractor\.{net}{number}\.{2 * i}"  # every second layer is an activation
      rules += with_bias(theirs, f"features/conv{level}_{i}")
  for level in pwcnet.LEVELS:
    theirs, ours = rf"{net}{_NUMBERS[level - 1]}\.{net}", f"estimator{level}"
    for i, number in enumerate(_NUMBERS[:-1]):
      rules += with_bias(rf"{theirs}{number}\.0", f"{ours}/conv{i}")
    rules += with_bias(rf"{theirs}Six\.0", f"{ours}/flow")
    rules += with_bias(rf"{theirs}Upflow", f"{ours}/up_flow", transposed)
    rules += with_bias(rf"{theirs}Upfeat", f"{ours}/up_features", transposed)
  for i in range(7):
    rules += with_bias(rf"{net}Refiner\.{net}Main\.{2 * i}", f"context/conv{i}")
  return rules
