"""A training stage as a value: which sub-networks learn, from which loss, with which optimizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

Params = Mapping[str, Any]
Batch = Mapping[str, Any]
Loss = Callable[[Params, Batch, Mapping[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    name: names the stage in progress bars and checkpoints.
    loss: `(params, batch, keys) -> (total, terms)`; the total is a scalar mean over the batch,
      the terms are scalars to be logged; `keys` holds one random key for each stream.
    optimizers: one optimizer for each trainable sub-network (a name at the first level of the
      params). Every other sub-network is frozen: it is not differentiated and has no optimizer
      state.
    images: `(params, batch) -> {title: [n h w 3] in [0, 1]}`, one panel's columns from left to
      right; sizes may differ by whole factors. None: no panels.
    schedules: learning rate by step for trainable sub-networks; only for the logs.
    streams: names of the random streams that the loss draws from.
  """

  name: str
  loss: Loss
  optimizers: Mapping[str, optax.GradientTransformation]
  images: Callable[[Params, Batch], dict[str, jax.Array]] | None = None
  schedules: Mapping[str, Callable[[int], Any]] = dataclasses.field(default_factory=dict)
  streams: tuple[str, ...] = ()


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
