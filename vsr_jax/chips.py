"""What chips can do at most, as their makers publish it: one table for rooflines and use."""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip's public figures.

  Attributes:
    name: its short name.
    kinds: what JAX calls it, `jax.Device.device_kind`.
    bfloat16: products of bfloat16 numbers, summed in float32, in FLOP/s; no sparsity.
    float32: products of float32 numbers at JAX's default precision, in FLOP/s: a TPU rounds them to
      bfloat16, a GPU of these kinds to TF32.
    memory: bytes; a runtime keeps some of them for itself.
    memory_bandwidth: bytes/s.
    interconnect: bytes/s that leave a chip towards its neighbours, over all its links; as many
      arrive at the same time. Makers often publish the sum of both directions.
    source: where the figures are from.
  """

  name: str
  kinds: tuple[str, ...]
  bfloat16: float
  float32: float
  memory: float
  memory_bandwidth: float
  interconnect: float
  source: str

  def peak(self, dtype: str) -> float:
    """FLOP/s of products in "float32" or "bfloat16"."""
    return {"float32": self.float32, "bfloat16": self.bfloat16}[dtype]


_TPU = "https://cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"

CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 197e12, 16e9, 819e9, 200e9, f"{_TPU}/v5e"),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 459e12, 95e9, 2765e9, 600e9, f"{_TPU}/v5p"),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 918e12, 32e9, 1600e9, 400e9, f"{_TPU}/v6e"),
    # The tables on NVIDIA's pages give the speed with sparsity, twice that of full matrices.
    Chip(
      "a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 156e12, 80e9, 2039e9, 300e9, f"{_NVIDIA}/a100"
    ),
    Chip(
      "h100", ("NVIDIA H100 80GB HBM3",), 989.4e12, 494.7e12, 80e9, 3350e9, 450e9, f"{_NVIDIA}/h100"
    ),
    Chip("h200", ("NVIDIA H200",), 989.4e12, 494.7e12, 141e9, 4800e9, 450e9, f"{_NVIDIA}/h200"),
  )
}


def find_chip(device: jax.Device) -> Chip | None:
  """The chip that a device is; None for one that the table does not have, such as a CPU."""
  return next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)
