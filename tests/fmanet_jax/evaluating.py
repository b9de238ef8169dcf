"""What the tests of FMA-Net's evaluation share: a data set, and a stand-in that restores."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest

from fmanet_jax import evaluate
from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet
from tests.data_prep.helpers import write_clip_set
from vsr_jax.images import read_image
from vsr_jax.metrics import rgb_psnr, ssim, tof


def repeated(frame):
  return frame.repeat(4, axis=0).repeat(4, axis=1)


class StandIn:
  """Takes the place of `fmanet_jax.streaming`: restores by repeating pixels."""

  def __init__(self):
    self.arch, self.before = Architecture(), lambda frame: None  # called before every frame

  def load(self, checkpoint, dtype):
    self.checkpoint = checkpoint
    return FMANet(self.arch, jax.numpy.dtype(dtype)), {}

  def Restorer(self, model, params):
    self.model, self.scale, self.context, self.overlap = model, 4, 1, 16
    self.device, self.memory_needed = jax.devices()[0], lambda height, width: 0
    return self

  def stream(self, frames):
    for frame in frames:
      self.before(frame)
      yield repeated(frame)


@pytest.fixture
def stand_in(monkeypatch):
  stand_in = StandIn()
  for name in ("load", "Restorer"):
    monkeypatch.setattr(evaluate.streaming, name, getattr(stand_in, name))
  return stand_in


@pytest.fixture
def data(tmp_path):
  write_clip_set(tmp_path / "data", {"alley": 4, "beach": 6})
  return tmp_path / "data"


@pytest.fixture
def run(stand_in, run_main, tmp_path):
  """Runs the command, checks its exit code and returns what metrics.json holds."""

  def run(*args, code=0, out="out"):
    said = run_main(evaluate.main, "--out", tmp_path / out, *args, code=code)
    sys.stdout.write(said.out)  # for the tests' capsys
    sys.stderr.write(said.err)
    path = tmp_path / out / "metrics.json"
    text = path.read_text() if path.is_file() else "null"
    return json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity

  return run


def frames_of(data, stream, name):
  return [read_image(path) for path in sorted((data / stream / name).iterdir())]


def scores(truths, outputs):
  """The metrics' own functions, called directly."""
  pairs = range(1, len(truths))
  return {
    "psnr": np.mean([rgb_psnr(a, b) for a, b in zip(truths, outputs, strict=True)]),
    "ssim": np.mean([ssim(a, b) for a, b in zip(truths, outputs, strict=True)]),
    "tof": np.mean([tof(truths[i - 1], truths[i], outputs[i - 1], outputs[i]) for i in pairs]),
  }
