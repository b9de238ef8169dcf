"""Worker: restores a clip with `fmanet_jax.streaming.Restorer` and times it, as one process.

    python -m benchmarks.restoration time|output|work [--height 180 --width 320 --frames 4] ...

`time` is the measured run. The others are not timed: `output` writes one restored frame in floating
point, for comparison with the reference's, and `work` counts operations.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workload
from fmanet_jax.conversion import convert_released, split_networks
from fmanet_jax.model import FMANet, Params
from fmanet_jax.streaming import Restorer
from fmanet_jax.window import encode_frames, fold_kernels, restore_window
from vsr_jax import cli
from vsr_jax.flops import count_flops
from vsr_jax.runtime import return_freed_memory

VERSIONS = {"jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__}
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def load(name: str) -> tuple[FMANet, Params]:
  """A model with the reference's deterministic weights, converted as released files are."""
  nets = split_networks(workload.released(name).state)
  arch, params = convert_released(nets["net_d"], nets["net_r"], name)
  return FMANet(arch), params


def compile_times() -> list[float]:
  """Returns a list to which the seconds of every later compilation are appended."""
  seconds: list[float] = []

  def note(event: str, duration: float, **_: Any) -> None:
    if event == COMPILE_EVENT:
      seconds.append(duration)

  jax.monitoring.register_event_duration_secs_listener(note)
  return seconds


def time_clip(args: argparse.Namespace) -> dict[str, Any]:
  """Restores the clip and tells when each frame came; times are from the process's start."""
  compiling = compile_times()
  return_freed_memory()  # as `fmanet_jax.restore` does
  model, params = load(args.model)
  restorer = Restorer(model, params)
  frames = workload.clip(args.frames, args.height, args.width)
  ready = time.time() - args.started
  ends, checked = [], None
  for i, image in enumerate(restorer.stream(frames)):
    ends.append(time.time() - args.started)
    if i == workload.CHECKED:
      checked = image
  result = {
    "device": device_name(),
    "ready": ready,
    "first_frame": ends[0],
    "last_frame": ends[-1],
    "compile": sum(compiling),
    # The last frames' windows end in copies of the last one, which need no new features.
    "seconds": workload.intervals(ends[: len(ends) - model.arch.frames // 2]),
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
  }
  if args.keep:
    np.save(args.keep, checked)
  # Measured last, so that the product's arrays do not count as the restorer's memory.
  return result | {"product_peak": product_peak()}


def compute_output(args: argparse.Namespace) -> dict[str, Any]:
  """Writes the restored frame `workload.CHECKED` [s*h s*w 3] in floating point, not clipped."""
  model, params = load(args.model)
  frames = list(workload.clip(model.arch.frames, args.height, args.width))
  frames = [jnp.asarray(frame)[None].astype(jnp.float32) / 255 for frame in frames]
  encode, restore = (functools.partial(part, model) for part in (encode_frames, restore_window))
  # An accelerator's usual precision is lower; here the functions are compared, not the speed.
  with jax.default_matmul_precision("highest"):
    encode = jax.jit(encode)
    parts = [(frame, *encode(params, frame)) for frame in frames]
    window = jax.tree.map(lambda *x: x, *parts)
    output = jax.jit(restore)(params, fold_kernels(model, params), *window)
  np.save(args.keep, np.asarray(output[0]))
  return {}


def count_work(args: argparse.Namespace) -> dict[str, Any]:
  """Counts the FLOPs of a frame in a stream."""
  return {"flops": flops_of_frame(*load(args.model), args.height, args.width)}


def flops_of_frame(model: FMANet, params: Params, height: int, width: int) -> float:
  """The FLOPs of a frame [height width 3] in a stream: its features, and the window around it."""
  frame = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  encode, restore = (functools.partial(part, model) for part in (encode_frames, restore_window))
  part = (frame, *jax.eval_shape(encode, params, frame))
  window = jax.tree.map(lambda x: (x,) * model.arch.frames, part)
  folded = jax.eval_shape(functools.partial(fold_kernels, model), params)
  return count_flops(encode, params, frame) + count_flops(restore, params, folded, *window)


def product_peak(dtype: str = "float32") -> float:
  """Measures the speed of a large matrix product, in FLOP/s: the median of several."""
  n = 2048 if jax.default_backend() == "cpu" else 8192
  x = jnp.ones((n, n), dtype)
  product = jax.jit(jnp.dot)
  product(x, x).block_until_ready()
  seconds = []
  for _ in range(9):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * n**3 / statistics.median(seconds)


def device_name() -> str:
  """The accelerator's kind, or "CPU"."""
  return "CPU" if jax.default_backend() == "cpu" else jax.local_devices()[0].device_kind


def device_memory() -> int | None:
  """The most bytes in use on the device so far; None if unknown, as on a CPU."""
  return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def main() -> None:
  """Runs the worker; see the module's docstring."""
  args = workload.worker_parser("benchmarks.restoration", __doc__).parse_args()
  workload.use_threads(args.threads)
  workload.run_job(
    args, {"time": time_clip, "output": compute_output, "work": count_work}, VERSIONS
  )


if __name__ == "__main__":
  cli.run(main)
