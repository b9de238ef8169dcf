"""Reports of programs that fit a chip, that do not, and that a compiler refuses."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from vsr_jax.chips import CHIPS
from vsr_jax.compile_report import Memory, Report, examine
from vsr_jax.hlo import Collective
from vsr_jax.sharding import batch_sharding, make_mesh, replicated

V5E = CHIPS["v5e"]
FITS = Report(
  chip=V5E,
  chips=16,
  dtype="bfloat16",
  flops=V5E.bfloat16,
  compile_seconds=61.2,
  memory=Memory(2 * 10**9, 10**9, 10**9, 5 * 10**9, 10**7, 6 * 10**9),
  needed=7.01e9,
  traffic=int(3 * V5E.memory_bandwidth),
  collectives={"all-reduce": Collective(2, 10**9, 0.5 * V5E.interconnect)},
)


@pytest.fixture(scope="module")
def traced():
  """A product of a batch of 16 with a matrix, over the eight devices."""
  mesh = make_mesh()
  w = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=replicated(mesh))
  x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=batch_sharding(mesh))

  def function(w, x):
    return w - jax.grad(lambda w: (x @ w).sum())(w)

  return jax.jit(function, donate_argnums=0, out_shardings=replicated(mesh)).trace(w, x)


def test_a_program_is_counted_a_chip(traced):
  report = examine(traced, V5E, 8, "float32")
  assert report.memory.arguments == 32 * 32 * 4 + 2 * 32 * 4
  assert report.memory.outputs == report.memory.aliased == 32 * 32 * 4
  assert report.needed == report.memory.needed >= report.memory.arguments
  # The gradient's product, and the other elementwise work that is no larger than the matrix.
  product = 2 * 16 * 32 * 32
  assert product / 8 <= report.flops <= 1.2 * product / 8 + 32 * 32
  assert report.traffic >= report.memory.arguments
  assert report.fits
  assert report.collectives.keys() == {"all-reduce"}


def test_the_roofline_and_the_verdict():
  assert FITS.memory.needed == 7.01e9
  assert FITS.seconds == pytest.approx({"compute": 1, "memory": 3, "network": 0.5})
  assert FITS.verdict == "fits: needs 7.01 of 16 GB a chip (44%); bound by memory, at least 3 s"
  exact = dataclasses.replace(FITS, dtype="float32", chip=CHIPS["h100"])
  assert exact.seconds["compute"] == pytest.approx(V5E.bfloat16 / CHIPS["h100"].float32)


def test_a_program_larger_than_the_chip_does_not_fit():
  report = dataclasses.replace(FITS, needed=17e9)
  assert not report.fits
  assert report.verdict == "does not fit: needs 17 of 16 GB a chip (106%)"


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries"
      " (18.50G) exceeds available HBM (15.75G).",
      18.5 * 2**30,
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm."
      " Used 43.36G of 15.75G hbm. Exceeded hbm capacity by 27.61G.",
      43.36 * 2**30,
    ),
    # What it names may be a part only.
    ("RESOURCE_EXHAUSTED: Used 900.0M of 100.0M vmem", V5E.memory + 1),
    ("RESOURCE_EXHAUSTED: no place", math.inf),
  ],
)
def test_what_a_compiler_refuses_does_not_fit(monkeypatch, traced, message, needed):
  def refuse(self, *_):
    raise RuntimeError(message)

  monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
  report = examine(traced, V5E, 8, "float32")
  assert (report.fits, report.memory, report.needed) == (False, None, needed)
  assert report.verdict.startswith("does not fit: ")
  assert "work" in report.to_text()
  assert json.loads(json.dumps(report.to_json(), allow_nan=False))["fits"] is False


def test_other_failures_of_a_compiler_are_not_hidden(monkeypatch, traced):
  def fail(self, *_):
    raise RuntimeError("INTERNAL: something else")

  monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
  with pytest.raises(RuntimeError, match="something else"):
    examine(traced, V5E, 8, "float32")


def test_the_table_and_the_json_tell_the_same():
  text, told = FITS.to_text(), json.loads(json.dumps(FITS.to_json(), allow_nan=False))
  rows = {line[2:26].strip(): line[26:].strip() for line in text.splitlines()}
  assert rows["chips"] == "16 x v5e"
  assert rows["memory, temporaries"] == "5 GB"
  assert rows["all-reduce (2)"] == "1 GB"
  assert rows["at least, network"] == "500 ms"
  assert rows["compiled in"] == "61.2 s"
  assert text.endswith(FITS.verdict)
  assert told["memory_bytes"]["temporaries"] == 5 * 10**9
  assert told["collectives"] == {"all-reduce": {"count": 2, "bytes": 10**9, "sent": 1e11}}
  assert told["roofline_seconds"] == FITS.seconds
  assert told["chip"]["name"] == "v5e"
