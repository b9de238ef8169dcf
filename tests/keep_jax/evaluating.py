"""What the tests of KEEP's evaluation share: a data set, and stand-ins for all networks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax import evaluate, evaluation_networks, streaming
from keep_jax.evaluation_networks import Measuring
from keep_jax.face_scores import METRICS, Networks
from tests.data_prep.helpers import texture, write_png
from vsr_jax import plotting

SIZE = 64
LENGTHS = {"anna": 5, "ben": 3}


def repeated(frame):
  return frame.repeat(4, axis=0).repeat(4, axis=1)


class StandIn:
  """Takes the place of `streaming.Restorer`: restores by repeating pixels, and notes its input."""

  def __init__(self, model, params, *options):
    self.model, self.options, self.seen = model, options, []

  def stream(self, frames):
    for frame in frames:
      self.seen.append(frame)
      yield repeated(frame)

  def stream_tracks(self, frames):
    for faces in frames:
      yield {name: 255 - face for name, face in faces.items()}


def look(frame):
  """A made-up embedding."""
  return np.append(frame.mean((0, 1)), frame.std())


def find(frame, landmarks):
  """Made-up landmarks, which depend on where the frame is bright; black is no face."""
  weights = frame.mean(-1) + 1e-3
  y, x = np.mgrid[: len(weights), : len(weights[0])]
  centre = np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()
  return landmarks - centre, float(frame.max() > 0)


def follow(before, frame):
  h, w, _ = frame.shape
  return jnp.zeros((1, h, w, 2)), jnp.ones((1, h, w), bool)


NETWORKS = Networks(
  distance=lambda a, b: float(np.abs(a.astype(float) - b).mean() / 255),
  embed=lambda frame, _: look(frame),
  find=find,
  follow=follow,
)


@pytest.fixture
def stand_ins(monkeypatch):
  made = SimpleNamespace(networks=NETWORKS, side=SIZE, restorers=[])

  def load(args):
    return Measuring(METRICS, made.networks, {"flow": "none"}, "")

  def restorer(*given):
    made.restorers.append(StandIn(*given))
    return made.restorers[-1]

  def load_model(path, dtype):
    return SimpleNamespace(arch=SimpleNamespace(image_size=made.side)), {}

  monkeypatch.setattr(plotting, "is_installed", lambda: False)  # plots take most of the time
  monkeypatch.setattr(evaluation_networks, "load", load)
  monkeypatch.setattr(streaming, "load", load_model)
  monkeypatch.setattr(streaming, "Restorer", restorer)
  return made


@pytest.fixture
def data(tmp_path):
  for start, (name, length) in enumerate(LENGTHS.items()):
    for i in range(length):
      write_png(tmp_path / "data" / name / f"{i:08d}.png", texture(SIZE, SIZE, 31 * start + 3 * i))
  return tmp_path / "data"


@pytest.fixture
def run(stand_ins, run_main, tmp_path):
  """Runs the command and returns what metrics.json holds, and what was said."""

  def run(*args: object, code: int = 0, out: str = "out"):
    said = run_main(evaluate.main, "--out", tmp_path / out, *args, code=code)
    path = tmp_path / out / "metrics.json"
    text = path.read_text() if path.is_file() else "null"
    return json.loads(text, parse_constant=pytest.fail), said

  return run
