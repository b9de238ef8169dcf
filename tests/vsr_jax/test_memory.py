"""Free memory is read from the machine; kept memory is not faulted in again."""

from __future__ import annotations

import os

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
