"""Devices that are not there, to compile programs for: the TPU slices that libtpu knows."""

from __future__ import annotations

import math
import re

import jax
from jax.experimental import topologies

from vsr_jax.errors import UserError

EXAMPLES = "v5e:4x4, v5p:2x2x4 or v6e:16x16"
LARGEST = 8960  # chips of the largest slice, of v5p

_NAME = re.compile(r"(v5e|v5p|v6e):(\d{1,4}(?:x\d{1,4}){1,2})")


def devices_of(topology: str) -> list[jax.Device]:
  """Returns the devices of a topology; programs can be compiled for them, and nothing runs there.

  To be called after `runtime.compile_without_devices`.

  Args:
    topology: a kind of chip and how many stand along each axis of the slice, such as "v5e:4x4".

  Raises:
    UserError: the topology is unknown, or libtpu is missing.
  """
  found = _NAME.fullmatch(topology)
  sides = [int(n) for n in found[2].split("x")] if found else [0]
  if not 1 <= math.prod(sides) <= LARGEST:
    raise UserError(f"--topology {topology}: unknown; give one such as {EXAMPLES}")
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
