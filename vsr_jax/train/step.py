"""One training step as a pure function, and how it is jitted on a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Wrapped

from vsr_jax.errors import UserError
from vsr_jax.sharding import batch_sharding, replicated
from vsr_jax.train.opponent import Judge, opponent_gradients
from vsr_jax.train.stage import Batch, Params, Stage, split_nets
from vsr_jax.train.state import TrainState, abstract_state

TrainStep = Callable[
  [TrainState, Batch, jax.Array, Params], tuple[TrainState, dict[str, jax.Array]]
]


def keys_for(root: jax.Array, streams: tuple[str, ...], draw: jax.Array) -> dict[str, jax.Array]:
  """One key per stream: fold_in(fold_in(root, index of the stream), draw), `draw` a step's number.

  Keys are derived, never carried in the state, so that a resumed run draws the same.
  """
  return {
    name: jax.random.fold_in(jax.random.fold_in(root, i), draw) for i, name in enumerate(streams)
  }


def make_train_step(
  stage: Stage,
  *,
  accumulate: int = 1,
  clip_norm: float | None = None,
  ema_decay: float | None = None,
) -> TrainStep:
  """Builds `(state, batch, root_key, auxiliary) -> (state, logs)`.

  Args:
    stage: what is trained.
    accumulate: micro-batches that the batch is split into; the gradient is their mean, equal to
      that of the whole batch for a loss that is a mean over the batch. An opponent's batch
      statistics are those of each micro-batch, one after the other.
    clip_norm: largest global norm of the gradients of all trainable sub-networks together; an
      opponent's gradients have a norm of their own.
    ema_decay: decay of the params' moving average; None when the state has none.

  Returns:
    The step. `auxiliary` are params of networks that only the loss uses, by name; they are neither
    changed nor saved. The logs are float32 scalars: "loss", the stage's terms and, of the gradients
    before clipping, "grad_norm/SUB_NETWORK".
  """
  optimizers = stage.all_optimizers

  def train_step(state: TrainState, batch: Batch, root: jax.Array, auxiliary: Params):
    train, frozen = split_nets(state.params, optimizers)
    gradients = functools.partial(_gradients, stage, train, {**frozen, **auxiliary}, root)
    if accumulate == 1:
      grads, logs, variables = gradients(state.variables, batch, state.step, state.step)
    else:
      grads, logs, variables = _mean_gradients(
        gradients, state.variables, batch, state.step, accumulate
      )
    norms = {name: optax.tree.norm(grad) for name, grad in grads.items()}
    if clip_norm is not None:
      grads = _clip(grads, norms, clip_norm, stage)
    updated, opt_state = _update(optimizers, grads, state.opt_state, train)
    params: dict[str, Any] = dict(frozen) | updated
    if stage.opponent is not None and stage.opponent.start:
      # A gradient of zero would move Adam's counts and averages before the opponent takes part.
      name, wait = stage.opponent.network, state.step < stage.opponent.start
      before = train[name], state.opt_state[name]
      params[name], opt_state[name] = jax.tree.map(
        lambda old, new: jnp.where(wait, old, new), before, (params[name], opt_state[name])
      )
    if stage.adjust is not None:
      params, variables = stage.adjust(params, variables)
    ema = {}
    if ema_decay is not None:
      ema = {name: _average(ema_decay, ema, params[name]) for name, ema in state.ema.items()}
    logs |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return TrainState(state.step + 1, params, opt_state, ema, variables), logs

  return train_step


@jax.named_scope("optimizer")
def _update(
  optimizers: Mapping[str, optax.GradientTransformation],
  grads: Params,
  opt_state: Mapping[str, Any],
  train: Params,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The trainable sub-networks' params and optimizer states after a step."""
  params, after = {}, {}
  for name, grad in grads.items():
    # Optax counts in int32 and raises a float to that power, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
      updates, after[name] = optimizers[name].update(grad, opt_state[name], train[name])
    params[name] = optax.apply_updates(train[name], updates)
  return params, after


@jax.named_scope("moving_average")
def _average(decay: float, ema: Any, params: Any) -> Any:
  return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)


@jax.named_scope("clip")
def _clip(
  grads: Params, norms: Mapping[str, jax.Array], largest: float, stage: Stage
) -> dict[str, Any]:
  """Scales the gradients of the stage's sub-networks together, and the opponent's on their own."""
  clipped = {}
  own = [name for name in grads if name in stage.optimizers]
  # Lists, not sets: several hosts have to add in one order, that of the program they share.
  for group in (own, [name for name in grads if name not in own]):
    norm = jnp.sqrt(sum((norms[name] ** 2 for name in group), start=jnp.zeros(())))
    scale = largest / jnp.maximum(norm, largest)
    clipped |= {name: jax.tree.map(lambda x, s=scale: x * s, grads[name]) for name in group}
  return {name: clipped[name] for name in grads}


