"""Worker: times steps of the joint stage as `fmanet_jax.train` runs them.

python -m benchmarks.training time [--model tiny --batch 2 --crop 64] ...
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import jax

from benchmarks import workload
from benchmarks.restoration import VERSIONS, device_memory, device_name, load
from fmanet_jax.model import init_params
from fmanet_jax.train import stage_from_config
from vsr_jax import cli
from vsr_jax.configs.fmanet import joint
from vsr_jax.memory import release_freed_memory
from vsr_jax.runtime import keep_freed_memory
from vsr_jax.sharding import make_mesh, place_batch, replicated
from vsr_jax.train.state import abstract_state, init_state
from vsr_jax.train.step import jit_train_step, make_train_step


def time_steps(args: argparse.Namespace) -> dict[str, Any]:
  """Forward, backward and Adam of both networks; seconds of each step, and its loss."""
  keep_freed_memory()
  model, params = load(args.model)
  arch = model.arch
  stage = stage_from_config(model, joint.get_config())
  mesh = make_mesh(devices=jax.devices()[:1])
  init = functools.partial(init_params, model)
  shapes = abstract_state(stage, init, mesh)
  key = jax.device_put(jax.random.key(0), replicated(mesh))
  state = init_state(stage, init, key, shapes, params)
  batch = place_batch(mesh, workload.training_batch(arch.frames, arch.scale, args.batch, args.crop))
  start = time.perf_counter()
  inputs = batch, key, {}
  step = jit_train_step(make_train_step(stage), mesh, shapes).lower(state, *inputs).compile()
  compiling = time.perf_counter() - start
  release_freed_memory()  # as the trainer does
  seconds, losses = [], []
  for _ in range(args.steps):
    start = time.perf_counter()
    state, logs = step(state, *inputs)
    jax.block_until_ready((state, logs))
    seconds.append(time.perf_counter() - start)
    losses.append(float(logs["loss"]))
  return {
    "device": device_name(),
    "compile": compiling,
    "first_step": seconds[0],
    "seconds": seconds[1:],
    "losses": losses,
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
  }


def main() -> None:
  """Runs the worker; see the module's docstring."""
  args = workload.worker_parser("benchmarks.training", __doc__).parse_args()
  workload.use_threads(args.threads)
  workload.run_job(args, {"time": time_steps}, VERSIONS)


if __name__ == "__main__":
  cli.run(main)
