"""Programs of streams that are only compiled; what compiling needs is installed seldom."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks import aot
from keep_jax import architecture
from tests.keep_jax import tiny
from tests.support.fmanet import SMALLEST
from vsr_jax.chips import CHIPS


def outputs(program):
  function, args = program
  return jax.tree.leaves(jax.eval_shape(function, *args))


@pytest.mark.slow
def test_programs_of_both_systems_are_those_of_batches(monkeypatch):
  monkeypatch.setattr(aot, "Architecture", lambda: SMALLEST)
  monkeypatch.setattr(architecture, "Architecture", lambda: tiny.ARCH)
  programs = aot.fmanet_programs("float32", 2, 8, 12)
  (image,) = outputs(programs["window"])
  assert image.shape == (2, 8 * SMALLEST.scale, 12 * SMALLEST.scale, 3)
  assert {x.shape[:3] for x in outputs(programs["features"])} == {(2, 8, 12)}
  programs = aot.keep_programs("bfloat16", 2)
  side = tiny.ARCH.image_size
  images = [x for x in outputs(programs["step"]) if x.dtype == np.uint8]
  assert [x.shape for x in images] == [(side, side, 3)] * 2
  assert [x.shape for x in outputs(programs["flow"])] == [(1, side, side, 2)] * 2
  assert {x.shape[-1] for x in outputs(programs["gains"])} == {1}
  report = aot.report(programs["gains"], jax.devices()[0], CHIPS["v5e"], "bfloat16")
  assert report.fits
  assert report.collectives == {}


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    (["fmanet", "--topology", "v3:8"], "--topology v3:8: unknown"),
    (["fmanet", "--batch", "0"], "--batch 0: must be at least 1"),
    (["stillness"], "invalid choice: 'stillness'"),
  ],
)
def test_what_cannot_be_compiled_is_told(run_main, monkeypatch, arguments, line):
  monkeypatch.setattr(aot.runtime, "compile_without_devices", lambda: None)
  assert line in run_main(aot.main, *arguments, code=2).err
