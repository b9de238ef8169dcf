"""Worker: times steps of the joint stage as `fmanet_jax.train` runs them.

python -m benchmarks.training time [--model tiny --batch 2 --crop 64] ...
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import workload
from benchmarks.restoration import VERSIONS, device_memory, device_name, load
from fmanet_jax.model import init_params
from fmanet_jax.train import stage_from_config
from vsr_jax import cli, hlo
from vsr_jax.configs.fmanet import joint
from vsr_jax.flops import count_jaxpr
from vsr_jax.memory import release_freed_memory
from vsr_jax.runtime import keep_freed_memory
from vsr_jax.sharding import make_mesh, place_batch, replicated
from vsr_jax.train.stage import Params, Stage
from vsr_jax.train.state import abstract_state, init_state
from vsr_jax.train.step import jit_train_step, make_train_step


def time_steps(args: argparse.Namespace) -> dict[str, Any]:
  """Forward, backward and Adam of both networks; seconds of each step, and its loss."""
  model, params = load(args.model)
  arch = model.arch
  stage = stage_from_config(model, joint.get_config())
  batch = workload.training_batch(arch.frames, arch.scale, args.batch, args.crop)
  return time_training(stage, functools.partial(init_params, model), params, batch, args.steps)


def time_training(
  stage: Stage,
  init: Callable[[jax.Array], Params],
  params: Params,
  batch: Mapping[str, np.ndarray],
  steps: int,
  *,
  keys: Sequence[str] = ("loss",),
  variables: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Takes steps of a stage on one device and times them.

  Args:
    stage: what is trained.
    init: `key -> params` of every sub-network but the opponent.
    params: what replaces them, the opponent's included.
    batch: the batch of every step.
    steps: how many.
    keys: the logs that are reported as the step's losses, those that the stage has.
    variables: what replaces those of the networks that have some.

  Returns:
    Device, times, losses and memory, as `benchmarks.report` reads them; work and memory traffic of
    a step.
  """
  keep_freed_memory()
  mesh = make_mesh(devices=jax.devices()[:1])
  shapes = abstract_state(stage, init, mesh)
  key = jax.device_put(jax.random.key(0), replicated(mesh))
  state = init_state(stage, init, key, shapes, params)
  state = state.replace(variables=state.variables | jax.tree.map(np.asarray, dict(variables or {})))
  placed = place_batch(mesh, batch)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    traced = jit_train_step(make_train_step(stage), mesh, shapes).trace(state, placed, key, {})
    lowered = traced.lower()
  program = lowered.compile()
  compiling = time.perf_counter() - start
  release_freed_memory()  # as the trainer does

  def step() -> list[float]:
    nonlocal state
    state, logs = jax.block_until_ready(program(state, placed, key, {}))
    return [float(logs[name]) for name in keys if name in logs]

  return {
    "device": device_name(),
    "compile": compiling,
    **workload.time_steps(step, steps),
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
    "flops": count_jaxpr(traced.jaxpr.jaxpr),
    "traffic": hlo.analyse(program.as_text()).traffic,
  }


def main() -> None:
  """Runs the worker; see the module's docstring."""
  args = workload.worker_parser("benchmarks.training", __doc__).parse_args()
  workload.use_threads(args.threads)
  workload.run_job(args, {"time": time_steps}, VERSIONS)


if __name__ == "__main__":
  cli.run(main)
