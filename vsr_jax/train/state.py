"""The state of a run, how it is made from params, and where its arrays live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.sharding import param_sharding
from vsr_jax.train.stage import Params, Stage, split_nets
from vsr_jax.trees import differences, table


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32 scalar, the number of finished steps.
    params: every sub-network's params, float32.
    opt_state: the optimizer state of each trainable sub-network.
    ema: moving average of the trainable sub-networks' params, the opponent's excepted; {} when it
      is off.
    variables: what changes without a gradient, by sub-network: batch statistics, vectors of
      spectral norms, counts of used codes. Equal on all devices.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: dict[str, Any]
  ema: dict[str, Any]
  variables: dict[str, Any] = flax.struct.field(default_factory=dict)


def create_state(
  stage: Stage, params: Params, *, ema: bool = False, variables: Mapping[str, Any] | None = None
) -> TrainState:
  """A fresh state at step 0: new optimizers, the average starting at the params themselves.

  Args:
    stage: the stage to be trained.
    params: of every sub-network, the opponent's included.
    ema: whether there is a moving average.
    variables: of the opponent, as its `init` gives them.
  """
  train, _ = split_nets(params, stage.optimizers)
  optimizers = stage.all_optimizers
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=dict(params),
    opt_state={name: optimizers[name].init(params[name]) for name in optimizers},
    # A copy: an alias of the params would be donated twice.
    ema=jax.tree.map(jnp.copy, train) if ema else {},
    variables=dict(variables or {}) | (stage.variables() if stage.variables else {}),
  )


def _initialise(
  stage: Stage, init_params: Callable[[jax.Array], Params], key: jax.Array
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Params of every sub-network and the opponent's variables, by sub-network."""
  params = dict(init_params(key))
  if stage.opponent is None:
    return params, {}
  name = stage.opponent.network
  own, variables = stage.opponent.init(jax.random.fold_in(key, 1))
  return params | {name: own}, {name: variables}


def abstract_state(
  stage: Stage,
  init_params: Callable[[jax.Array], Params],
  mesh: jax.sharding.Mesh,
  *,
  ema: bool = False,
  fsdp_min_size: int | None = None,
) -> TrainState:
  """Shapes, dtypes and shardings of the state; no array is made.

  Raises:
    KeyError: the stage trains a sub-network that `init_params` does not make.
    ValueError: params that are not float32.
  """

  def make(key: jax.Array) -> TrainState:
    params, variables = _initialise(stage, init_params, key)
    return create_state(stage, params, ema=ema, variables=variables)

  shapes = jax.eval_shape(make, jax.random.key(0))
  odd = {str(x.dtype) for x in jax.tree.leaves(shapes.params)} - {"float32"}
  if odd:
    raise ValueError(f"params are kept in float32, not in {', '.join(sorted(odd))}")
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=param_sharding(mesh, x.shape, fsdp_min_size)
    ),
    shapes,
  )


def init_state(
  stage: Stage,
  init_params: Callable[[jax.Array], Params],
  key: jax.Array,
  shapes: TrainState,
  init_from: Mapping[str, Any] | None = None,
) -> TrainState:
  """Makes the state on its devices; no array is ever whole on one device first.

  Args:
    stage: the stage to be trained.
    init_params: `key -> params` of every sub-network but the opponent.
    key: key of the initialisation.
    shapes: what `abstract_state` gave.
    init_from: params of some or all sub-networks that replace the initialised ones.

  Raises:
    UserError: `init_from` does not fit the model.
  """
  given = dict(init_from or {})
  want = {name: shapes.params[name] for name in given if name in shapes.params}
  wrong = differences(table(want), table(given))
  if wrong:
    raise UserError(f"the given starting params do not fit the model: {wrong}")
  where = jax.tree.map(lambda x: x.sharding, shapes)
  placed = jax.device_put(
    jax.tree.map(np.asarray, given), {name: where.params[name] for name in given}
  )

  def make(key: jax.Array, placed: Params) -> TrainState:
    # Copied, because the first step donates the state, and the caller keeps what it gave.
    params, variables = _initialise(stage, init_params, key)
    fresh = params | jax.tree.map(jnp.copy, placed)
    return create_state(stage, fresh, ema=bool(shapes.ema), variables=variables)

  # The program runs once, so that compiling it matters most: without optimisation 9 s instead of
  # 38 s for a small model on CPU. The values differ by rounding only.
  quickly = {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None
  return jax.jit(make, out_shardings=where, compiler_options=quickly)(key, placed)
