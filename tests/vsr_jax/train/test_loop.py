from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support import hosts
from tests.vsr_jax.train.toy import (
  STAGE,
  Listed,
  Samples,
  batches,
  images,
  init_params,
  loss,
  make_stage,
)
from vsr_jax import cli
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.data_prep import batching
from vsr_jax.errors import UserError
from vsr_jax.json_files import BadJson
from vsr_jax.locks import locked
from vsr_jax.sharding import host_rows, make_mesh
from vsr_jax.train import loop
from vsr_jax.train.loop import fit


def rows(workdir):
  lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != "seconds"} for row in lines]


class Watched:
  """Batches whose values are also put into a list."""

  def __init__(self, batches, seen):
    self.batches, self.seen = batches, seen
    self.get_state, self.set_state = batches.get_state, batches.set_state

  def __next__(self):
    self.seen.append(next(self.batches))
    return self.seen[-1]


def saved_steps(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("devices", [2, 4])
def test_a_run_of_eight_devices_goes_on_with_fewer(tmp_path, devices):
  stage = make_stage(streams=("noise",))
  options = {"log_every": 1, "accumulate": 2, "fsdp_min_size": 64}
  seen = []

  def run(workdir, steps, count):
    mesh = make_mesh(devices=jax.devices()[:count])
    data = Watched(batches(16, rows=host_rows(mesh, 16)), seen)
    fit(stage, init_params, data, workdir=workdir, steps=steps, mesh=mesh, **options)

  run(tmp_path / "whole", 5, 8)
  want = seen.copy()
  seen.clear()
  run(tmp_path / "parts", 2, 8)
  run(tmp_path / "parts", 5, devices)
  assert len(want) == 5
  jax.tree.map(np.testing.assert_array_equal, seen, want)
  for row, other in zip(rows(tmp_path / "parts"), rows(tmp_path / "whole"), strict=True):
    assert row == pytest.approx(other, abs=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
  stage = make_stage(streams=("noise",))
  options = {"steps": 9, "log_every": 2, "checkpoint_every": 3, "evaluate_every": 3}
  options |= {"ema_decay": 0.9, "clip_norm": 0.5, "keep": 5}

  def evaluate(params, step):
    return {"bias": jnp.sum(params["decoder"]["bias"])}

  def broken(params, step):
    if step == 6:  # Between the checkpoints of 3 and 6, in the middle of a row.
      raise RuntimeError("power cut")
    return evaluate(params, step)

  whole, parts = tmp_path / "whole", tmp_path / "parts"
  want = fit(stage, init_params, batches(), workdir=whole, evaluate=evaluate, **options)
  with pytest.raises(RuntimeError, match="power cut"):
    fit(stage, init_params, batches(), workdir=parts, evaluate=broken, **options)
  assert saved_steps(parts) == [3]
  got = fit(stage, init_params, batches(), workdir=parts, evaluate=evaluate, **options)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert rows(parts) == rows(whole)
  assert saved_steps(parts) == saved_steps(whole) == [3, 6, 9]
  positions = [d / "checkpoints" / "9" / "data" / "position.json" for d in (parts, whole)]
  assert positions[0].read_text() == positions[1].read_text()


def test_rows_hold_terms_norms_rates_and_evaluations_and_panels_are_drawn(tmp_path):
  scores = {2: 0.5, 4: 0.25}
  stage = make_stage(images=images)
  fit(
    stage, init_params, batches(), workdir=tmp_path, steps=4, log_every=2, image_every=2,
    evaluate=lambda params, step: {"score": scores[step]}, evaluate_every=2,
  )  # fmt: skip
  first, evaluated, *_ = rows(tmp_path)
  norms = {"grad_norm/decoder", "grad_norm/encoder"}
  assert set(first) == {"step", "loss", "l2", "teacher", "learning_rate/decoder"} | norms
  rate = optax.exponential_decay(3e-2, 20, 0.5)
  assert first["learning_rate/decoder"] == pytest.approx(float(rate(1)))  # that of its last step
  assert evaluated == {"step": 2, "evaluation/score": 0.5}
  events = EventAccumulator(str(tmp_path)).Reload()
  assert [e.step for e in events.Scalars("l2")] == [2, 4]
  assert [(e.step, e.height) for e in events.Images("input | output")] == [(2, 72), (4, 72)]


def test_a_finished_run_is_left_as_it_is(tmp_path):
  want = fit(STAGE, init_params, batches(), workdir=tmp_path, steps=2)
  before = rows(tmp_path)
  got = fit(STAGE, init_params, batches(), workdir=tmp_path, steps=2)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert rows(tmp_path) == before


def test_the_next_stage_starts_from_the_params_of_the_one_before(tmp_path):
  fit(STAGE, init_params, batches(), workdir=tmp_path / "first", steps=2)
  given = restore_params(tmp_path / "first")
  del given["decoder"]
  frozen = make_stage(name="second", optimizers={"decoder": optax.sgd(0.1)})
  state = fit(
    frozen, init_params, batches(), workdir=tmp_path / "second", steps=1, init_from=given, seed=5
  )
  for name in ("encoder", "teacher"):
    jax.tree.map(np.testing.assert_array_equal, state.params[name], given[name])
  assert set(state.opt_state) == {"decoder"}


def spoilt(at, count=8):
  """Batches of which number `at` (from 1) holds a NaN."""
  good = [next(batches()) for _ in range(1)] * count
  bad = good[0] | {"y": np.full_like(good[0]["y"], np.nan)}
  return Listed([bad if i == at - 1 else batch for i, batch in enumerate(good)])


@pytest.mark.parametrize("at", [4, 5])  # just before a checkpoint, and at one
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, at):
  with pytest.raises(UserError) as error:
    fit(
      STAGE, init_params, spoilt(at), workdir=tmp_path, steps=8, log_every=1, checkpoint_every=5
      if at == 5 else 3,
    )  # fmt: skip
  text = str(error.value)
  assert text.startswith(
    f"step {at} is not finite (grad_norm/decoder, grad_norm/encoder, l2, loss)"
  )
  if at == 5:
    assert "the last checkpoint is none" in text
    assert saved_steps(tmp_path) == []
  else:
    assert f"the last checkpoint is {tmp_path}/checkpoints/3" in text
    assert saved_steps(tmp_path) == [3]
    params = restore_params(tmp_path)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, at))


