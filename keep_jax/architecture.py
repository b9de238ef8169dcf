"""The numbers and choices that make a KEEP; its ablations are in configs/keep/ablations.py."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vsr_jax.architecture import check_fields, wrong
from vsr_jax.errors import UserError
from vsr_jax.flow.estimators import ESTIMATORS

# Names of fields in checkpoints written before they were renamed.
EARLIER_NAMES = {"anchor": "attend_first_frame"}

FlowName = Literal["gmflow", "pwcnet", "spynet", "raft_small", "raft_large", "none"]

# The range of each field: far wider than useful, so that it only stops a foreign file from asking
# for a model that takes more than seconds to build.
_LIMITS = {
  "image_size": (1, 8192),
  "width": (1, 1024),
  "multiples": (1, 64),
  "res_blocks": (1, 8),
  "emb_dim": (1, 8192),
  "codes": (1, 2**20),
  "dim": (1, 8192),
  "heads": (1, 256),
  "layers": (1, 128),
  "gain_head_dim": (1, 4096),
  "gain_layers": (1, 64),
  "cft": (1, 8192),
  "cfa": (1, 8192),
  "cfa_heads": (1, 256),
  "cfa_head_dim": (1, 4096),
  "fixed_gain": (-math.inf, math.inf),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The numbers that make a KEEP; the defaults are the released model.

  Raises:
    UserError: a number does not fit the others; the text names both.
  """

  image_size: int = 512  # side of the images
  width: int = 64  # channels of the first level of encoder and generator
  multiples: tuple[int, ...] = (1, 2, 2, 4, 4, 8)  # channels over the width, by level
  res_blocks: int = 2  # a level
  emb_dim: int = 256  # channels of the latent and of a codebook entry
  codes: int = 1024  # entries of the codebook
  dim: int = 512  # the code predictor's channels
  heads: int = 8  # in code predictor and gain network
  layers: int = 9  # the code predictor's
  gain_head_dim: int = 48
  gain_layers: int = 3
  cft: tuple[int, ...] = (16, 32, 64)  # sides of the features with CFT
  cfa: tuple[int, ...] = (16, 32)  # sides of the features with CFA
  cfa_heads: int = 4
  cfa_head_dim: int = 256
  # How the Kalman gain is obtained; "none": no Kalman filter, latents are the observations.
  gain: Literal["network", "constant", "fixed", "none"] = "network"
  fixed_gain: float = 0.5  # where gain is "fixed"
  causal: bool = False  # whether gains see no later frame, for live use; not so as released
  attend_first_frame: bool = True  # whether each frame attends to the first one in the gain network
  flow: FlowName = "gmflow"

  def __post_init__(self):
    for name in ("multiples", "cft", "cfa"):  # JSON gives lists
      value = getattr(self, name)
      object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
    check_fields(self, _LIMITS)
    if not self.multiples:
      raise UserError("model.multiples = (): must have a number for each level")
    factor = 2 ** (len(self.multiples) - 1)
    if self.image_size % factor:
      raise UserError(
        f"model.image_size = {self.image_size}: must be a multiple of {factor}, which "
        f"model.multiples of {len(self.multiples)} levels asks for"
      )
    sides = [self.image_size // 2**level for level in range(len(self.multiples))]
    for name in ("cft", "cfa"):
      for side in getattr(self, name):
        if side not in sides:
          raise UserError(f"model.{name} = {side}: must be one of {sides}, the features' sides")
    for multiple in self.multiples:
      if multiple * self.width % 32:
        raise UserError(
          f"model.width = {self.width}: its multiples must divide into 32 groups, "
          f"{multiple} * {self.width} does not"
        )
    if self.dim % self.heads:
      raise UserError(f"model.heads = {self.heads}: must divide model.dim = {self.dim}")
    if not 0 <= self.fixed_gain <= 1:
      raise wrong("fixed_gain", self.fixed_gain, "between 0 and 1")
    multiple = ESTIMATORS[self.flow].multiple
    if self.image_size % multiple:
      raise UserError(
        f"model.image_size = {self.image_size}: must be a multiple of {multiple}, which "
        f"model.flow = {self.flow!r} asks for"
      )

  @property
  def latent_size(self) -> int:
    """Side of the latent."""
    return self.image_size // 2 ** (len(self.multiples) - 1)

  def channels(self, side: int) -> int:
    """Channels of the encoder's and the generator's features whose side is `side`."""
    level = (self.image_size // side).bit_length() - 1
    return self.width * self.multiples[level]


RELEASED = Architecture()
