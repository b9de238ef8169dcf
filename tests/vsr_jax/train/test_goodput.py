from __future__ import annotations

import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.vsr_jax.train.toy import STAGE, Listed, batches, init_params, loss, make_stage
from vsr_jax.chips import CHIPS
from vsr_jax.sharding import make_mesh, place_batch
from vsr_jax.train import goodput, loop
from vsr_jax.train.goodput import KINDS, Goodput, Work
from vsr_jax.train.loop import fit


class Clock:
  """Stands for the module `time`; the time passes by hand."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


class Step:
  """Stands for what a step makes, which is there once the test says so."""

  def __init__(self):
    self.done = threading.Event()

  def block_until_ready(self):
    assert self.done.wait(10)


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(goodput, "time", clock)
  return clock


def told(workdir):
  return json.loads((workdir / goodput.FILE).read_text())


def end(step, measured):
  """Ends a step and waits until its end is noted."""
  step.done.set()
  measured._end.result(10)


def test_a_sessions_seconds_are_divided_without_rest(tmp_path, clock):
  with Goodput(tmp_path, clock.now - 5) as measured:
    clock.now += 2
    measured.begin(0)
    with measured.of("compile"):
      clock.now += 11
    measured.take(Work(8, 3e12, 2, CHIPS["v5e"], "bfloat16"))
    for step in range(1, 5):
      clock.now += 0.5
      measured.finished(step)
    with measured.of("evaluation"):
      clock.now += 3
    with measured.of("checkpoints"):
      clock.now += 4
  seconds = {"start": 7, "compile": 11, "data": 0, "steps": 2, "evaluation": 3, "checkpoints": 4}
  found = told(tmp_path)
  assert found["seconds"] == seconds | {"lost": 0}
  assert (found["steps_per_second"], found["samples_per_second"]) == (2, 16)
  assert found["flop_utilisation"] == pytest.approx(2 * 3e12 / (2 * 197e12))
  assert (found["chip"], found["devices"], found["flops_per_step"]) == ("v5e", 2, 3e12)


def test_making_a_batch_is_waiting_only_as_far_as_no_step_runs(tmp_path, clock):
  with Goodput(tmp_path) as measured:
    measured.begin(0)
    first, second, third = Step(), Step(), Step()
    measured.started(first)
    with measured.making_batch():  # ends before the step
      clock.now += 1
    end(first, measured)
    measured.started(second)
    with measured.making_batch():  # ends two seconds after the step
      clock.now += 1
      end(second, measured)
      clock.now += 2
    measured.started(third)
    end(third, measured)
    clock.now += 1
    with measured.making_batch():  # begins after the step
      clock.now += 4
  assert told(tmp_path)["seconds"]["data"] == 2 + 4
  assert told(tmp_path)["seconds"]["steps"] == 1 + 1 + 1


def test_steps_that_a_kill_lost_are_taken_from_the_steps(tmp_path, clock, monkeypatch):
  monkeypatch.setattr(goodput, "WRITE_EVERY", 0)
  killed = Goodput(tmp_path)  # never ended: nothing is written at its end
  killed.begin(100)
  for step in range(101, 111):
    clock.now += 2
    killed.finished(step)
  with Goodput(tmp_path) as measured:
    clock.now += 1
    measured.begin(106)
    clock.now += 3
    measured.finished(107)
  found = told(tmp_path)
  assert (found["sessions"], found["step"]) == (2, 107)
  assert (found["timed_steps"], found["lost_steps"]) == (7, 4)
  seconds = dict.fromkeys(KINDS, 0) | {"start": 1, "steps": 12 + 3, "lost": 8}
  assert found["seconds"] == seconds


@pytest.mark.parametrize("text", ["{", "[]", '{"sessions": 1}', '{"sessions": -1}'])
def test_a_damaged_file_is_told_and_replaced(tmp_path, text):
  (tmp_path / goodput.FILE).write_text(text)
  with (
    pytest.warns(UserWarning, match="goodput.json: damaged .*summed anew"),
    Goodput(tmp_path) as x,
  ):
    x.begin(3)
  assert told(tmp_path)["sessions"] == 1


def test_a_folder_of_the_files_name_does_not_end_the_run(tmp_path):
  (tmp_path / goodput.FILE).mkdir()
  with pytest.warns(UserWarning, match="goodput.json: ") as warned:
    one_step(tmp_path)
  assert "damaged" in str(warned[0].message)
  assert all("not written now" in str(x.message) for x in warned[1:])
  assert list(tmp_path.iterdir()) == [tmp_path / goodput.FILE]


def one_step(workdir):
  with Goodput(workdir) as measured:
    measured.begin(0)
    measured.finished(1)


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch):
  def full(path, content):
    raise OSError(28, "No space left on device", str(path))

  monkeypatch.setattr(goodput, "WRITE_EVERY", 0)
  monkeypatch.setattr(goodput, "write_whole", full)
  with pytest.warns(UserWarning, match="goodput.json: not written now, .*; the run goes") as warned:
    one_step(tmp_path)
  assert len(warned) == 3  # at the start, after the step and at the end


def test_a_run_tells_its_time_its_rates_and_what_it_repeated(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "find_chip", lambda device: CHIPS["v6e"])
  options = {"steps": 6, "log_every": 2, "checkpoint_every": 3, "evaluate_every": 1}

  def broken(params, step):
    if step == 5:
      raise RuntimeError("power cut")
    return {}

  began = time.monotonic()
  with pytest.raises(RuntimeError, match="power cut"):
    fit(STAGE, init_params, batches(), workdir=tmp_path, evaluate=broken, **options)
  assert told(tmp_path)["step"] == 5
  fit(STAGE, init_params, batches(), workdir=tmp_path, **options)
  found, passed = told(tmp_path), time.monotonic() - began
  assert (found["sessions"], found["step"], found["timed_steps"]) == (2, 6, 6)
  assert found["lost_steps"] == 2
  seconds = found["seconds"]
  assert set(seconds) == set(KINDS)
  assert all(seconds[kind] > 0 for kind in KINDS if kind not in ("data", "evaluation"))
  assert 0.5 * passed < sum(seconds.values()) <= passed
  assert found["samples_per_second"] == pytest.approx(8 * found["steps_per_second"])
  peak = found["devices"] * CHIPS["v6e"].peak("float32")
  used = found["steps_per_second"] * found["flops_per_step"] / peak
  assert found["flop_utilisation"] == pytest.approx(used)
  assert found["flops_per_step"] > 3 * 2 * 8 * 8 * 8  # products forward, and of two gradients
  events = EventAccumulator(str(tmp_path)).Reload()
  names = [f"seconds/{kind}" for kind in KINDS] + ["lost_steps", "steps_per_second"]
  names += ["samples_per_second", "flop_utilisation"]
  for name in names:
    assert {e.step for e in events.Scalars(f"goodput/{name}")} >= {6}, name


def test_on_a_chip_that_is_not_in_the_table_no_utilisation_is_told(tmp_path):
  fit(STAGE, init_params, batches(), workdir=tmp_path, steps=1, log_every=1)
  found = told(tmp_path)
  assert found["chip"] is None
  assert found["flop_utilisation"] is None
  assert found["steps_per_second"] > 0
  assert (
    "goodput/flop_utilisation" not in EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
  )


def slow_loss(params, batch, keys):
  """The toy's, after work that takes a device about a tenth of a second."""
  total, terms = loss(params, batch, keys)
  x = jnp.full((128, 128), jax.lax.stop_gradient(terms["l2"])) * 1e-3
  x = jax.lax.fori_loop(0, 800, lambda _, x: jnp.tanh(x @ x), x)
  return total, terms | {"work": x[0, 0]}


