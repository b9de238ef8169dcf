from __future__ import annotations

import tempfile

import jax
import pytest

from tests.vsr_jax.train.toy import STAGE, batches, init_params
from vsr_jax.train.loop import fit
from vsr_jax.train.profile import Profile, Window, parse_window


def traces(workdir):
  """The bytes of every trace, by the name of its folder."""
  files = sorted((workdir / "plugins" / "profile").glob("*/*.xplane.pb"))
  return {file.parent.name: file.read_bytes() for file in files}


def test_windows_are_parsed():
  assert parse_window("1000:5") == Window(1000, 5)
  assert parse_window("1000:5").last == 1004


@pytest.mark.parametrize("text", ["", "5", "1000:", ":5", "0:5", "5:0", "-1:5", "1.5:2", "1:2:3"])
def test_a_malformed_window_is_refused(text):
  with pytest.raises(ValueError, match="is not START:STEPS"):
    parse_window(text)


def test_a_window_beyond_the_run_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(ValueError, match="ends after the run's 3 steps"):
    fit(STAGE, init_params, batches(), workdir=tmp_path / "run", steps=3, profile=Window(2, 3))
  assert not (tmp_path / "run").exists()


def test_a_trace_has_the_windows_steps_and_the_scopes_of_the_program(tmp_path):
  options = {"workdir": tmp_path, "checkpoint_every": 2, "profile": Window(2, 3)}

  def broken(params, step):
    raise RuntimeError("power cut")

  with pytest.raises(RuntimeError, match="power cut"):
    fit(STAGE, init_params, batches(), steps=6, evaluate=broken, evaluate_every=3, **options)
  assert set(traces(tmp_path)) == {"steps_2-3"}  # what there was when the run broke off
  fit(STAGE, init_params, batches(), steps=6, **options)
  found = traces(tmp_path)
  assert set(found) == {"steps_2-3", "steps_3-4"}
  for trace in found.values():
    assert b"train_step" in trace
    for scope in (b"jvp(loss)", b"/optimizer/"):
      assert scope in trace
  with pytest.warns(UserWarning, match="steps 2 to 4 are done already and are not traced"):
    fit(STAGE, init_params, batches(), steps=7, **options)
  assert set(traces(tmp_path)) == set(found)
  assert not list((tmp_path / "plugins").rglob("*.part"))


def trace(workdir, steps=3):
  """Goes through steps that compute nothing, each of which is in the window."""
  with Profile(workdir, Window(1, steps)) as tracing:
    for number in range(1, steps + 1):
      with tracing.step(number, None):
        pass
      tracing.after(number, None)


@pytest.mark.parametrize("stage", ["temporary folder", "start", "stop", "place"])
def test_a_trace_that_cannot_be_written_is_a_warning(stage, tmp_path, monkeypatch):
  stop, run = jax.profiler.stop_trace, tmp_path / "run"
  (tmp_path / "temporary").mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

  def full(*args, **options):
    if stage == "stop":
      stop()
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left on device")

  if stage == "temporary folder":
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
  elif stage == "place":
    run.write_text("a file where the folder should be")
  else:
    monkeypatch.setattr(jax.profiler, f"{stage}_trace", full)
  with pytest.warns(UserWarning, match="run/plugins/profile: the trace cannot be wr") as warned:
    trace(run)
  assert len(warned) == 1
  assert tempfile.tempdir in str(warned[0].message)
  assert not list((tmp_path / "temporary").iterdir())
