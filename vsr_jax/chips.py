"""What chips can do at most, as published: one table for rooflines and for utilisation."""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip's published figures.

  Attributes:
    name: its short name.
    kinds: what JAX calls it, `jax.Device.device_kind`.
    bfloat16: products of bfloat16 numbers, summed in float32, in FLOP/s; no sparsity.
    float32: products of float32 numbers at JAX's default precision, in FLOP/s: a TPU rounds them to
      bfloat16, a GPU of these kinds to TF32 (https://docs.jax.dev/en/latest/201/precision.html).
    memory: bytes. A published GB counts as 1e9 bytes, of which a chip may have a little more; its
      runtime keeps some for itself.
    memory_bandwidth: bytes/s.
    interconnect: bytes/s that leave a chip by ICI or NVLink, over all links together; as many
      arrive at the same time, and makers often publish the sum of both.
    sources: where each of the figures was found.
  """

  name: str
  kinds: tuple[str, ...]
  bfloat16: float
  float32: float
  memory: float
  memory_bandwidth: float
  interconnect: float
  sources: tuple[str, ...]

  def peak(self, dtype: str) -> float:
    """FLOP/s of products in "float32" or "bfloat16"."""
    return {"float32": self.float32, "bfloat16": self.bfloat16}[dtype]


_TPU = "https://docs.cloud.google.com/tpu/docs"
# For GPUs: XLA's own description (bandwidth of memory; operations a clock and clock rate of matrix
# units), a table made from NVIDIA's data sheets (products without sparsity), and one of links and
# sizes of memory.
_XLA = "https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs"
_TABLE = "https://glennklockwood.com/garden/processors"
_BOOK = "https://jax-ml.github.io/scaling-book/gpus"

CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 197e12, 16e9, 819e9, 200e9, (f"{_TPU}/v5e",)),
    Chip(
      "v5p", ("TPU v5", "TPU v5p"), 459e12, 459e12, 95e9, 2765e9, 600e9, (f"{_TPU}/v5p-training",),
    ),
    # Earlier versions of the page had 1640 GB/s.
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 918e12, 32e9, 1600e9, 400e9, (f"{_TPU}/v6e",)),
    Chip(
      "a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 156e12, 80e9, 2039e9, 300e9,
      (f"{_TABLE}/A100", f"{_XLA}/a100_sxm_80.txtpb", _BOOK),
    ),
    Chip(
      "h100", ("NVIDIA H100 80GB HBM3",), 989.4e12, 494.7e12, 80e9, 3352e9, 450e9,
      (f"{_TABLE}/h100", f"{_XLA}/h100_sxm.txtpb", _BOOK),
    ),
    # XLA's description gives it the matrix units of the H100.
    Chip(
      "h200", ("NVIDIA H200",), 989.4e12, 494.7e12, 141e9, 4800e9, 450e9,
      (f"{_XLA}/h200.txtpb", _BOOK),
    ),
  )
}  # fmt: skip


def find_chip(device: jax.Device) -> Chip | None:
  """The chip that a device is; None for one that the table does not have, such as a CPU."""
  return next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)
