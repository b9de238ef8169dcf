"""Free memory is read from the machine; kept memory is not faulted in again."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from vsr_jax import memory


def test_free_memory_is_a_part_of_the_machines():
  total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  assert 2**20 < memory.free_memory(jax.devices("cpu")[0]) <= total


def test_free_memory_of_an_accelerator_is_what_its_allocator_has_left():
  class Device:
    def memory_stats(self):
      return {"bytes_limit": 100, "bytes_in_use": 30}

  assert memory.free_memory(Device()) == 70


@pytest.mark.parametrize(
  ("limit", "free"), [("1000", 1000 - 900 + 300), ("max", float("inf")), (None, float("inf"))]
)
def test_a_container_gives_up_what_it_caches(tmp_path, limit, free):
  if limit:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
  (tmp_path / "memory.current").write_text("900\n")
  (tmp_path / "memory.stat").write_text("anon 500\nactive_file 100\ninactive_file 300\n")
  assert memory._free_of_container(tmp_path) == free


FAULTS = """
import ctypes, resource, sys
from vsr_jax import memory

if sys.argv[1] == "keep":
  memory.keep_freed_memory()
if sys.argv[1] == "return":
  memory.return_freed_memory()
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
