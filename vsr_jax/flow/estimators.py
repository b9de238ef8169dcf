"""The flow networks behind one form: what is computed once a frame, and what once a pair.

In a video a frame takes part in two pairs, so that its features serve twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vsr_jax.flow import gmflow, pwcnet, raft, spynet

Params = Any
Features = Any  # a tree of arrays, leading axis [b]


class Estimator(NamedTuple):
  """A way to optical flow.

  Attributes:
    init: a key to random parameters; under `jax.eval_shape` their template.
    encode: parameters and frames [b h w 3], RGB in [0, 255], to their features.
    between: parameters and the features of two frames to the flow from the first to the second,
      [b h w 2] float32, (dx, dy) in pixels: frame 1 at (x, y) looks like frame 2 at
      (x + dx, y + dy).
    multiple: the frames' sides are multiples of it.
  """

  init: Callable[[jax.Array], Params]
  encode: Callable[[Params, jax.Array], Features]
  between: Callable[[Params, Features, Features], jax.Array]
  multiple: int


def _raft(net: raft.Raft) -> Estimator:
  def between(params: Params, first: Features, second: Features) -> jax.Array:
    return raft.flow_from_features(net, params, first, second.features)

  return Estimator(
    functools.partial(raft.init, net), functools.partial(raft.encode, net), between, raft.MULTIPLE
  )


def _still() -> Estimator:
  """Nothing moves: no parameters; a frame's features are its flow, 0."""

  def encode(params: Params, frames: jax.Array) -> Features:
    del params
    return jnp.zeros((*frames.shape[:3], 2))

  def between(params: Params, flow: Features, other: Features) -> jax.Array:
    del params, other
    return flow

  return Estimator(lambda _: {}, encode, between, 1)


ESTIMATORS = {
  "gmflow": Estimator(gmflow.init, gmflow.encode, gmflow.flow_from_features, gmflow.MULTIPLE),
  "pwcnet": Estimator(pwcnet.init, pwcnet.encode, pwcnet.flow_from_features, pwcnet.MULTIPLE),
  "spynet": Estimator(spynet.init, spynet.encode, spynet.flow_from_features, spynet.MULTIPLE),
  "raft_small": _raft(raft.SMALL),
  "raft_large": _raft(raft.LARGE),
  "none": _still(),
}
