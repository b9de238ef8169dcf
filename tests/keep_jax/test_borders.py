"""The plot of how steady clips are around chunk borders."""

from __future__ import annotations

import signal
import sys

import cv2
import numpy as np
import pytest

from keep_jax import borders
from tests.keep_jax import tiny
from tests.keep_jax.test_inference import moving_pattern
from tests.vsr_jax.clips import encode
from vsr_jax import errors


def shifted(count, step):
  """A smooth picture that moves to the left, uint8 [t 64 64 3]."""
  wide = cv2.resize(moving_pattern(32)[0], (64 + count * step, 64), interpolation=cv2.INTER_CUBIC)
  return [np.ascontiguousarray(wide[:, i * step : i * step + 64]) for i in range(count)]


def test_motion_is_no_difference_and_flicker_is():
  frames = shifted(4, 2)
  flows = list(borders.input_flows(frames))
  still = np.mean(list(borders.differences(frames, flows)))
  unmoved = np.mean(list(borders.differences(frames, [np.zeros_like(flow) for flow in flows])))
  assert still < unmoved / 3
  flicker = [frame // 2 + 40 * (i % 2) for i, frame in enumerate(frames)]
  assert np.mean(list(borders.differences(flicker, flows))) == pytest.approx(40, abs=4)


def test_the_command_draws_both_modes(tmp_path, monkeypatch, capsys):
  pytest.importorskip("matplotlib", reason="the extra plot is not installed")
  handler = signal.getsignal(signal.SIGTERM)
  tiny.save(tmp_path / "weights")
  encode(tmp_path / "face.mkv", moving_pattern(32), "ffv1", "bgr0")
  arguments = ["borders", str(tmp_path / "face.mkv"), str(tmp_path / "plot.png")]
  arguments += ["--checkpoint", str(tmp_path / "weights"), "--window", "6"]
  monkeypatch.setattr(sys, "argv", arguments)
  with pytest.raises(SystemExit) as end:
    errors.run(borders.main)
  signal.signal(signal.SIGTERM, handler)
  said = capsys.readouterr()
  assert end.value.code == 0, said.err
  assert all(name in said.out for name in ("input", "stream", "as_released"))
  assert cv2.imread(str(tmp_path / "plot.png")).shape[0] > 300