def test_a_state_that_is_not_finite_is_not_saved_though_the_loss_is(tmp_path):
  optimizer = optax.sgd(lambda count: jnp.where(count < 1, 1e-2, jnp.inf))
  stage = make_stage(optimizers={"decoder": optimizer})
  with pytest.raises(UserError, match=r"step 2 is not finite \(params\) and is not saved"):
    fit(stage, init_params, batches(), workdir=tmp_path, steps=2, checkpoint_every=1)
  assert saved_steps(tmp_path) == [1]


def test_data_that_ends_early_is_told_and_what_is_done_stays(tmp_path):
  with pytest.raises(UserError, match="the training data ended before the last step"):
    fit(STAGE, init_params, spoilt(0, 3), workdir=tmp_path, steps=5, checkpoint_every=2)
  assert saved_steps(tmp_path) == [2, 3]  # a stop saves what is done


def test_ctrl_c_finishes_the_step_saves_and_exits_with_130(tmp_path, capsys):
  def evaluate(params, step):
    if step == 2:
      for _ in range(2):  # to a process and to its group
        signal.raise_signal(signal.SIGINT)
    return {}

  def main():
    fit(
      STAGE, init_params, batches(), workdir=tmp_path, steps=5, evaluate=evaluate, evaluate_every=1
    )

  handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    with pytest.raises(SystemExit) as stop:
      cli.run(main)
    assert signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]  # given back
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
  assert stop.value.code == 130
  assert saved_steps(tmp_path) == [2]
  assert "stopped after step 2; the same command goes on from it" in capsys.readouterr().err


def test_a_second_ctrl_c_acts_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "SAME_SIGNAL", 0)
  options = {"workdir": tmp_path, "steps": 5, "evaluate_every": 1}
  evaluated = []

  def evaluate(params, step):
    for _ in range(2):
      signal.raise_signal(signal.SIGINT)
    evaluated.append(step)
    return {}

  with pytest.raises(KeyboardInterrupt):
    fit(STAGE, init_params, batches(), **options, evaluate=evaluate)
  assert evaluated == []
  assert saved_steps(tmp_path) == []


def start(workdir, steps, *cluster, change=""):
  command = [sys.executable, "-m", "tests.vsr_jax.train.toy", str(workdir), str(steps), *cluster]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "CHANGE": change}
  return subprocess.Popen(
    command, cwd=hosts.ROOT, env=environment, stderr=subprocess.PIPE, text=True
  )


def test_sigterm_saves_exits_with_2_and_the_run_goes_on(tmp_path):
  process = start(tmp_path, 10**6)
  hosts.wait_for_a_step(tmp_path, process)
  for _ in range(2):  # to a process and to its group, as `timeout` sends it
    process.send_signal(signal.SIGTERM)
  _, text = process.communicate(timeout=120)
  assert process.returncode == 2, text
  assert text.splitlines()[-1] == "terminated by SIGTERM"
  assert "Traceback" not in text
  (step,) = saved_steps(tmp_path)
  assert rows(tmp_path)[-1]["step"] == read_meta(tmp_path)["step"] == step
  # On, and on eight devices instead of one.
  state = fit(STAGE, init_params, batches(), workdir=tmp_path, steps=step + 2, log_every=1)
  assert int(state.step) == step + 2
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, step + 3))


