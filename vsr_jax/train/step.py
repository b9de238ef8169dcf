"""One training step as a pure function, and how it is jitted on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Wrapped

from vsr_jax.errors import UserError
from vsr_jax.sharding import batch_sharding, replicated
from vsr_jax.train.stage import Batch, Params, Stage, split_nets
from vsr_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


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
  """Builds `(state, batch, root_key) -> (state, logs)`.

  Args:
    stage: what is trained.
    accumulate: micro-batches that the batch is split into; the gradient is their mean, equal to
      that of the whole batch for a loss that is a mean over the batch.
    clip_norm: largest global norm of the gradients of all trainable sub-networks together.
    ema_decay: decay of the params' moving average; None when the state has none.

  Returns:
    The step. Its logs are float32 scalars: "loss", the stage's terms and, of the gradients
    before clipping, "grad_norm/SUB_NETWORK".
  """

  def train_step(state: TrainState, batch: Batch, root: jax.Array):
    train, frozen = split_nets(state.params, stage.optimizers)

    def total_and_logs(
      train: dict[str, Any], batch: Batch, draw: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
      total, terms = stage.loss(train | frozen, batch, keys_for(root, stage.streams, draw))
      logs = {"loss": total, **terms}
      return total, jax.tree.map(lambda x: x.astype(jnp.float32), logs)

    grads, logs = _mean_gradients(total_and_logs, train, batch, state.step, accumulate)
    norms = {name: optax.tree.norm(grad) for name, grad in grads.items()}
    if clip_norm is not None:
      norm = jnp.sqrt(sum(norm**2 for norm in norms.values()))
      scale = clip_norm / jnp.maximum(norm, clip_norm)
      grads = jax.tree.map(lambda x: x * scale, grads)
    params, opt_state = dict(frozen), {}
    for name, grad in grads.items():
      # Optax counts in int32 and raises a float to that power, which strict promotion forbids.
      with jax.numpy_dtype_promotion("standard"):
        updates, opt_state[name] = stage.optimizers[name].update(
          grad, state.opt_state[name], train[name]
        )
      params[name] = optax.apply_updates(train[name], updates)
    ema = {}
    if ema_decay is not None:
      ema = {name: _average(ema_decay, ema, params[name]) for name, ema in state.ema.items()}
    logs |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return TrainState(state.step + 1, params, opt_state, ema), logs

  return train_step


def _average(decay: float, ema: Any, params: Any) -> Any:
  return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)


def _mean_gradients(
  total_and_logs: Callable, train: Params, batch: Batch, step: jax.Array, accumulate: int
) -> tuple[Params, dict[str, jax.Array]]:
  """Gradients and logs, averaged over `accumulate` micro-batches."""
  gradients = jax.value_and_grad(total_and_logs, has_aux=True)
  if accumulate == 1:
    (_, logs), grads = gradients(train, batch, step)
    return grads, logs

  def micro(i_and_batch: tuple[jax.Array, Batch]) -> tuple[dict[str, jax.Array], Params]:
    i, batch = i_and_batch
    (_, logs), grads = gradients(train, batch, step * accumulate + i)
    return grads, logs

  # Every device cuts its own samples: sample s goes to micro-batch s mod n, so that the batch
  # axis stays split over the devices as it came.
  sizes = {len(x) for x in jax.tree.leaves(batch)}
  if any(size % accumulate for size in sizes):
    raise UserError(f"a batch of {max(sizes)} does not divide into {accumulate} micro-batches")
  parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
  xs = (jnp.arange(accumulate, dtype=jnp.int32), parts)
  shapes = jax.eval_shape(micro, jax.tree.map(lambda x: x[0], xs))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  sums, _ = jax.lax.scan(lambda s, x: (jax.tree.map(jnp.add, s, micro(x)), None), zeros, xs)
  return jax.tree.map(lambda x: x / accumulate, sums)


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
    in_shardings=(where, batch_sharding(mesh), everywhere),
    out_shardings=(where, everywhere),
    donate_argnums=0,
  )
