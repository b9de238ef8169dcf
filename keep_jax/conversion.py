"""The tables that map released KEEP weights to our parameters, and their architecture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from keep_jax.model import KEEP, Architecture, Params, param_shapes
from vsr_jax.conversion import Rule, convert, dense, norm, reading_shapes, with_bias
from vsr_jax.flow import gmflow_conversion

# First names (v0.1.0) -> those of v1.0.0.
RENAMED = {"cross_fuse.": "cfa.", "fuse_convs_dict.": "cft."}

# The sub-networks that CodeFormer shares with KEEP.
CODEFORMER = ("encoder", "codebook", "generator", "code_predictor", "cft")


def res_block(theirs: str, ours: str) -> list[Rule]:
  """A residual block."""
  n = re.compile(theirs).groups + 1  # the number is the next group
  return [
    *norm(rf"{theirs}\.norm([12])", rf"{ours}/norm\{n}"),
    *with_bias(rf"{theirs}\.conv([12])", rf"{ours}/conv\{n}"),
    *with_bias(rf"{theirs}\.conv_out", f"{ours}/skip"),
  ]


def attention_block(theirs: str, ours: str) -> list[Rule]:
  """An attention block of the VQGAN."""
  return [
    *norm(rf"{theirs}\.norm", f"{ours}/norm"),
    *with_bias(rf"{theirs}\.q", f"{ours}/query", dense),
    *with_bias(rf"{theirs}\.k", f"{ours}/key", dense),
    *with_bias(rf"{theirs}\.v", f"{ours}/value", dense),
    *with_bias(rf"{theirs}\.proj_out", f"{ours}/out", dense),
  ]


def _blocks(theirs: str, last: int, upsampling: bool) -> list[Rule]:
  """The numbered blocks of an encoder or generator; `last` is the last one's number."""
  block, ours = rf"{theirs}blocks\.(\d+)", r"blocks_\1"
  # Blocks without a sub-module: the first and the last convolution, and the norm before the last.
  ends, last_norm = rf"{theirs}blocks\.(0|{last})", rf"{theirs}blocks\.({last - 1})"
  resize = ours if upsampling else f"{ours}/conv"
  return [
    *res_block(block, ours),
    *attention_block(block, ours),
    *with_bias(rf"{block}\.conv", resize),
    *with_bias(ends, ours),
    *norm(last_norm, ours),
  ]


def encoder(theirs: str, arch: Architecture) -> list[Rule]:
  """The table of an encoder whose keys begin with `theirs`, a regular expression."""
  return _blocks(theirs, _last_block(arch), upsampling=False)


def generator(theirs: str, arch: Architecture) -> list[Rule]:
  """The table of a generator whose keys begin with `theirs`, a regular expression."""
  return _blocks(theirs, _last_block(arch), upsampling=True)


def _last_block(arch: Architecture) -> int:
  levels = len(arch.multiples)
  # Entry, residual blocks, one attention each at the smallest level, resizing, middle, exit.
  return 1 + levels * arch.res_blocks + arch.res_blocks + (levels - 1) + 3 + 2 - 1


def attention(theirs: str, ours: str) -> list[Rule]:
  """Multi-head attention with an output projection."""
  return [
    Rule(rf"{theirs}\.to_q\.weight", f"{ours}/query/kernel", dense),
    Rule(rf"{theirs}\.to_k\.weight", f"{ours}/key/kernel", dense),
    Rule(rf"{theirs}\.to_v\.weight", f"{ours}/value/kernel", dense),
    *with_bias(rf"{theirs}\.to_out\.0", f"{ours}/out", dense),
  ]


def feed_forward(theirs: str, ours: str) -> list[Rule]:
  """A gated feed-forward network."""
  return [
    *with_bias(rf"{theirs}\.net\.0\.proj", f"{ours}/expand", dense),
    *with_bias(rf"{theirs}\.net\.2", f"{ours}/project", dense),
  ]


