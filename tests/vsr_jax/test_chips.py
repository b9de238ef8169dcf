from __future__ import annotations

import types

import jax
import pytest

from vsr_jax.chips import CHIPS, find_chip


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"),
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"),
  ],
)  # fmt: skip
def test_a_chip_is_known_by_what_jax_calls_it(kind, name):
  assert find_chip(types.SimpleNamespace(device_kind=kind)) is CHIPS[name]


def test_a_cpu_is_no_chip_of_the_table():
  assert find_chip(jax.devices("cpu")[0]) is None


def test_figures_are_of_the_right_magnitude_and_kinds_belong_to_one_chip():
  kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
  assert len(kinds) == len(set(kinds))
  for chip in CHIPS.values():
    assert 1e14 < chip.peak("float32") <= chip.peak("bfloat16") < 1e16  # FLOP/s
    assert 1e10 <= chip.memory < chip.memory_bandwidth < 1e13  # each is read in less than a second
    assert 1e11 < chip.interconnect < chip.memory_bandwidth
    assert chip.sources
    assert all(x.startswith("https://") for x in chip.sources)
