"""What the tests of KEEP's commands share."""

from __future__ import annotations

import inspect

import pytest

from keep_jax import conversion, streaming

_RESTORERS = {}


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


@pytest.fixture(scope="module")
def shapes_once() -> None:
  """The shapes of a model's parameters are traced once: a model of full size takes seconds."""
  known = {}
  real = conversion.param_shapes

  def param_shapes(model):
    if model not in known:
      known[model] = real(model)
    return known[model]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(conversion, "param_shapes", param_shapes)
    yield