def gain_network(theirs: str) -> list[Rule]:
  """The uncertainty and gain networks; their keys begin with `theirs`."""
  layer, ours = rf"{theirs}uncertainty_estimator\.(\d+)", r"uncertainty_\1"
  head = rf"{theirs}kalman_gain_calculator"
  return [
    *attention(rf"{layer}\.attn1", f"{ours}/attention"),
    *norm(rf"{layer}\.norm1", f"{ours}/norm1"),
    *feed_forward(rf"{layer}\.ff", f"{ours}/feed_forward"),
    *norm(rf"{layer}\.norm3", f"{ours}/norm2"),
    *attention(rf"{layer}\.attn_temp", f"{ours}/temporal_attention"),
    *norm(rf"{layer}\.norm_temp", f"{ours}/norm3"),
    *res_block(rf"{head}\.([012])", r"res_\1"),
    *with_bias(rf"{head}\.3", "gain"),
  ]


def transformer_layer(theirs: str, ours: str) -> list[Rule]:
  """A layer of the code predictor."""
  n = re.compile(theirs).groups + 1
  return [
    Rule(rf"{theirs}\.self_attn\.in_proj_weight", f"{ours}/qkv_kernel", dense),
    Rule(rf"{theirs}\.self_attn\.in_proj_bias", f"{ours}/qkv_bias"),
    *with_bias(rf"{theirs}\.self_attn\.out_proj", f"{ours}/out", dense),
    *with_bias(rf"{theirs}\.linear([12])", rf"{ours}/mlp\{n}", dense),
    *norm(rf"{theirs}\.norm([12])", rf"{ours}/norm\{n}"),
  ]


def code_predictor() -> list[Rule]:
  """The code predictor with its position embedding."""
  return [
    Rule("position_emb", "position"),
    *with_bias("feat_emb", "embed", dense),
    *transformer_layer(r"ft_layers\.(\d+)", r"layer_\1"),
    *norm(r"idx_pred_layer\.0", "norm"),
    Rule(r"idx_pred_layer\.1\.weight", "head/kernel", dense),
  ]


def cft(theirs: str, ours: str) -> list[Rule]:
  """A controllable feature transform."""
  rules = res_block(rf"{theirs}\.encode_enc", f"{ours}/merge")
  for name in ("scale", "shift"):
    rules += with_bias(rf"{theirs}\.{name}\.0", f"{ours}/{name}1")
    rules += with_bias(rf"{theirs}\.{name}\.2", f"{ours}/{name}2")
  return rules


def cfa(theirs: str, ours: str) -> list[Rule]:
  """Cross-frame attention."""
  n = re.compile(theirs).groups + 1
  return [
    *norm(rf"{theirs}\.norm([12])", rf"{ours}/norm\{n}"),
    *feed_forward(rf"{theirs}\.ff", f"{ours}/feed_forward"),
    *attention(rf"{theirs}\.attn", f"{ours}/attention"),
  ]


def _within(net: str, rules: list[Rule]) -> list[Rule]:
  return [rule if rule.path is None else rule._replace(path=f"{net}/{rule.path}") for rule in rules]


def rules(arch: Architecture) -> list[Rule]:
  """The table of a whole checkpoint with the names of v1.0.0."""
  return [
    *_within("encoder", encoder(r"encoder\.", arch)),
    *_within("hq_encoder", encoder(r"hq_encoder\.", arch)),
    *_within("generator", generator(r"generator\.", arch)),
    Rule(r"quantize\.embedding\.weight", "codebook"),
    *_within("code_predictor", code_predictor()),
    *_within("gain", gain_network(r"kalman_filter\.")),
    *cft(r"cft\.(\d+)", r"cft/\1"),
    *cfa(r"cfa\.(\d+)", r"cfa/\1"),
    *gmflow_conversion.rules("flownet.model.", "flow/"),
  ]


