"""Compiling that takes long is told, silently for libraries, and does not count as work."""

from __future__ import annotations

import logging
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vsr_jax import compiling, programs, progress


@pytest.fixture
def at_once(monkeypatch):
  monkeypatch.setattr(compiling, "MOMENT", 0.01)


@pytest.mark.usefixtures("at_once")
def test_long_compiling_is_told_once_with_its_time(capsys, caplog):
  with progress.Clock() as clock, progress.bar("restoring", 4) as bar:
    with compiling.compiling("for 320x180"):
      time.sleep(0.3)
    left = bar.format_dict["elapsed"]
    bar.update(4)
    time.sleep(0.01)
    told = clock.speed(4)
  said = capsys.readouterr()
  assert re.search(
    r"compiling for 320x180 \(once a size\)\s.*compiled for 320x180 in 0 s", said.err, re.S
  )
  assert said.out == ""
  assert caplog.messages == []  # by no other handler
  assert clock.compiled >= 0.3
  assert left < 0.2  # what the time left is estimated from
  seconds, rate = re.fullmatch(
    r" in ([\d.]+) s, ([\d.]+) frames/s after 0 s of compiling", told
  ).groups()
  assert float(seconds) >= 0.3
  assert float(rate) > 4 / 0.3


def test_short_compiling_is_not_told_but_is_left_out_of_the_speed(capsys):
  with progress.Clock() as clock:
    with compiling.compiling("for 320x180"):
      time.sleep(0.3)
    assert re.fullmatch(r" in 0.\d s, [\d.]+ frames/s", clock.speed(4))
    assert clock.compiled >= 0.3
  assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("at_once")
def test_libraries_are_silent_and_may_listen(capsys, caplog):
  with compiling.compiling("for 320x180"):
    time.sleep(0.05)
  assert capsys.readouterr() == ("", "")
  assert caplog.messages == []
  with caplog.at_level(logging.INFO, compiling.__name__), compiling.compiling("for 8x8"):
    time.sleep(0.05)
  assert caplog.messages == ["compiling for 8x8 (once a size)", "compiled for 8x8 in 0 s"]


def test_below_one_frame_a_second_the_seconds_of_a_frame_are_told(monkeypatch):
  now = iter([0.0, 100.0, 100.0])
  with progress.Clock() as clock:
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    clock.began = time.monotonic()
    assert clock.speed(40) == " in 100.0 s, 2.50 s/frame"
    clock.compiled = 60.0
    assert clock.speed(40) == " in 100.0 s, 1.00 frames/s after 60 s of compiling"
    monkeypatch.undo()


def test_a_function_is_compiled_once_a_shape():
  names = []

  def double(params, x, y):
    return params["a"] * x if y is None else x + y[0]

  function = programs.CompiledByShape(jax.jit(double), lambda x, y: names.append(x.shape) or "")
  params = {"a": jnp.float32(2)}
  one, two = np.ones(1, np.float32), np.ones(2, np.float32)
  for x, y, want in ((one, None, 2), (two, None, 2), (one, [one], 2), (3 * one, None, 6)):
    np.testing.assert_array_equal(function(params, x, y), want + 0 * x)
  assert names == [(1,), (2,), (1,)]


def test_the_next_command_can_be_copied(capsys):
  progress.tell_next("fmanet_jax.restore", "INPUT", "--checkpoint", pathlib.Path("my runs/joint"))
  said = capsys.readouterr().out
  assert said == "next: python -m fmanet_jax.restore INPUT --checkpoint 'my runs/joint'\n"
