"""The numbers and choices that make an FMA-Net."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vsr_jax.architecture import check_fields, wrong
from vsr_jax.errors import UserError

# The range of each field: far wider than useful, so that it only stops a foreign file from asking
# for a model that takes more than seconds to build.
_LIMITS = {
  "dim": (1, 4096),
  "frames": (1, 31),
  "scale": (-math.inf, math.inf),
  "kernel_down": (1, 128),
  "kernel_up": (1, 63),
  "flows": (1, 1024),
  "frma_blocks": (1, 64),
  "rdb_blocks": (1, 32),
  "growth": (1, 1024),
  "dense_layers": (1, 8),
  "attention_blocks": (1, 32),
  "heads": (1, 1024),
  "ffn_expansion": (-math.inf, 64),
}


@dataclasses.dataclass(frozen=True)
class DenseSpec:
  """The sizes of a residual dense block.

  Attributes:
    growth: channels of a layer's output.
    layers: number of layers.
  """

  growth: int
  layers: int


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
  """The sizes of a channel attention with its feed-forward network.

  Attributes:
    heads: attention heads; must divide the channels.
    hidden: channels within the feed-forward network.
    norm_bias: whether layer norms subtract the mean and have a bias.
  """

  heads: int
  hidden: int
  norm_bias: bool


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The numbers that make an FMA-Net; the defaults are the released model (9.77 M parameters).

  Raises:
    UserError: a number does not fit the others; the text names both.
  """

  dim: int = 90  # C, channels of all features
  frames: int = 3  # T = 2N + 1
  scale: int = 4  # s
  kernel_down: int = 20  # k_d
  kernel_up: int = 5  # k_r
  flows: int = 9  # n, flow-mask pairs per frame
  frma_blocks: int = 4  # M
  rdb_blocks: int = 12  # residual dense blocks in the encoder's RRDB
  growth: int = 18  # of every residual dense block
  dense_layers: int = 4  # of every residual dense block
  attention_blocks: int = 2  # multi-attention blocks per FRMA block
  heads: int = 6  # of every channel attention
  ffn_expansion: float = 2.66  # hidden channels of the feed-forward networks over dim
  norm_bias: bool = True  # layer norms with bias (Restormer's WithBias); False: BiasFree
  use_bias: bool = False  # in convolutions; the 1x1 of a dense block always has one
  filtering: Literal["flow_guided", "conventional"] = "flow_guided"
  attention: Literal["centre", "self"] = "centre"
  modulation: Literal["degradation_attention", "sft"] = "degradation_attention"

  def __post_init__(self):
    check_fields(self, _LIMITS)
    if int(self.dim * self.ffn_expansion) < 1:
      raise UserError(
        f"model.ffn_expansion = {self.ffn_expansion}: leaves no channel of model.dim = {self.dim}"
      )
    if self.scale not in (1, 2, 3, 4):
      raise wrong("scale", self.scale, "1, 2, 3 or 4")
    for name in ("frames", "kernel_up"):
      if getattr(self, name) % 2 == 0:
        raise UserError(f"model.{name} = {getattr(self, name)}: must be odd")
    if self.kernel_down < self.scale or (self.kernel_down - self.scale) % 2:
      raise UserError(
        f"model.kernel_down = {self.kernel_down}: must be at least model.scale = {self.scale} "
        "and of its parity"
      )
    for name in ("frames", "flows", "heads"):
      if self.dim % getattr(self, name):
        raise UserError(
          f"model.{name} = {getattr(self, name)}: must divide the width model.dim = {self.dim}"
        )

  @property
  def dense_spec(self) -> DenseSpec:
    """The sizes of every dense block."""
    return DenseSpec(self.growth, self.dense_layers)

  @property
  def attention_spec(self) -> AttentionSpec:
    """The sizes of every attention."""
    return AttentionSpec(self.heads, int(self.dim * self.ffn_expansion), self.norm_bias)


RELEASED = Architecture()