def current_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A state dict of v0.1.0 with the names of v1.0.0; one of v1.0.0 as it is."""

  def renamed(key):
    for old, new in RENAMED.items():
      if key.startswith(old):
        return new + key.removeprefix(old)
    return key

  return {renamed(key): value for key, value in state.items()}


def infer_architecture(state: Mapping[str, np.ndarray], source: str = "state dict") -> Architecture:
  """Reads the architecture off the keys and shapes of a state dict with the names of v1.0.0.

  Numbers of heads leave no trace in shapes; they are the released ones.

  Args:
    state: key to tensor.
    source: the file, for errors.

  Returns:
    The `Architecture`.

  Raises:
    UserError: the tensors that tell it are missing or contradict each other.
  """
  with reading_shapes(source, "a KEEP"):
    return _infer_architecture(state)


def _infer_architecture(state: Mapping[str, np.ndarray]) -> Architecture:
  def numbers(pattern):
    return sorted({int(m[1]) for key in state if (m := re.fullmatch(pattern, key))})

  width = state["encoder.blocks.0.weight"].shape[0]
  halvings = numbers(r"encoder\.blocks\.(\d+)\.conv\.weight")
  last = numbers(r"encoder\.blocks\.(\d+)\.weight")[-1]
  channels = [state[f"encoder.blocks.{i}.conv.weight"].shape[0] for i in halvings]
  channels.append(state[f"encoder.blocks.{last}.weight"].shape[1])
  tokens, dim = state["position_emb"].shape
  codes, emb_dim = state["quantize.embedding.weight"].shape
  gain_layer = "kalman_filter.uncertainty_estimator"
  gain_layers = len(numbers(rf"{re.escape(gain_layer)}\.(\d+)\..*"))
  cfa_sides = numbers(r"cfa\.(\d+)\..*")
  released = Architecture()
  cfa_width = (
    state[f"cfa.{cfa_sides[0]}.attn.to_q.weight"].shape[0]
    if cfa_sides
    else released.cfa_heads * released.cfa_head_dim
  )
  return Architecture(
    image_size=math.isqrt(tokens) * 2 ** len(halvings),
    width=width,
    multiples=tuple(c // width for c in channels),
    res_blocks=halvings[0] - 1,
    emb_dim=emb_dim,
    codes=codes,
    dim=dim,
    layers=len(numbers(r"ft_layers\.(\d+)\..*")),
    gain_head_dim=state[f"{gain_layer}.0.attn1.to_q.weight"].shape[0] // released.heads
    if gain_layers
    else released.gain_head_dim,
    gain_layers=gain_layers or released.gain_layers,
    cft=tuple(numbers(r"cft\.(\d+)\..*")),
    cfa=tuple(cfa_sides),
    cfa_head_dim=cfa_width // released.cfa_heads,
  )


def convert_released(
  state: Mapping[str, np.ndarray],
  source: str = "state dict",
  networks: Sequence[str] | None = None,
) -> tuple[Architecture, Params]:
  """Converts the state dict that KEEP v0.1.0 or v1.0.0, or CodeFormer, was released as.

  Args:
    state: key to tensor.
    source: the file, for errors.
    networks: the sub-networks that it holds, `CODEFORMER` for CodeFormer's; None: all of KEEP's.

  Returns:
    The architecture read off the shapes and the parameters, float32.

  Raises:
    UserError: a tensor is missing, unexpected or misshapen.
  """
  state = current_names(state)
  arch = infer_architecture(state, source)
  shapes = param_shapes(KEEP(arch))
  shapes = {name: shapes[name] for name in networks or shapes}
  return arch, {**_empty(shapes), **convert(state, rules(arch), shapes, source)}


def _empty(shapes: Mapping[str, Any]) -> dict[str, dict]:
  """CFT and CFA of an architecture without them: trees without leaves, which tables cannot fill."""
  return {name: {} for name, tree in shapes.items() if not jax.tree.leaves(tree)}
