"""The table that maps released FMA-Net weights to our parameters, and their architecture.

The released networks read and write BGR; ours are RGB. The order is folded into
every kernel that touches colour, so that nothing is swapped at run time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, Params, param_shapes
from vsr_jax.conversion import (
  Rule,
  Transform,
  as_is,
  conv2d,
  conv3d,
  convert,
  depthwise,
  frame_conv,
  reading_shapes,
  with_bias,
)

PREFIXES = {"net_d": "degradation_learning_network.", "net_r": "restoration_network."}


def flip_inputs(transform: Transform, *triplets: int) -> Transform:
  """A kernel transform that also reverses (BGR to RGB) three input channels from each index on."""

  def apply(x: np.ndarray) -> np.ndarray:
    order = np.arange(x.shape[1])
    for start in triplets:
      start %= len(order)
      order[start : start + 3] = order[start : start + 3][::-1]
    return transform(x[:, order])

  return apply


def flip_outputs(transform: Transform) -> Transform:
  """A transform that also reverses the three output channels of a kernel or bias (BGR to RGB)."""
  return lambda x: transform(x[::-1])


def temperatures(x: np.ndarray) -> np.ndarray:
  """[heads 1 1] -> [heads]."""
  return x.squeeze((1, 2))


def _frames_first(frames: int) -> Transform:
  """A 1x1 kernel over [aligned, (channel frame)] -> rows [aligned, (frame channel)]."""

  def apply(x: np.ndarray) -> np.ndarray:
    kernel = conv2d(x)  # [1 1 in out]
    width = kernel.shape[-1]
    lead = kernel.shape[2] - width * frames  # `width` aligned rows, or none
    rows = kernel[0, 0, lead:].reshape(width, frames, width).swapaxes(0, 1)
    return np.concatenate([kernel[0, 0, :lead], rows.reshape(-1, width)])[None, None]

  return apply


def _taps_first(taps: int, subpixels: int, transform: Transform) -> Transform:
  """Outputs ordered (sub-pixel, tap) -> (tap, sub-pixel), as dynamic upsampling reads them."""

  def apply(x: np.ndarray) -> np.ndarray:
    grouped = x.reshape(subpixels, taps, *x.shape[1:]).swapaxes(0, 1)
    return transform(grouped.reshape(x.shape))

  return apply


def _dense(pattern: str, path: str) -> list[Rule]:
  n = re.compile(pattern).groups + 1  # the layer's number is the next group
  return [
    Rule(rf"{pattern}\.layer\.(\d+)\.conv\.weight", rf"{path}/layer_\{n}_kernel", frame_conv),
    Rule(rf"{pattern}\.layer\.(\d+)\.conv\.bias", rf"{path}/layer_\{n}_bias"),
    Rule(rf"{pattern}\.conv\.weight", f"{path}/fuse_kernel", frame_conv),
    Rule(rf"{pattern}\.conv\.bias", f"{path}/fuse_bias"),
  ]


def _attention(block: str, path: str, names: tuple[str, str, str, str]) -> list[Rule]:
  """One attention and its feed-forward network, with the norms before them."""
  norm1, attention, norm2, ffn = names
  rules = []
  for ours, theirs in (("norm1", norm1), ("norm2", norm2)):
    rules.append(Rule(rf"{block}\.{theirs}\.body\.weight", f"{path}/{ours}/scale"))
    rules.append(Rule(rf"{block}\.{theirs}\.body\.bias", f"{path}/{ours}/bias"))
  theirs, ours = rf"{block}\.{attention}", f"{path}/attention"
  rules.append(Rule(rf"{theirs}\.temperature", f"{ours}/temperature", temperatures))
  rules += with_bias(rf"{theirs}\.q", f"{ours}/query", conv2d)
  rules += with_bias(rf"{theirs}\.q_dwconv", f"{ours}/query_depthwise", depthwise)
  rules += with_bias(rf"{theirs}\.kv_conv", f"{ours}/key_value", conv2d)
  rules += with_bias(rf"{theirs}\.kv_dwconv", f"{ours}/key_value_depthwise", depthwise)
  rules.append(Rule(rf"{theirs}\.project_out\.weight", f"{ours}/project_kernel", conv2d))
  rules.append(Rule(rf"{theirs}\.project_out\.bias", f"{ours}/project_bias"))
  theirs, ours = rf"{block}\.{ffn}", f"{path}/feed_forward"
  rules += with_bias(rf"{theirs}\.project_in", f"{ours}/expand", conv2d)
  rules += with_bias(rf"{theirs}\.dwconv", f"{ours}/depthwise", depthwise)
  rules += with_bias(rf"{theirs}\.project_out", f"{ours}/project", conv2d)
  return rules


def _frma(frames: int) -> list[Rule]:
  """The rules of all FRMA blocks of one network."""
  block, path = r"FRMA_blocks\.(\d+)", r"frma_\1"
  rules = _dense(rf"{block}\.rdb", f"{path}/dense")
  rules += _dense(rf"{block}\.rdb_KD", f"{path}/kernel_dense")
  rules += with_bias(rf"{block}\.conv_Fw", f"{path}/fuse", _frames_first(frames))
  rules += with_bias(rf"{block}\.conv_KD", f"{path}/kernel_fuse", _frames_first(frames))
  rules.append(Rule(rf"{block}\.conv_f\.0\.weight", f"{path}/flow_update/conv1_kernel", frame_conv))
  rules.append(Rule(rf"{block}\.conv_f\.0\.bias", f"{path}/flow_update/conv1_bias"))
  rules += with_bias(rf"{block}\.conv_f\.2", f"{path}/flow_update/conv2", frame_conv)
  inner, ours = rf"{block}\.multi_attn_block\.(\d+)", rf"{path}/attention_\2"
  rules += _attention(inner, ours, ("norm1", "co_attn", "norm2", "ffn1"))
  rules += _attention(inner, f"{ours}/modulation", ("norm3", "da_attn", "norm4", "ffn2"))
  return rules


def _encoder() -> list[Rule]:
  rules = with_bias(r"feature_extractor\.0", "encoder/stem", flip_inputs(frame_conv, 0))
  rules += _dense(r"feature_extractor\.2\.RDBs\.(\d+)", r"encoder/rrdb/rdb_\1")
  rules += with_bias(r"feature_extractor\.2\.conv\.0", "encoder/rrdb/fuse1", frame_conv)
  return rules + with_bias(r"feature_extractor\.2\.conv\.1", "encoder/rrdb/fuse2", frame_conv)


def _two_convs(name: str, path: str) -> list[Rule]:
  first = with_bias(rf"{name}\.0", f"{path}/conv1", frame_conv)
  return first + with_bias(rf"{name}\.2", f"{path}/conv2", frame_conv)


def _rgb_exit(name: str, path: str, transform: Transform) -> list[Rule]:
  """A convolution whose outputs are colours."""
  return [
    Rule(rf"{name}\.weight", f"{path}/kernel", flip_outputs(transform)),
    Rule(rf"{name}\.bias", f"{path}/bias", flip_outputs(as_is)),
  ]


def rules(arch: Architecture) -> dict[str, list[Rule]]:
  """The tables of `net_d` and `net_r`; source keys come without `PREFIXES`."""
  common = _encoder() + _frma(arch.frames)
  common += with_bias(r"a_conv\.0", "anchor_head/conv1", frame_conv)
  common += _rgb_exit(r"a_conv\.2", "anchor_head/conv2", frame_conv)
  net_d = _two_convs("f_conv", "flow_head") + _two_convs("d_conv", "kernel_head")

  net_r = _two_convs("f_conv1", "flow_entry") + _two_convs("f_conv2", "first_flow_head")
  net_r += with_bias(r"f_conv3\.0", "flow_head/conv1", flip_inputs(frame_conv, -6, -3))
  net_r += with_bias(r"f_conv3\.2", "flow_head/conv2", frame_conv)
  net_r += with_bias(r"d_conv\.0", "kernel_entry1", conv3d)
  net_r += with_bias(r"d_conv\.2", "kernel_entry2", conv3d)
  net_r += with_bias("res_conv1", "residual_entry", conv2d)
  net_r += _rgb_exit("res_conv2", "residual_exit", conv2d)
  for theirs, ours in (("conv1", "expand_0"), ("conv2", "expand_1"), ("conv3", "smooth")):
    net_r += with_bias(rf"upsample\.{theirs}", f"upsampler/{ours}", conv2d)
  net_r += with_bias(r"r_conv\.0", "kernel_head/conv1", frame_conv)
  sizes = (arch.kernel_up**2, arch.scale**2)
  head = r"r_conv\.2"
  net_r.append(
    Rule(rf"{head}\.weight", "kernel_head/conv2/kernel", _taps_first(*sizes, frame_conv))
  )
  net_r.append(Rule(rf"{head}\.bias", "kernel_head/conv2/bias", _taps_first(*sizes, as_is)))
  return {"net_d": common + net_d, "net_r": common + net_r}


def infer_architecture(
  state_d: Mapping[str, np.ndarray], state_r: Mapping[str, np.ndarray], source: str = "state dict"
) -> Architecture:
  """Reads the architecture off the keys and shapes of the two state dicts.

  Args:
    state_d: of Net^D, keys without prefix.
    state_r: of Net^R.
    source: the files, for errors.

  Returns:
    The `Architecture`.

  Raises:
    UserError: the tensors that tell it are missing or contradict each other.
  """
  with reading_shapes(source, "an FMA-Net"):
    return _infer_architecture(state_d, state_r)


def _infer_architecture(state_d, state_r) -> Architecture:
  def count(state, stem):
    """How many numbers follow the stem in the keys."""
    found = (re.match(re.escape(stem) + r"(\d+)\.", key) for key in state)
    numbers = {m[1] for m in found if m}
    if not numbers:
      raise KeyError(f"{stem}0")
    return len(numbers)

  dim = state_d["feature_extractor.0.weight"].shape[0]
  dense = "feature_extractor.2.RDBs.0.layer."
  block = "FRMA_blocks.0.multi_attn_block."
  hidden = state_d[f"{block}0.ffn1.project_out.weight"].shape[1]
  scale = _scale(state_r, dim)
  return Architecture(
    dim=dim,
    frames=dim // state_d["d_conv.0.weight"].shape[1],
    scale=scale,
    kernel_down=math.isqrt(state_d["d_conv.2.weight"].shape[0]),
    kernel_up=math.isqrt(state_r["r_conv.2.weight"].shape[0]) // scale,
    flows=state_d["f_conv.0.weight"].shape[0] // 3,
    frma_blocks=count(state_d, "FRMA_blocks."),
    rdb_blocks=count(state_d, "feature_extractor.2.RDBs."),
    growth=state_d[f"{dense}0.conv.weight"].shape[0],
    dense_layers=count(state_d, dense),
    attention_blocks=count(state_d, block),
    heads=state_d[f"{block}0.co_attn.temperature"].shape[0],
    # The factor itself cannot be read off: any with int(dim * factor) == hidden will do.
    ffn_expansion=2.66 if int(dim * 2.66) == hidden else (hidden + 0.5) / dim,
    norm_bias=f"{block}0.norm1.body.bias" in state_d,
    use_bias="feature_extractor.0.bias" in state_d,
  )


def _scale(state_r: Mapping[str, np.ndarray], dim: int) -> int:
  """s: the upsampler shuffles once for 2 and 3, twice for 4, never for 1."""
  if "upsample.conv2.weight" in state_r:
    return 4
  if "upsample.conv1.weight" in state_r:
    return math.isqrt(state_r["upsample.conv1.weight"].shape[0] // dim)
  return 1


def split_networks(state: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
  """A state dict of the whole model -> one of each network, prefixes removed."""
  return {
    net: {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
    for net, prefix in PREFIXES.items()
  }


def convert_released(
  state_d: Mapping[str, np.ndarray], state_r: Mapping[str, np.ndarray], source: str = "state dict"
) -> tuple[Architecture, Params]:
  """Converts the released pair of state dicts.

  Args:
    state_d: of Net^D, keys without prefix.
    state_r: of Net^R.
    source: the files, for errors.

  Returns:
    The architecture read off the shapes and the parameters, float32.

  Raises:
    UserError: a tensor is missing, unexpected or misshapen.
  """
  arch = infer_architecture(state_d, state_r, source)
  shapes = param_shapes(FMANet(arch))
  table = rules(arch)
  params = {
    net: convert(state, table[net], shapes[net], f"{source} ({net})")
    for net, state in (("net_d", state_d), ("net_r", state_r))
  }
  return arch, params