def start_both(workdir, steps, change=""):
  """Two processes of one run; the second one's config has a change."""
  address = hosts.free_address()
  cluster = [(address, str(host), "2") for host in (0, 1)]
  return [start(workdir, steps, *cluster[0]), start(workdir, steps, *cluster[1], change=change)]


@pytest.mark.slow  # test_hosts.py shows it without processes
def test_hosts_with_other_configs_are_told_before_the_first_step(tmp_path):
  for text in hosts.finish(start_both(tmp_path, 5, change="other"), code=2):
    host = re.escape(socket.gethostname())
    line = rf"error: {host} \(process 1\): another config than {host} \(process 0\) has; start"
    assert re.match(line, text.splitlines()[-1]), text
  assert not list(tmp_path.iterdir())


def test_two_hosts_compute_what_one_does(tmp_path):
  hosts.finish(start_both(tmp_path / "two", 4), code=0)
  fit(STAGE, init_params, batches(), workdir=tmp_path / "one", steps=4, log_every=1)
  for row, other in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
    assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_dies_is_told_by_name(tmp_path, lost):
  processes = start_both(tmp_path, 10**6)
  hosts.wait_for_a_step(tmp_path, processes[0])
  processes[lost].kill()
  since = time.monotonic()
  _, text = processes[1 - lost].communicate(timeout=60)
  assert time.monotonic() - since < 60
  assert f"error: {socket.gethostname()} (process {lost}) is gone; the run goes on from" in text
  assert processes[1 - lost].returncode not in (0, 2)
  processes[lost].communicate()


@pytest.mark.slow
def test_two_hosts_stop_at_one_step_when_one_is_terminated_and_go_on(tmp_path):
  processes = start_both(tmp_path, 10**6)
  hosts.wait_for_a_step(tmp_path, processes[0])
  processes[1].send_signal(signal.SIGTERM)
  for text in hosts.finish(processes, code=2):
    assert "terminated by SIGTERM" in text
  (step,) = saved_steps(tmp_path)
  data = tmp_path / "checkpoints" / str(step) / "data"
  assert {p.name for p in data.glob("*.json")} == {"position.json"}
  hosts.finish(start_both(tmp_path, step + 2), code=0)
  assert saved_steps(tmp_path) == [step, step + 2]
  # On, as one host with eight devices; and the same from the start.
  got = fit(STAGE, init_params, batches(), workdir=tmp_path, steps=step + 4, log_every=1)
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, step + 5))
  whole = tmp_path / "whole"
  want = fit(STAGE, init_params, batches(), workdir=whole, steps=step + 4, log_every=1)
  for row, other in zip(rows(tmp_path), rows(whole), strict=True):
    assert row == pytest.approx(other, rel=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, want)


def test_a_loss_may_be_traced_only_once(tmp_path):
  traced = []

  def counted(params, batch, keys):
    traced.append(1)
    return loss(params, batch, keys)

  fit(make_stage(loss=counted), init_params, batches(), workdir=tmp_path, steps=4, log_every=1)
  assert len(traced) == 1  # A second trace would be a second compilation: minutes for a real model.


@pytest.mark.parametrize(
  "wrong", [{"steps": 0}, {"log_every": 0}, {"keep": 0}, {"accumulate": 0}, {"ema_decay": 2.0}]
)
def test_impossible_options_are_refused_before_anything_is_written(tmp_path, wrong):
  options = {"steps": 2} | wrong
  with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*: must be at least"):
    fit(make_stage(), init_params, batches(), workdir=tmp_path / "run", **options)
  assert not (tmp_path / "run").exists()


def test_two_runs_do_not_share_a_workdir(tmp_path):
  with locked(tmp_path), pytest.raises(UserError, match="another run is writing there"):
    fit(STAGE, init_params, batches(), workdir=tmp_path, steps=1)
  assert not any((tmp_path / "checkpoints").iterdir())


def test_a_damaged_position_is_told_from_one_of_other_batches(tmp_path):
  samples = grain.MapDataset.source(Samples()).repeat()

  def train(steps, fingerprint=7):
    with batching.BatchReader(batching.batch(samples, 8), fingerprint=fingerprint) as reader:
      fit(STAGE, init_params, reader, workdir=tmp_path, steps=steps)

  train(1)
  (file,) = tmp_path.glob("checkpoints/1/data/position.json")
  good = json.loads(file.read_text())
  wrong = [[], None, 3, {}, {"identity": 7}]
  wrong += [good | {"next_batch": x} for x in (-1, "1", 0.5, True, None)]
  wrong += [good | {"identity": x} for x in (-1, "7", [])]
  for position in wrong:
    with pytest.raises(BadJson):
      batching.BatchReader(batching.batch(samples, 8), fingerprint=7).set_state(position)
  with pytest.raises(UserError, match="checkpoints/1: of other training data or another batch"):
    train(2, fingerprint=8)
  file.write_text("[]")
  with pytest.raises(UserError, match="checkpoints/1: damaged, position is .*; delete it to fall"):
    train(2)
