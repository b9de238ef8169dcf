"""A training stage as a value: which sub-networks learn, from which loss, with which optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from vsr_jax.train.opponent import Opponent

Params = Mapping[str, Any]
Batch = Mapping[str, Any]
Loss = Callable[..., Any]
Adjust = Callable[[dict[str, Any], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    name: names the stage in progress bars and checkpoints.
    loss: `(params, batch, keys) -> (total, terms)`; the total is a scalar mean over the batch,
      the terms are scalars to be logged; `keys` holds one random key for each stream. With an
      opponent it is `(params, batch, keys, judge) -> (total, terms, contest)`, see `opponent`.
    optimizers: one optimizer for each trainable sub-network (a name at the first level of the
      params). Every other sub-network is frozen: it is not differentiated and has no optimizer
      state.
    images: `(params, batch) -> {title: [n h w 3] in [0, 1]}`, one panel's columns from left to
      right; sizes may differ by whole factors. None: no panels.
    schedules: learning rate by step for trainable sub-networks; only for the logs.
    streams: names of the random streams that the loss draws from.
    opponent: the discriminator that the stage trains against, if any.
    variables: `() -> variables` by network that the loss changes beside the opponent's, at the
      start; only with an opponent.
    adjust: `(params, variables) -> (params, variables)`, done after the optimizers' update; it
      may replace trainable params, such as dead codes.
  """

  name: str
  loss: Loss
  optimizers: Mapping[str, optax.GradientTransformation]
  images: Callable[[Params, Batch], dict[str, jax.Array]] | None = None
  schedules: Mapping[str, Callable[[int], Any]] = dataclasses.field(default_factory=dict)
  streams: tuple[str, ...] = ()
  opponent: Opponent | None = None
  variables: Callable[[], dict[str, Any]] | None = None
  adjust: Adjust | None = None

  @property
  def all_optimizers(self) -> dict[str, optax.GradientTransformation]:
    """The optimizers of the trainable sub-networks and of the opponent."""
    own = {} if self.opponent is None else {self.opponent.network: self.opponent.optimizer}
    return dict(self.optimizers) | own


def split_nets(params: Params, trainable: Mapping[str, Any]) -> tuple[dict, dict]:
  """Splits the params by sub-network into (trainable, frozen).

  Raises:
    KeyError: a trainable name that is no sub-network.
  """
  unknown = sorted(set(trainable) - set(params))
  if unknown:
    raise KeyError(f"no sub-network called {', '.join(unknown)}; there are {sorted(params)}")
  train = {name: params[name] for name in params if name in trainable}
  return train, {name: params[name] for name in params if name not in trainable}
