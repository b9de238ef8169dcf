"""The flow between frames that follow each other, at a bounded size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax.flow.estimators import Estimator
from vsr_jax.programs import CompiledByShape

SIDE = 512  # pixels: larger frames are reduced for the flow

Frame = np.ndarray  # uint8 RGB [h w 3]


class Follower:
  """The flow from each frame to the one before it; each frame's features are computed once."""

  def __init__(self, estimator: Estimator, params: Any, find: Callable[..., Any]):
    """Takes what finds the flow.

    Args:
      estimator: the network.
      params: its parameters.
      find: what is wanted of two frames, a pure function of the estimator, its parameters, the
        features of the frame before and of the frame, and a boolean array of the frames' shape
        [h w]; such as `flow_to_previous`.
    """
    self._params, self._multiple = params, estimator.multiple
    self._encode = _program("the flow's features", estimator.encode)
    self._find = _program("the flow", functools.partial(find, estimator))
    self._latest: tuple[Frame, Any] | None = None

  def __call__(self, before: Frame, frame: Frame) -> Any:
    """What `find` makes of two frames of one size, which are not to be changed afterwards."""
    if self._latest is None or self._latest[0] is not before:
      self._latest = before, self._features(before)
    features = self._features(frame)
    found = self._find(self._params, self._latest[1], features, np.zeros(frame.shape[:2], bool))
    self._latest = frame, features
    return found

  def _features(self, frame: Frame) -> Any:
    """The features of a frame, whose sides are made multiples, the longer at most `SIDE`."""
    height, width = frame.shape[:2]
    part = min(1, SIDE / max(height, width))
    sides = [self._multiple * max(1, round(x * part / self._multiple)) for x in (width, height)]
    how = cv2.INTER_AREA if part < 1 else cv2.INTER_LINEAR
    small = cv2.resize(frame, sides, interpolation=how)
    return self._encode(self._params, small.astype(np.float32)[None])


def flow_to_previous(
  estimator: Estimator, params: Any, before: Any, features: Any, pixels: jax.Array
) -> jax.Array:
  """The flow [1 h w 2] from a frame to the one before, in pixels of `pixels` [h w]."""
  return scaled(estimator.between(params, features, before), *pixels.shape)


def scaled(flows: jax.Array, height: int, width: int) -> jax.Array:
  """Flows [b h w 2] at another size, [b height width 2], their vectors in its pixels."""
  scale = jnp.array([width / flows.shape[2], height / flows.shape[1]], jnp.float32)
  resized = jax.image.resize(flows, (len(flows), height, width, 2), "linear")
  return scale.reshape(1, 1, 1, 2) * resized


def _program(name: str, function: Callable) -> CompiledByShape:
  return CompiledByShape(jax.jit(function), lambda *_: name)
