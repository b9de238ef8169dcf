"""Exported params of somebody else: what is wrong with them is told before they take memory."""

from __future__ import annotations

import json
import shutil
import sys
import types

import numpy as np
import pytest

from vsr_jax.checkpoint import export_params, restore_params
from vsr_jax.errors import UserError


def test_params_that_are_not_finite_are_refused(tmp_path):
  params = {"net": {"a": np.array([1.0, np.nan]), "b": np.ones(2), "c": np.array([-np.inf])}}
  export_params(tmp_path / "x", params, {})
  with pytest.raises(UserError, match=r"x holds NaN or infinite numbers in net/a, net/c; "):
    restore_params(tmp_path / "x")


def test_arrays_beyond_what_the_files_hold_are_refused(tmp_path, monkeypatch):
  export_params(tmp_path / "x", {"net": {"a": np.ones(4, np.float32)}}, {})
  path = tmp_path / "x" / "meta" / "meta.json"
  meta = json.loads(path.read_text())
  meta["arrays"]["params"]["net/a"] = "float32[1000000,1000]"
  path.write_text(json.dumps(meta))
  monkeypatch.delattr("vsr_jax.checkpoint.load_items")
  with pytest.raises(UserError, match="x: damaged, its meta tells of 4,000,000,000 bytes of arra"):
    restore_params(tmp_path / "x")


@pytest.mark.parametrize(
  "table",
  [
    {"a": "float99[2]"},
    {"a/" * 1000: "float32[2]"},
    {"\x1b[2J": "float32[2]"},
    {"a" * 999: "bool[]"},
  ],
  ids=["dtype", "depth", "control characters", "length"],
)
def test_paths_and_dtypes_that_cannot_be_are_damage(table, tmp_path):
  export_params(tmp_path / "x", {"net": {"a": np.ones(4, np.float32)}}, {})
  path = tmp_path / "x" / "meta" / "meta.json"
  path.write_text(json.dumps({"arrays": {"params": table}}))
  with pytest.raises(UserError, match="x: damaged, its meta cannot be read"):
    restore_params(tmp_path / "x")


def test_an_average_of_another_shape_is_not_the_models(tmp_path):
  """The meta tells what Orbax is asked for."""
  like = {"net": {"a": np.ones(4, np.float32)}}
  export_params(tmp_path / "x", like, {})
  path = tmp_path / "x" / "meta" / "meta.json"
  meta = json.loads(path.read_text())
  meta["arrays"]["ema"] = {"net/b": "float32[4]"}
  path.write_text(json.dumps(meta))
  with pytest.raises(UserError, match="x: not the weights of this model: net/a is missing; net/b"):
    restore_params(tmp_path / "x", like)
  assert restore_params(tmp_path / "x", like, ema=False)["net"]["a"].shape == (4,)


def test_reads_that_end_late_are_not_told(tmp_path, monkeypatch):
  """Their threads find that nobody waits for them, at any time after the error."""
  told = []
  monkeypatch.setattr(sys, "unraisablehook", told.append)
  export_params(tmp_path / "x", {"net": {"a": np.ones(4, np.float32)}}, {})
  for path in (tmp_path / "x" / "params").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:20])
  for _ in range(2):
    with pytest.raises(UserError, match="x: damaged, its params cannot be read"):
      restore_params(tmp_path / "x")
  told.clear()
  late, other = RuntimeError("Event loop is closed"), RuntimeError("Event loop")
  for error in (late, other):
    sys.unraisablehook(types.SimpleNamespace(exc_type=type(error), exc_value=error))
  assert [report.exc_value for report in told] == [other]


def test_a_flipped_bit_is_noticed(tmp_path):
  """Orbax and its compression pass most of them."""
  rng = np.random.default_rng(0)
  export_params(tmp_path / "x", {"net": {"a": rng.standard_normal(10_000, np.float32)}}, {})
  good = restore_params(tmp_path / "x")["net"]["a"]
  path = max((tmp_path / "x").rglob("*"), key=lambda p: p.stat().st_size)
  whole = path.read_bytes()
  refused = 0
  for at in rng.integers(len(whole), size=8):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    try:
      np.testing.assert_array_equal(restore_params(tmp_path / "x")["net"]["a"], good)
    except UserError as e:
      refused += "x: damaged, its params" in str(e)
  assert refused >= 6


def test_what_is_constant_may_be_large(tmp_path):
  """Zeros are compressed to almost nothing."""
  params = {"net": {"a": np.zeros((2**20, 8), np.float32)}}
  export_params(tmp_path / "x", params, {})
  assert restore_params(tmp_path / "x")["net"]["a"].shape == (2**20, 8)


def test_params_that_do_not_fit_on_the_disk_are_told_before_anything_is_written(
  tmp_path, monkeypatch, run_main
):
  usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  params = {"net": {"a": np.ones(10**6, np.float32)}}
  line = run_main(lambda: export_params(tmp_path / "new" / "x", params, {}), code=2).err
  assert line == (
    f"error: no space left on the disk while writing {tmp_path}/new/x; free some and run again\n"
  )
  assert not list(tmp_path.iterdir())
