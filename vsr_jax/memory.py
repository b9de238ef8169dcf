"""What memory is free, and what is done with memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib

import jax

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def free_memory(device: jax.Device) -> int:
  """Bytes that a program can still take on a device; of the machine for a CPU."""
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  try:  # what the kernel could free of its caches counts, unlike in SC_AVPHYS_PAGES
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    entries = dict(line.split(":", 1) for line in lines)
    free = 1024 * int(entries["MemAvailable"].split()[0])
    return int(min(free, _free_of_container()))
  except (OSError, KeyError):  # not Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_of_container(group: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> float:
  """Bytes that the process's control group (version 2) may still take; inf without a limit."""
  try:
    limit = float((group / "memory.max").read_text())
    used = int((group / "memory.current").read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return limit - used + int(stat["inactive_file"])  # the part of its caches that it gives up
  except (OSError, ValueError, KeyError):  # no control group, or "max"
    return float("inf")


def release_freed_memory() -> None:
  """Gives memory that was freed, such as what compiling took, back to the system (glibc)."""
  with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory() -> None:
  """Has arrays of 16 MB and more given back to the system when they are freed (glibc).

  Of itself glibc does so only above the size of the largest one freed yet, up to 32 MB, and lays
  the others into the heaps of its threads, whose holes add up over a long clip: FMA-Net's features
  at 180x320 are of 21 MB. Smaller ones, such as the scratch of every convolution, had better stay:
  the system would clear their pages anew each time. Where GLIBC_TUNABLES says something, that
  holds.
  """
  if "GLIBC_TUNABLES" not in os.environ:
    _mallopt(_MMAP_THRESHOLD, 2**24)
    # Setting one ends the adjustment of both, which would have come to this; the initial 128 KB
    # have the heaps shrink and grow all the time.
    _mallopt(_TRIM_THRESHOLD, 2**24)


def keep_freed_memory() -> None:
  """Keeps memory that is freed for the next allocation instead of giving it back (glibc).

  For work on CPU that repeats: XLA allocates a step's temporaries anew each step, and having the
  system take and clear their pages each time costs about a quarter of a small model's step.

  Only the main thread's heap can grow to hold them, so programs are run by the thread that calls
  them. (One heap for all threads would do as well, but what compiling leaves there in pieces makes
  every later allocation slow: a step took 2.8 instead of 1.7 seconds.) Call it before JAX starts;
  where GLIBC_TUNABLES says something, that holds.
  """
  if "GLIBC_TUNABLES" in os.environ:
    return
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  _mallopt(_MMAP_MAX, 0)
  _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _mallopt(parameter: int, value: int) -> None:
  with contextlib.suppress(OSError, AttributeError):  # another C library
    ctypes.CDLL(None).mallopt(parameter, value)
