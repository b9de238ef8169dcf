"""Architectures: whatever a stranger's JSON says is a model's number or one line."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

import fmanet_jax.model as fmanet
import keep_jax.architecture as keep
from vsr_jax.architecture import from_entries
from vsr_jax.errors import UserError

BOTH = pytest.mark.parametrize("cls", [fmanet.Architecture, keep.Architecture])
NEVER = [
  None,
  "",
  "2",
  [],
  {},
  [[1]],
  -1,
  -(2**80),
  10**7,
  10**400,
  1e9,
  float("nan"),
  float("inf"),
]


@BOTH
@pytest.mark.parametrize("value", NEVER, ids=lambda value: repr(value)[:20])
def test_each_number_has_a_type_and_limits(cls, value):
  for field in dataclasses.fields(cls):
    if value == [] and field.name in ("cft", "cfa"):  # none at all
      continue
    with pytest.raises(UserError, match=rf"^DIR: model\.{field.name} = .{{1,80}}: ") as error:
      from_entries(cls, {field.name: value}, "DIR")
    assert str(error.value).isprintable()


@BOTH
def test_truth_values_are_no_numbers(cls):
  numbers = [f.name for f in dataclasses.fields(cls) if f.type in ("int", "float")]
  assert len(numbers) >= 12
  for name in numbers:
    with pytest.raises(UserError, match=rf"model\.{name} = True: must be an? "):
      cls(**{name: True})


@BOTH
def test_what_a_checkpoint_keeps_is_read_back(cls):
  entries = json.loads(json.dumps(dataclasses.asdict(cls())))
  assert from_entries(cls, entries, "DIR") == cls()


@BOTH
@pytest.mark.parametrize("entries", [None, [], "model", {"x" * 10**6: 1}, {"kernel": 3}])
def test_entries_of_something_else_are_told(cls, entries):
  with pytest.raises(UserError, match="^DIR: not ours") as error:
    from_entries(cls, entries, "DIR", "not ours")
  assert len(str(error.value)) < 150


def test_the_largest_models_are_put_together_within_seconds():
  arch = fmanet.Architecture(dim=6, heads=1, flows=1, frma_blocks=64, attention_blocks=32)
  began = time.process_time()
  shapes = fmanet.param_shapes(fmanet.FMANet(arch))
  assert time.process_time() - began < 10  # 1 s; with each block traced, minutes
  assert {"frma_63", "encoder"} <= shapes["net_r"].keys()
  assert "attention_31" in shapes["net_r"]["frma_63"]
