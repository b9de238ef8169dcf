"""Worker: a part of `benchmarks.gpu`, measured on JAX's first device, as one process.

python -m benchmarks.gpu_worker device|fmanet|keep|train [--precision tf32] ...
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import keep, restoration, workload
from benchmarks.gpu_parts import KEPT, PRECISIONS
from benchmarks.training import time_training
from fmanet_jax import model as fmanet_model
from fmanet_jax import streaming as fmanet_streaming
from fmanet_jax.model import FMANet
from keep_jax import model as keep_model
from keep_jax import streaming as keep_streaming
from keep_jax.conversion import convert_released
from keep_jax.model import KEEP
from vsr_jax import chips, cli, hlo, runtime
from vsr_jax.configs.fmanet import smoke as fmanet_smoke
from vsr_jax.configs.keep import smoke as keep_smoke
from vsr_jax.files import write_whole


def find_device(args: argparse.Namespace) -> dict[str, Any]:
  """What JAX computes on, and the chip's published figures if they are known."""
  del args
  device = jax.devices()[0]
  chip = chips.find_chip(device)
  return {
    "platform": device.platform,
    "kind": restoration.device_name(),
    "chip": None if chip is None else dataclasses.asdict(chip),
  }


def load_fmanet(configuration: str, dtype: str) -> tuple[FMANet, fmanet_model.Params]:
  """FMA-Net in a configuration of `gpu_parts.Preset`, with made-up weights."""
  if configuration == "released":
    model, params = restoration.load("full")
    return FMANet(model.arch, jnp.dtype(dtype)), params
  arch = fmanet_model.Architecture(**fmanet_smoke.get_config().model)
  model = FMANet(arch, jnp.dtype(dtype))
  return model, random_params(fmanet_model.param_shapes(model))


def load_keep(configuration: str, dtype: str) -> tuple[KEEP, keep_model.Params]:
  """KEEP, likewise."""
  if configuration == "released":
    arch, params = convert_released(workload.keep_released("full").state, "full")
    return KEEP(arch, jnp.dtype(dtype)), params
  model = KEEP(keep_model.Architecture(**keep_smoke.get_config("fusion").model), jnp.dtype(dtype))
  return model, random_params(keep_model.param_shapes(model))


def restore_fmanet(args: argparse.Namespace) -> dict[str, Any]:
  """Restores a stream of frames with FMA-Net; see `restore`."""
  runtime.return_freed_memory()  # as `fmanet_jax.restore` does
  model, params = load_fmanet(args.configuration, PRECISIONS[args.precision].dtype)
  restorer = fmanet_streaming.Restorer(model, params)
  # More than are taken: the last frames' windows need no new features.
  frames = workload.clip(KEPT + args.frames + model.arch.frames, args.height, args.width)
  found = restore(restorer.stream(frames), KEPT, 1, args)
  programs = restorer._compiled(args.height, args.width)
  return found | {
    "flops": restoration.flops_of_frame(model, params, args.height, args.width),
    "traffic": sum(map(traffic_of, programs)),
  }


