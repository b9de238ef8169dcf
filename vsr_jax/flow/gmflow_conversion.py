"""The released GMFlow checkpoints as parameters: the table and the loader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax import torch_files
from vsr_jax.conversion import Rule, conv2d, convert, dense, norm, with_bias
from vsr_jax.flow import gmflow


def load(path: str | Path) -> dict[str, Any]:
  """Reads a released checkpoint of the network without refinement, say gmflow_sintel-0c07dcb3.pth.

  Args:
    path: the file, its state dict bare or under "model", with or without "module.".

  Returns:
    the parameters.

  Raises:
    UserError: the file is missing, damaged or holds another model's weights.
  """
  state = torch_files.unwrap(torch_files.load(path), ("model", "state_dict"), str(path))
  return jax.tree.map(jnp.asarray, from_state_dict(state, str(path)))


def from_state_dict(state: Mapping[str, np.ndarray], source: str = "state dict") -> dict[str, Any]:
  """Converts a state dict; `load` without the file."""
  template = jax.eval_shape(gmflow.init, jax.random.key(0))
  return convert(state, rules(), template, source)


def rules(theirs: str = "", ours: str = "") -> list[Rule]:
  """The table of GMFlow's tensors.

  Args:
    theirs: what stands before every key, such as "flownet.model." in KEEP's checkpoints.
    ours: what stands before every leaf, such as "flow/".

  Returns:
    the rules; a larger model's table can contain them.
  """
  layer = r"transformer\.layers\.(\d)\."
  table = [
    Rule(r"backbone\.conv1\.weight", "encoder/conv1/kernel", conv2d),
    *with_bias(r"backbone\.conv2", "encoder/conv2", conv2d),
    Rule(
      r"backbone\.layer(\d)\.(\d)\.conv(\d)\.weight", r"encoder/layer\1_\2/conv\3/kernel", conv2d
    ),
    *with_bias(r"backbone\.layer(\d)\.(\d)\.downsample\.0", r"encoder/layer\1_\2/skip", conv2d),
    *_attention(rf"{layer}self_attn", r"transformer/layer\1_self"),
    *_attention(rf"{layer}cross_attn_ffn", r"transformer/layer\1_cross"),
    Rule(
      rf"{layer}cross_attn_ffn\.mlp\.0\.weight",
      r"transformer/layer\1_ffn/dense1/kernel",
      dense,
    ),
    Rule(
      rf"{layer}cross_attn_ffn\.mlp\.2\.weight",
      r"transformer/layer\1_ffn/dense2/kernel",
      dense,
    ),
    *norm(rf"{layer}cross_attn_ffn\.norm2", r"transformer/layer\1_ffn/norm"),
    *with_bias(r"feature_flow_attn\.q_proj", "propagation/query", dense),
    *with_bias(r"feature_flow_attn\.k_proj", "propagation/key", dense),
    *with_bias(r"upsampler\.0", "upsampler/conv1", conv2d),
    *with_bias(r"upsampler\.2", "upsampler/conv2", conv2d),
  ]
  return [
    r._replace(pattern=re.escape(theirs) + r.pattern, path=ours + (r.path or "")) for r in table
  ]


def _attention(theirs: str, ours: str) -> list[Rule]:
  names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "merge": "merge"}
  kernels = [
    Rule(rf"{theirs}\.{name}\.weight", f"{ours}/{leaf}/kernel", dense)
    for name, leaf in names.items()
  ]
  return [*kernels, *norm(rf"{theirs}\.norm1", f"{ours}/norm")]
