"""Settings of a process: kept memory is not faulted in again; where compiled programs are kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from vsr_jax import memory, runtime

if sys.argv[1] == "keep":
  runtime.keep_freed_memory()
if sys.argv[1] == "return":
  runtime.return_freed_memory()
libc, size = ctypes.CDLL(None), int(sys.argv[2])
libc.malloc.restype = ctypes.c_void_p
for i in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = ctypes.c_void_p(libc.malloc(size))
  ctypes.memset(block, 1, size)
  libc.free(block)
  if sys.argv[1] == "release":
    memory.release_freed_memory()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt and malloc_trim are of glibc")
def test_kept_memory_is_used_again_and_memory_given_back_is_not():
  def faults(how, size=2**26):
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    run = subprocess.run(
      [sys.executable, "-c", FAULTS, how, str(size)],
      env=env,
      capture_output=True,
      text=True,
      check=True,
    )
    return int(run.stdout)

  # 64 MB are 16,384 pages of 4 KB, or 32 of 2 MB.
  assert faults("keep") < 16
  assert faults("release") >= 32
  # From 32 MB on it is given back anyway.
  assert faults("nothing", 2**24) < 8
  assert faults("return", 2**24) >= 8
  assert faults("return", 2**22) < 8


CACHE = """
import jax
from vsr_jax.runtime import enable_compilation_cache
enable_compilation_cache()
print(jax.config.jax_compilation_cache_dir)
"""


def cache_folder(**environment):
  kept = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "HOME")}
  result = subprocess.run(
    [sys.executable, "-c", CACHE],
    env={**kept, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  return result.stdout.strip()


def test_the_compilation_cache_does_without_a_home_that_can_be_written(tmp_path):
  blocked = tmp_path / "file"
  blocked.write_text("a file, so that nothing can be made below")
  assert cache_folder(HOME=str(blocked)) == "None"
  assert cache_folder(HOME=str(tmp_path)) == str(tmp_path / ".cache/vsr_jax")
  assert cache_folder(XDG_CACHE_HOME=str(tmp_path / "x")) == str(tmp_path / "x/vsr_jax")