def _gradients(
  stage: Stage,
  train: Params,
  frozen: Params,
  root: jax.Array,
  variables: dict[str, Any],
  batch: Batch,
  step: jax.Array,
  draw: jax.Array,
) -> tuple[dict[str, Any], dict[str, jax.Array], dict[str, Any]]:
  """Gradients of the trainable sub-networks and of the opponent, logs, and the variables after."""
  own = {name: net for name, net in train.items() if name in stage.optimizers}
  keys, opponent = keys_for(root, stage.streams, draw), stage.opponent
  judge = None
  if opponent is not None:
    judge = Judge(opponent, train[opponent.network], variables, step)

  @jax.named_scope("loss")
  def loss(own: Params):
    if judge is None:
      total, terms = stage.loss({**frozen, **own}, batch, keys)
      return total, (terms, None)
    total, terms, contest = stage.loss({**frozen, **own}, batch, keys, judge)
    return total, (terms, contest)

  (total, (terms, contest)), grads = jax.value_and_grad(loss, has_aux=True)(own)
  logs = {"loss": total, **terms}
  if judge is not None:
    grads[judge.opponent.network], terms, variables = opponent_gradients(judge, contest)
    logs |= terms
  return grads, jax.tree.map(lambda x: x.astype(jnp.float32), logs), variables


def _mean_gradients(
  gradients: Callable, variables: dict[str, Any], batch: Batch, step: jax.Array, accumulate: int
) -> tuple[dict[str, Any], dict[str, jax.Array], dict[str, Any]]:
  """Gradients and logs, averaged over `accumulate` micro-batches, and the variables after them."""
  # Every device cuts its own samples: sample s goes to micro-batch s mod n, so that the batch
  # axis stays split over the devices as it came.
  sizes = {len(x) for x in jax.tree.leaves(batch)}
  if any(size % accumulate for size in sizes):
    raise UserError(f"a batch of {max(sizes)} does not divide into {accumulate} micro-batches")
  parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)

  def add(carry: Any, i_and_part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
    sums, variables = carry
    i, part = i_and_part
    grads, logs, variables = gradients(variables, part, step, step * accumulate + i)
    return (jax.tree.map(jnp.add, sums, (grads, logs)), variables), None

  xs = (jnp.arange(accumulate, dtype=jnp.int32), parts)
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(lambda: gradients(variables, first, step, step)[:2])
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (sums, variables), _ = jax.lax.scan(add, (zeros, variables), xs)
  grads, logs = jax.tree.map(lambda x: x / accumulate, sums)
  return grads, logs, variables


def jit_train_step(train_step: TrainStep, mesh: Mesh, shapes: TrainState) -> Wrapped:
  """Jits a step on a mesh; it donates the state, so the old one is gone after the call.

  Args:
    train_step: from `make_train_step`.
    mesh: from `make_mesh`.
    shapes: from `abstract_state`; its shardings are those of the state, in and out.
  """
  where = jax.tree.map(lambda x: x.sharding, shapes)
  everywhere = replicated(mesh)
  return jax.jit(
    train_step,
    in_shardings=(where, batch_sharding(mesh), everywhere, everywhere),
    out_shardings=(where, everywhere),
    donate_argnums=0,
  )


def build_step(
  stage: Stage,
  init_params: Callable[[jax.Array], Params],
  mesh: Mesh,
  accumulate: int = 1,
  clip_norm: float | None = None,
  ema_decay: float | None = None,
  fsdp_min_size: int | None = None,
) -> tuple[Wrapped, TrainState]:
  """The jitted step of a run and its state's shapes; what is trained and what is only compiled.

  Args:
    stage: what is trained.
    init_params: `key -> params` of every sub-network but the opponent.
    mesh: from `make_mesh`; its devices need not be there.
    accumulate: see `make_train_step`, as the next two.
    clip_norm: likewise.
    ema_decay: likewise.
    fsdp_min_size: see `sharding.param_sharding`.
  """
  shapes = abstract_state(
    stage, init_params, mesh, ema=ema_decay is not None, fsdp_min_size=fsdp_min_size
  )
  step = make_train_step(stage, accumulate=accumulate, clip_norm=clip_norm, ema_decay=ema_decay)
  return jit_train_step(step, mesh, shapes), shapes
