"""The flow networks behind one interface: features per frame, then flow per pair of features.

In a video a frame belongs to two pairs, so that its features are used twice.
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
  """The interface of an optical flow network.

  Attributes:
    init: `key -> params`, random; under `jax.eval_shape` the template for a converter.
    encode: `(params, frames) -> features`, frames [b h w 3], RGB in [0, 255].
    between: `(params, features1, features2) -> flow` from frame 1 to frame 2, [b h w 2] float32,
      (dx, dy) in pixels: frame 1 at (x, y) looks like frame 2 at (x + dx, y + dy).
    multiple: the frames' sides must be multiples of it.
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


def _zero_flow() -> Estimator:
  """Zero flow, without parameters: for ablations."""

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
  "none": _zero_flow(),
}
