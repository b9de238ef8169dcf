"""What the tests of KEEP's commands share."""

from __future__ import annotations

import hashlib
import inspect

import pytest

from keep_jax import streaming
from vsr_jax.faces import detector

_RESTORERS = {}
_DETECTIONS = {}


@pytest.fixture
def shared_restorers(monkeypatch) -> None:
  """Restorers of one model with the same options are one: it keeps its compiled programs.

  A restorer holds nothing of a clip. Every checkpoint of a model has to have the same weights.
  """
  make = inspect.signature(streaming.Restorer).bind
  real = streaming.Restorer

  def restorer(*args, **kwargs):
    bound = make(*args, **kwargs)
    bound.apply_defaults()
    key = tuple(value for name, value in bound.arguments.items() if name != "params")
    if key not in _RESTORERS:
      _RESTORERS[key] = real(*args, **kwargs)
    return _RESTORERS[key]

  monkeypatch.setattr(streaming, "Restorer", restorer)


@pytest.fixture
def shared_detections(monkeypatch) -> None:
  """The faces of a frame are detected once: most tests have the same clip."""
  real = detector.make_batch_detector

  def make_batch_detector(*args, **options):
    detect = real(*args, **options)

    def find(frames):
      found = [(frame.shape, hashlib.sha256(frame.tobytes()).digest()) for frame in frames]
      key = (*args, *sorted(options.items()), *found)
      if key not in _DETECTIONS:
        _DETECTIONS[key] = detect(frames)
      return _DETECTIONS[key]

    return find

  monkeypatch.setattr(detector, "make_batch_detector", make_batch_detector)
