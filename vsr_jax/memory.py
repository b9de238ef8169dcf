"""Measures free memory, and returns freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib

import jax


def free_memory(device: jax.Device) -> int:
  """Bytes that a program can still take on a device; for a CPU, of the machine's memory.

  Where the system does not report it (not Linux), half of the physical memory.
  """
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  try:  # it counts caches that the kernel could free, unlike SC_AVPHYS_PAGES
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    entries = dict(line.split(":", 1) for line in lines)
    free = 1024 * int(entries["MemAvailable"].split()[0])
    return int(min(free, _free_of_container()))
  except (OSError, KeyError):  # not Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_of_container(group: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> float:
  """Bytes that the process's control group (version 2) may still take; inf if not limited."""
  try:
    limit = float((group / "memory.max").read_text())
    used = int((group / "memory.current").read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit - used + int(stat["inactive_file"])  # caches that the kernel frees when needed
  except (OSError, ValueError, KeyError):  # no control group, or "max"
    return float("inf")


def release_freed_memory() -> None:
  """Gives memory that was freed, such as what compiling took, back to the system (glibc)."""
  with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).malloc_trim(0)
