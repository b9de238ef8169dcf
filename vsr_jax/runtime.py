"""Settings of a whole process, for commands: compiled programs on disk, dispatch, freed memory.

Nothing in the library calls them, so that importing a package or loading a model leaves a program
as it is; docs/library.md tells which of them another program may want. Of the two settings for
freed memory the one called last holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib

import jax

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEFAULT_MMAP_MAX = 2**16  # glibc's default

WITHOUT_DEVICES = {  # environment variables of `compile_without_devices`
  # Otherwise libtpu asks a cloud's metadata server what it runs on. The type is that of any TPU.
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # One process at a time may use a TPU; any number may compile for one.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


def compiler_options() -> dict[str, str]:
  """Returns `compiler_options` of `jax.jit` for programs that restore frames; sets nothing."""
  if jax.default_backend() != "cpu":
    return {}
  # XLA's own loops (norms, activations, softmax) otherwise use half of an AVX-512 register.
  return {"xla_cpu_prefer_vector_width": "512"}


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that only the first clip of a size waits for one.

  The folder is JAX_COMPILATION_CACHE_DIR or else a folder in the user's cache;
  where neither can be written, programs are compiled anew by every process.
  """
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined] # JAX adds it
    return
  try:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(root) / "vsr_jax"
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # no home, or one that cannot be written
    return
  if os.access(folder, os.W_OK | os.X_OK):
    jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_without_devices() -> None:
  """Prepares the process for `topology.devices_of`, before JAX starts: the CPU is its only device.

  Programs compiled for devices that are not there are not kept on disk, from where they could only
  be loaded onto the devices.
  """
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_compilation_cache_dir", None)
  for name, value in WITHOUT_DEVICES.items():
    os.environ.setdefault(name, value)


def return_freed_memory() -> None:
  """Returns arrays of 16 MB and more to the system when they are freed (glibc).

  For FMA-Net's streams, which then take no more memory for a long clip than for a short one. By
  default glibc returns only arrays above the largest size freed so far, up to 32 MB, and puts
  the others into the heaps of its threads, whose holes add up over a long clip: FMA-Net's features
  at 180x320 take 21 MB. Smaller arrays, such as the scratch of every convolution, are better kept:
  the system would clear their pages anew each time. If GLIBC_TUNABLES is set, nothing is
  changed.
  """
  # Setting one threshold ends glibc's own adjustment of both, so the other is set too: its initial
  # 128 KB would make the heaps shrink and grow all the time.
  _set_allocator(mmap_max=_DEFAULT_MMAP_MAX, mmap_threshold=2**24, trim_threshold=2**24)


def keep_freed_memory() -> None:
  """Keeps memory that is freed for the next allocation instead of giving it back (glibc).

  For work on CPU that repeats, such as KEEP's streams and training: XLA allocates a step's
  temporaries anew each step, and having the system take and clear their pages each time costs about
  a quarter of a small model's step.

  Only the main thread's heap can grow to hold them, so programs are run by the thread that calls
  them. (One heap for all threads would also do, but the fragments that compiling leaves there make
  every later allocation slow: a step took 2.8 instead of 1.7 seconds.) To be called before JAX
  starts; if GLIBC_TUNABLES is set, nothing is changed.
  """
  if "GLIBC_TUNABLES" not in os.environ:
    jax.config.update("jax_cpu_enable_async_dispatch", False)
  _set_allocator(mmap_max=0, mmap_threshold=2**24, trim_threshold=2**31 - 1)


def _set_allocator(*, mmap_max: int, mmap_threshold: int, trim_threshold: int) -> None:
  """Sets every parameter that either setting uses, so that nothing of the other one is left."""
  if "GLIBC_TUNABLES" in os.environ:
    return
  with contextlib.suppress(OSError, AttributeError):  # another C library
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, mmap_max)
    mallopt(_MMAP_THRESHOLD, mmap_threshold)
    mallopt(_TRIM_THRESHOLD, trim_threshold)
