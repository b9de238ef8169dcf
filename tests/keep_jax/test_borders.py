"""The plot of how steady clips are around chunk borders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from keep_jax import borders
from tests.keep_jax import tiny
from tests.keep_jax.test_streaming import moving_pattern
from tests.vsr_jax.clips import encode


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


@pytest.mark.slow
def test_the_command_draws_both_modes(tmp_path, run_main):
  tiny.save(tmp_path / "weights")
  encode(tmp_path / "face.mkv", moving_pattern(32), "ffv1", "bgr0")
  said = run_main(
    borders.main,
    *(tmp_path / "face.mkv", tmp_path / "plot.png"),
    *("--checkpoint", tmp_path / "weights", "--window", "6"),
  )
  assert all(name in said.out for name in ("input", "stream", "as_released"))
  assert cv2.imread(str(tmp_path / "plot.png")).shape[0] > 300
