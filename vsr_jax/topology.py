"""Devices that are not there, to compile programs for: slices of TPUs, and GPUs by a description.

A GPU is described by XLA's GpuTargetConfigProto as text, as in
https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs.
"""

from __future__ import annotations

import math
import pathlib
import re

import jax
from jax.experimental import topologies

from vsr_jax.chips import CHIPS, Chip, find_chip
from vsr_jax.errors import UserError
from vsr_jax.guards import read_text

EXAMPLES = "v5e:4x4, v5p:2x2x4, v6e:16x16 or a GPU's description, FILE.txtpb"
LARGEST = 8960  # chips of the largest slice, of v5p

_TPU = re.compile(r"(v5e|v5p|v6e):(\d{1,4}(?:x\d{1,4}){1,2})")
_GPU = re.compile(r"(.+\.txtpb)(?::(\d{1,4}))?", re.DOTALL)
_DESCRIPTION_LIMIT = 1 << 16  # bytes


def devices_of(topology: str) -> tuple[list[jax.Device], Chip]:
  """Returns the devices of a topology; programs can be compiled for them, and nothing runs there.

  To be called after `runtime.compile_without_devices`.

  Args:
    topology: a kind of TPU and how many chips stand along each axis of the slice, such as
      "v5e:4x4"; or the file of a GPU's description and how many there are, "h100.txtpb:8".

  Returns:
    The devices, and what they are.

  Raises:
    UserError: the topology is unknown, or the package that compiles for it is missing.
    OSError: the description cannot be read.
  """
  if found := _GPU.fullmatch(topology):
    devices = _gpus(found[1], int(found[2] or 1))
  elif found := _TPU.fullmatch(topology):
    devices = _tpus(topology, [int(n) for n in found[2].split("x")])
  else:
    raise _unknown(topology)
  if chip := find_chip(devices[0]):
    return devices, chip
  raise UserError(
    f"--topology {topology}: {devices[0].device_kind!r} is no chip of the table; it has "
    f"{', '.join(CHIPS)}"
  )


def _unknown(topology: str) -> UserError:
  return UserError(f"--topology {topology}: unknown; give one such as {EXAMPLES}")


def _tpus(topology: str, sides: list[int]) -> list[jax.Device]:
  if not 1 <= math.prod(sides) <= LARGEST:
    raise _unknown(topology)
  # A slice of one chip is a part of a host, which libtpu otherwise takes for four chips.
  bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sides) == 1 else {}
  try:
    return list(topologies.get_topology_desc(topology, platform="tpu", **bounds).devices)
  except RuntimeError as e:
    reason = str(e).partition("\n")[0]
    if "not installed" in reason:
      raise UserError(
        f"--topology {topology}: takes the package libtpu, which compiles for TPUs without one: "
        f"pip install 'jax[tpu]=={jax.__version__}'"
      ) from e
    raise UserError(
      f"--topology {topology}: {reason}; give one that exists, such as {EXAMPLES}"
    ) from e


def _gpus(path: str, count: int) -> list[jax.Device]:
  if count < 1:
    raise UserError(f"--topology {path}:{count}: must be at least 1 GPU")
  text = read_text(pathlib.Path(path), _DESCRIPTION_LIMIT)
  jax.devices()  # finds the plugins
  try:
    return list(
      topologies.get_topology_desc(
        "", platform="cuda", target_config=text, topology=f"1x1x{count}"
      ).devices
    )
  except NotImplementedError as e:
    raise UserError(
      f"--topology {path}: takes JAX's plugin for GPUs, which compiles for one without it: "
      f"pip install 'jax[cuda12]=={jax.__version__}'"
    ) from e
  except RuntimeError as e:
    reason = str(e).partition("\n")[0]
    raise UserError(
      f"--topology {path}: {reason}; give the description of a GPU, as XLA has them"
    ) from e