class SlowSource(Listed):
  """Batches each of which takes some seconds of waiting."""

  def __init__(self, count, seconds):
    super().__init__([next(batches())] * count)
    self.seconds = seconds

  def __next__(self):
    time.sleep(self.seconds)
    return super().__next__()


def test_the_next_batch_is_on_the_devices_before_a_step_ends(tmp_path, monkeypatch):
  started, ready = [], []
  monkeypatch.setattr(Goodput, "started", lambda self, logs: started.append(logs))

  def place(mesh, batch):
    placed = jax.block_until_ready(place_batch(mesh, batch))
    ready.append([logs["work"].is_ready() for logs in started])
    return placed

  monkeypatch.setattr(loop, "place_batch", place)
  mesh = make_mesh(devices=jax.devices()[:1])
  stage = make_stage(loss=slow_loss)
  fit(stage, init_params, SlowSource(4, 0), workdir=tmp_path, steps=4, mesh=mesh)
  # Batch n + 1 is there while step n has not ended, and not even the step before it.
  assert ready == [[], [False], [False, False], [True, False, False]]


def test_a_source_of_half_a_step_is_not_waited_for(tmp_path):
  mesh = make_mesh(devices=jax.devices()[:1])
  stage = make_stage(loss=slow_loss)
  fit(stage, init_params, SlowSource(8, 0.03), workdir=tmp_path, steps=8, mesh=mesh)
  seconds = told(tmp_path)["seconds"]
  assert seconds["steps"] > 8 * 2 * 0.03  # so that the source does take at most half a step
  assert seconds["data"] < 0.01 * sum(seconds.values())
