"""Logs, image panels, evaluations and checkpoints of a run; a step that is not finite ends it."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import tqdm
from jax.sharding import Mesh

from vsr_jax import progress
from vsr_jax.errors import UserError
from vsr_jax.sharding import replicated
from vsr_jax.train.checkpoints import Checkpoints
from vsr_jax.train.goodput import Goodput
from vsr_jax.train.stage import Params, Stage
from vsr_jax.train.state import TrainState
from vsr_jax.train.summaries import Recorder

Evaluate = Callable[[Params, int], Mapping[str, float]]


class Report:
  """Writes a run's logs, panels, evaluations and checkpoints; saves no state that is not finite."""

  def __init__(
    self,
    stage: Stage,
    mesh: Mesh,
    steps: int,
    checkpoints: Checkpoints,
    recorder: Recorder,
    evaluate: Evaluate | None,
    meta: Mapping[str, Any],
    goodput: Goodput,
  ):
    """Takes over the recorder; the arguments are those of `fit`."""
    self._stage, self._checkpoints, self._recorder = stage, checkpoints, recorder
    self._goodput = goodput
    self._evaluate, self._meta = evaluate, meta
    self._jitted_images = stage.images and jax.jit(stage.images, out_shardings=replicated(mesh))
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._progress_contexts = contextlib.ExitStack()
    self._bar = tqdm.tqdm(
      desc=stage.name,
      initial=recorder.step,
      total=steps,
      unit="step",
      dynamic_ncols=True,
      # A log file gets a line a minute.
      mininterval=0.5 if sys.stderr.isatty() else 60,
      disable=jax.process_index() != 0,
    )

  def __enter__(self) -> Report:
    if jax.process_index() == 0:
      self._progress_contexts.enter_context(progress.Clock())
      self._progress_contexts.enter_context(progress.unpausing(self._bar))
    return self

  def __exit__(self, *error: object) -> None:
    self._progress_contexts.close()
    self._bar.close()
    self._recorder.close()

  def add(self, step: int, logs: dict[str, jax.Array]) -> None:
    """Takes a step's logs, and reports those of the step before while this one runs."""
    self._flush()
    self._pending = step, logs

  def _flush(self) -> None:
    """Waits for the latest logs and reports them; raises UserError if they are not finite."""
    if self._pending is None:
      return
    step, logs = self._pending
    self._pending = None
    values = {name: float(x) for name, x in jax.device_get(logs).items()}
    self._stop_if(step, [name for name, x in values.items() if not math.isfinite(x)])
    self._goodput.finished(step)
    if self._recorder.add(step, values, lambda: self._rates(step)):
      self._recorder.scalars(step, self._goodput.scalars())
    self._bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
    self._bar.update()

  def _rates(self, step: int) -> dict[str, float]:
    return {name: float(rate(step - 1)) for name, rate in self._stage.schedules.items()}

  def panel(
    self, step: int, state: TrainState, batch: Mapping[str, jax.Array], auxiliary: Params
  ) -> None:
    """Shows the stage's images of a batch."""
    if self._jitted_images:
      self._flush()
      with self._goodput.of("evaluation"):
        images = self._jitted_images(_evaluation_params(state) | dict(auxiliary), batch)
        self._recorder.panel(step, jax.device_get(images))

  def evaluation(self, step: int, state: TrainState) -> dict[str, float] | None:
    """Evaluates and records the scalars; None without an evaluation."""
    if self._evaluate is None:
      return None
    self._flush()
    with self._goodput.of("evaluation"):
      found = self._evaluate(_evaluation_params(state), step)
      metrics = {name: float(x) for name, x in found.items()}
    self._recorder.row(step, {f"evaluation/{name}": x for name, x in metrics.items()})
    return metrics

  def save(
    self, step: int, state: TrainState, position: Any, metrics: Mapping[str, float] | None
  ) -> None:
    """Saves a checkpoint; raises UserError if any number in it is not finite."""
    self._flush()
    with self._goodput.of("checkpoints"):
      self._save(step, state, position, metrics)
    self._goodput.write()

  def _save(
    self, step: int, state: TrainState, position: Any, metrics: Mapping[str, float] | None
  ) -> None:
    trees = {"params": state.params, "ema": state.ema, "optimizer": state.opt_state}
    trees["variables"] = state.variables
    finite = jax.device_get(_finite(trees))
    self._stop_if(step, [name for name, good in finite.items() if not good])
    self._recorder.put()
    meta = {**self._meta, "stage": self._stage.name, "log": self._recorder.running_sums}
    self._checkpoints.save(state, step, data=position, meta=meta, metrics=metrics)

  def end(self) -> None:
    """Waits for the last checkpoint."""
    with self._goodput.of("checkpoints"):
      self._checkpoints.wait()

  def stopped(self, step: int) -> None:
    """Waits for the last checkpoint and says that the run can go on from it."""
    self.end()
    if jax.process_index() == 0:
      self._bar.write(f"stopped after step {step}; the same command goes on from it", sys.stderr)

  def _stop_if(self, step: int, bad: list[str]) -> None:
    if bad:
      self._checkpoints.wait()
      good = self._checkpoints.latest
      raise UserError(
        f"step {step} is not finite ({', '.join(bad)}) and is not saved; the last checkpoint is"
        f" {good or 'none'}: lower the learning rate or clip the gradients, and run again"
      )


def _evaluation_params(state: TrainState) -> dict[str, Any]:
  """The params for panels and evaluations: their moving average, where there is one."""
  return state.params | state.ema


@jax.jit
def _finite(trees: dict[str, Any]) -> dict[str, jax.Array]:
  """Whether every number in each of the trees is finite."""
  return {
    name: jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
    for name, tree in trees.items()
  }