def restore_keep(args: argparse.Namespace) -> dict[str, Any]:
  """Restores a stream of aligned faces with KEEP; see `restore`.

  Beyond the first window gains are computed for a group of frames at a time.
  """
  runtime.keep_freed_memory()  # as `keep_jax.restore` does
  model, params = load_keep(args.configuration, PRECISIONS[args.precision].dtype)
  restorer = keep_streaming.Restorer(model, params, window=args.window)
  group = restorer.look_ahead + 1
  # A multiple of groups: of the clip's last frames gains would need another program.
  groups = -(-args.frames // group) + 1
  frames = workload.keep_clip(args.window + groups * group, model.arch.image_size)
  found = restore(restorer.stream(frames), args.window, group, args)
  flops = keep.flops_of_parts(model, params, args.window)
  shares = {"encoder": 1, "flow": 1, "step": 1, "gains": 1 / group}
  programs = {name: getattr(restorer, f"_{name}") for name in ("observe", "flow", "step", "gains")}
  traffic = {
    name: sum(map(traffic_of, program._programs.values())) for name, program in programs.items()
  }
  traffic["gains"] /= group
  return found | {
    "flops": sum(flops[name] * share for name, share in shares.items()),
    "traffic": sum(traffic.values()),
  }


def restore(
  images: Iterator[np.ndarray], skip: int, group: int, args: argparse.Namespace
) -> dict[str, Any]:
  """Times restored frames as they leave a stream, decoded frames in, 8-bit frames out.

  Args:
    images: the stream; it has more than `skip` and the timed frames.
    skip: frames before the timed ones; the programs are compiled within them. The first `KEPT` of
      all are written to `args.keep`.
    group: the timed frames are a multiple of it.
    args: up to `frames` frames are timed, or as many as came within `seconds`.

  Returns:
    "seconds" a frame, "frames" that were timed, "compile" seconds, "memory" and "device_memory" in
    bytes, "product_peak" in FLOP/s.
  """
  compiling = restoration.compile_times()
  kept = list(itertools.islice(images, skip))[:KEPT]
  compiled = sum(compiling)
  if args.keep:
    np.save(args.keep, np.stack(kept))
  began = time.perf_counter()
  count = elapsed = 0
  for _ in images:
    count += 1
    elapsed = time.perf_counter() - began
    if count % group == 0 and (count >= args.frames or elapsed > args.seconds):
      break
  found = {
    "device": restoration.device_name(),
    "seconds": elapsed / count,
    "frames": count,
    "compile": compiled,
    "memory": workload.peak_memory(),
    "device_memory": restoration.device_memory(),
  }
  if args.result:  # kept should the rest, which counts and compares, fail or be cut off
    write_whole(args.result, json.dumps({"versions": restoration.VERSIONS, **found}))
  # Measured last, so that the product's arrays do not count as the restorer's memory.
  return found | {"product_peak": restoration.product_peak(PRECISIONS[args.precision].dtype)}


def traffic_of(program: jax.stages.Compiled) -> int:
  """Bytes that a program reads from and writes to the device's memory, see `hlo.analyse`."""
  return hlo.analyse(program.as_text()).traffic


def train(args: argparse.Namespace) -> dict[str, Any]:
  """Takes steps of a recipe on a made-up batch; the first one does not count.

  `args.recipe` is such as "fmanet/joint" or "keep/smoke:fusion". Parameters start as the stage's
  do, and numbers of the batch are random: what a step takes does not depend on them.
  """
  name, _, stage = args.recipe.partition(":")
  system = name.partition("/")[0]
  module = importlib.import_module(f"vsr_jax.configs.{name.replace('/', '.')}")
  config = module.get_config(stage) if stage else module.get_config()
  with config.unlocked():
    config.dtype = PRECISIONS[args.precision].dtype
  plan = importlib.import_module(f"{system}_jax.train").make_plan(config, 1)
  found = time_training(plan.stage, plan.init_params, {}, random_batch(plan.batch), args.steps)
  found["seconds"] = float(np.median(found["seconds"]))
  return found | {"product_peak": restoration.product_peak(config.dtype)}


def random_params(shapes: Any) -> Any:
  """Numbers of the given shapes whose products keep their size."""
  rng = np.random.default_rng(0)

  def numbers(x: jax.ShapeDtypeStruct) -> np.ndarray:
    fan_in = np.prod(x.shape[:-1], dtype=int) if len(x.shape) > 1 else 1
    return (rng.standard_normal(x.shape) / np.sqrt(fan_in)).astype(x.dtype)

  return jax.tree.map(numbers, shapes)


def random_batch(shapes: Any) -> dict[str, np.ndarray]:
  """Arrays of the given shapes and dtypes by name: uint8 of the whole range, floats in [0, 1)."""
  rng = np.random.default_rng(0)
  return {
    name: rng.integers(0, 256, x.shape, np.uint8)
    if x.dtype == np.uint8
    else rng.random(x.shape, x.dtype)
    for name, x in shapes.items()
  }


JOBS = {"device": find_device, "fmanet": restore_fmanet, "keep": restore_keep, "train": train}


def run_precisely(name: str, args: argparse.Namespace) -> dict[str, Any]:
  """Runs one of `JOBS` with products of the precision that is asked for."""
  with jax.default_matmul_precision(PRECISIONS[args.precision].products):
    return JOBS[name](args)


def parse(arguments: Iterable[str] | None = None) -> argparse.Namespace:
  """The worker's options."""
  parser = workload.worker_parser("benchmarks.gpu_worker", __doc__)
  parser.add_argument("--precision", choices=PRECISIONS, default="float32")
  parser.add_argument("--configuration", choices=("released", "smoke"), default="released")
  parser.add_argument("--window", type=int, default=keep_streaming.WINDOW, help="of KEEP's gains")
  parser.add_argument("--seconds", type=float, default=10.0, help="of timed frames, at most")
  parser.add_argument("--recipe", default="fmanet/joint", help="of training")
  return parser.parse_args(arguments)


def main() -> None:
  """Runs the worker; see the module's docstring."""
  args = parse()
  workload.use_threads(args.threads)
  jobs = {name: functools.partial(run_precisely, name) for name in JOBS}
  workload.run_job(args, jobs, restoration.VERSIONS)


if __name__ == "__main__":
  cli.run(main)
