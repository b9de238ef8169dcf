"""What a compiled program asks of a chip: memory, work, traffic, collectives; what bounds it."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from jax.stages import Compiled, Traced

from vsr_jax import hlo
from vsr_jax.chips import Chip
from vsr_jax.flops import count_jaxpr
from vsr_jax.hlo import Collective

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DEMANDS = (  # bytes that a program asks for, in the messages of compilers that refuse it
  re.compile(r"Used ([\d.]+)([KMGT]?) of"),
  re.compile(r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)"),
)

# There is no GPU on which XLA could try out algorithms. For products it takes cuBLAS then; tiles
# for its own kernels it finds by trying only, and fails for small ones.
_UNTRIED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each chip.

  Attributes:
    arguments: the program's inputs.
    outputs: its results.
    aliased: results that take over the memory of inputs.
    temporaries: what it holds while it runs.
    code: the program itself.
    peak: what is alive at once at most, as the compiler counts it.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int
  peak: int

  @property
  def needed(self) -> int:
    """What has to be free for it to run; gaps between temporaries make it more than the peak."""
    parts = self.arguments + self.outputs - self.aliased + self.temporaries + self.code
    return max(parts, self.peak)


@dataclasses.dataclass(frozen=True)
class Report:
  """What a program asks of each chip of a topology.

  Attributes:
    chip: the kind of chip.
    chips: how many there are.
    dtype: of products, "float32" or "bfloat16".
    flops: floating-point operations a chip; see `flops.count_jaxpr`.
    compile_seconds: what compiling took here.
    memory: None where the compiler refuses the program because it does not fit.
    needed: bytes of memory a chip; inf where the compiler refuses it and does not say.
    traffic: bytes to and from main memory, as `hlo.analyse` counts them; None if refused.
    collectives: what chips exchange, by kind; {} if refused.
  """

  chip: Chip
  chips: int
  dtype: str
  flops: float
  compile_seconds: float
  memory: Memory | None
  needed: float
  traffic: int | None
  collectives: Mapping[str, Collective]

  @property
  def fits(self) -> bool:
    """Whether the memory of the chip is large enough."""
    return self.memory is not None and self.needed <= self.chip.memory

  @property
  def seconds(self) -> dict[str, float]:
    """The least time for each of "compute", "memory" and "network", were there nothing else."""
    if self.traffic is None:
      return {}
    sent = sum(x.sent for x in self.collectives.values())
    return {
      "compute": self.flops / self.chip.peak(self.dtype),
      "memory": self.traffic / self.chip.memory_bandwidth,
      "network": sent / self.chip.interconnect,
    }

  @property
  def verdict(self) -> str:
    """A line: whether it fits, and what bounds its speed."""
    room = f"{self.chip.memory / 1e9:.4g} GB"
    if not math.isfinite(self.needed):
      return f"does not fit: the compiler finds no place for it in the {room} of a chip"
    share = f"{self.needed / 1e9:.3g} of {room} a chip ({self.needed / self.chip.memory:.0%})"
    if not self.fits:
      return f"does not fit: needs {share}"
    seconds = self.seconds
    slowest = max(seconds, key=lambda name: seconds[name])
    return f"fits: needs {share}; bound by {slowest}, at least {seconds[slowest]:.3g} s"

  def to_json(self) -> dict[str, Any]:
    """Everything as JSON values; bytes, operations and seconds of a chip."""
    memory = None if self.memory is None else dataclasses.asdict(self.memory)
    collectives = {name: dataclasses.asdict(x) for name, x in self.collectives.items()}
    return {
      "fits": self.fits,
      "verdict": self.verdict,
      "chips": self.chips,
      "dtype": self.dtype,
      "chip": dataclasses.asdict(self.chip),
      "memory_bytes": memory,
      "needed_bytes": self.needed if math.isfinite(self.needed) else None,
      "flops": self.flops,
      "traffic_bytes": self.traffic,
      "collectives": collectives,
      "roofline_seconds": self.seconds,
      "compile_seconds": self.compile_seconds,
    }

  def to_text(self) -> str:
    """A table of two columns, and the verdict."""
    rows = [("chips", f"{self.chips} x {self.chip.name}")]
    if self.memory is not None:
      fields = dataclasses.asdict(self.memory)
      rows += [(f"memory, {name}", _format(size, "B")) for name, size in fields.items()]
    if math.isfinite(self.needed):
      rows.append(("memory needed", _format(self.needed, "B")))
    rows.append(("work", _format(self.flops, "FLOP")))
    if self.traffic is not None:
      rows.append(("memory traffic", _format(self.traffic, "B")))
      found = self.collectives.items()
      rows += [(f"{name} ({x.count})", _format(x.bytes, "B")) for name, x in found]
      rows += [(f"at least, {name}", _format(x, "s")) for name, x in self.seconds.items()]
    rows.append(("compiled in", _format(self.compile_seconds, "s")))
    lines = [f"  {name:<24}{value:>14}" for name, value in rows]
    return "\n".join(["of each chip:", *lines, self.verdict])


def examine(traced: Traced, chip: Chip, chips: int, dtype: str) -> Report:
  """Compiles a program and reports what it asks of each chip.

  Args:
    traced: the program, from `jax.jit(...).trace`, for the devices of its arguments or mesh.
    chip: what these are.
    chips: how many they are; the work is counted as shared out evenly.
    dtype: of products, "float32" or "bfloat16".
  """
  lowered = traced.lower()
  is_tpu = chip.kinds[0].startswith("TPU")
  platform = "tpu" if is_tpu else "cuda"
  options = {} if is_tpu else _UNTRIED
  flops = count_jaxpr(traced.jaxpr.jaxpr, platform) / chips
  began = time.monotonic()
  try:
    compiled = lowered.compile(options)
  except RuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    seconds = time.monotonic() - began
    needed = max(_demand(str(e)), chip.memory + 1)
    return Report(chip, chips, dtype, flops, seconds, None, needed, None, {})
  seconds = time.monotonic() - began
  memory, moved = _memory(compiled), hlo.analyse(compiled.as_text())
  return Report(
    chip, chips, dtype, flops, seconds, memory, memory.needed, moved.traffic, moved.collectives
  )


def _memory(compiled: Compiled) -> Memory:
  found = compiled.memory_analysis()
  assert found is not None  # it is for CPUs, TPUs and GPUs
  return Memory(
    found.argument_size_in_bytes,
    found.output_size_in_bytes,
    found.alias_size_in_bytes,
    found.temp_size_in_bytes,
    found.generated_code_size_in_bytes,
    found.peak_memory_in_bytes,
  )


def _demand(message: str) -> float:
  """The bytes that a compiler's refusal names; inf if it names none."""
  for pattern in _DEMANDS:
    if found := pattern.search(message):
      return float(found[1]) * _UNITS[found[2]]
  return math.inf


def _format(value: float, unit: str) -> str:
  """Such as "1.25 GB" or "34.1 us"."""
  prefixes = "num kMGTPE"
  power = min(max(math.floor(math.log10(value) / 3), -3), 6) if value else 0
  return f"{value / 1000.0**power:.3g} {prefixes[power + 3].strip()}{unit}"
