"""Weights that are taken out of a run of FMA-Net restore as the run's do."""

from __future__ import annotations

import jax
import numpy as np

from fmanet_jax import extract, streaming
from tests.support import fmanet
from tests.support.programs import relative_error


def test_a_run_s_weights_are_taken_out(run_main, tmp_path):
  fmanet.save(tmp_path / "run")
  said = run_main(extract.main, tmp_path / "run", tmp_path / "weights", "--float16")
  assert f"{tmp_path / 'weights'}: FMA-Net of scale 2, " in said.out
  _, found = streaming.load(tmp_path / "weights")
  for a, b in zip(jax.tree.leaves(fmanet.load()[1]), jax.tree.leaves(found), strict=True):
    assert relative_error(np.asarray(b), np.asarray(a)) < 1e-3
  said = run_main(extract.main, tmp_path / "run", tmp_path / "run", code=2)
  assert "holds the run" in said.err
