"""Code for both sides of a comparison: weights, frames, batches, threads, peak memory.

NumPy only: the reference runs in an interpreter that may have PyTorch and no JAX.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tests.parity import weights
from vsr_jax import cli
from vsr_jax.errors import UserError

PARITY = pathlib.Path(weights.__file__).parent
MODELS = ("full", "tiny")  # the released configuration, and that of the small fixture
KEEP_MODELS = {"full": "keep_full", "tiny": "keep_units"}  # and the manifests of their tensors
CHECKED = 1  # the first frame whose window holds no replicated frame, for T = 3
KEEP_SEED = 1234
KEEP_STEP = 3  # pixels by which the pattern moves per frame
POOL = 8  # different frames of a clip; longer clips repeat them, in constant memory


@dataclasses.dataclass(frozen=True)
class Released:
  """A configuration in the released names, with weights in the released layout.

  Attributes:
    config: number by name, as in the released `experiment.cfg`.
    state: tensor by state-dict key, generated from the key alone.
  """

  config: Mapping[str, Any]
  state: Mapping[str, np.ndarray]


def released(name: str) -> Released:
  """The configuration "full" or "tiny" with deterministic weights."""
  with np.load(PARITY / f"fmanet_{name}.npz") as file:
    config, seed, gain = json.loads(str(file["config"])), int(file["seed"]), float(file["gain"])
  return Released(config, weights.state_dict(PARITY / f"fmanet_{name}.manifest.json", seed, gain))


def keep_released(name: str, unit: str = "keep_mini") -> Released:
  """KEEP's configuration of `inference_keep.py`, "full", or "tiny", without CFT and CFA.

  Weights are generated from the tensors' names; for "tiny" also from the name of the fixtures'
  `unit` whose tensors they are.
  """
  config = {"img_size": 512, "emb_dim": 256, "dim_embd": 512, "n_head": 8, "n_layers": 9}
  config |= {"codebook_size": 1024, "cft_list": ["16", "32", "64"], "kalman_attn_head_dim": 48}
  config |= {"num_uncertainty_layers": 3, "cfa_list": ["16", "32"], "cfa_nhead": 4}
  config |= {"cfa_dim": 256, "cond": 1}
  shapes = json.loads((PARITY / f"{KEEP_MODELS[name]}.manifest.json").read_text())
  if name == "full":
    return Released(config, state_of(shapes, ""))
  config |= {"img_size": 128, "latent_size": 16, "n_layers": 2, "attn_resolutions": [4]}
  config |= {"cft_list": [], "cfa_list": []}
  return Released(config, state_of(shapes, f"{unit}."))


def state_of(shapes: Mapping[str, Sequence[int]], start: str) -> dict[str, np.ndarray]:
  """KEEP's deterministic tensors whose keys have the given start, by the rest of the keys."""
  chosen = {key: shape for key, shape in shapes.items() if key.startswith(start)}
  return {key.removeprefix(start): x for key, x in weights.state_dict(chosen, KEEP_SEED).items()}


def keep_clip(count: int, size: int, seed: int = KEEP_SEED) -> Iterator[np.ndarray]:
  """Yields `count` frames of a pattern that moves to and fro, uint8 RGB [size size 3]."""
  reach = KEEP_STEP * POOL
  planes = weights.inputs((3, size, size + reach), seed)
  wide = np.rint(255 * planes).astype(np.uint8).transpose(1, 2, 0)
  starts = [KEEP_STEP * i for i in (*range(POOL), *range(POOL, 0, -1))]
  for start in itertools.islice(itertools.cycle(starts), count):
    yield np.ascontiguousarray(wide[:, start : start + size])


def frame(index: int, height: int, width: int) -> np.ndarray:
  """A smooth random frame, uint8 RGB [h w 3]."""
  planes = weights.inputs((3, height, width), seed=index)
  return np.ascontiguousarray(np.rint(255 * planes).astype(np.uint8).transpose(1, 2, 0))


def clip(count: int, height: int, width: int) -> Iterator[np.ndarray]:
  """`count` frames, uint8 RGB [h w 3]; at most `POOL` different ones, made in advance, repeat."""
  pool = [frame(i, height, width) for i in range(min(POOL, count))]
  return itertools.islice(itertools.cycle(pool), count)


def training_batch(frames: int, scale: int, size: int, crop: int) -> dict[str, np.ndarray]:
  """A batch as `data_prep.blur_pipeline` yields it, with crops of `crop` x `crop` LR pixels."""

  def images(seed: int, side: int) -> np.ndarray:
    x = weights.inputs((size, frames, 3, side, side), seed)
    return np.rint(255 * np.moveaxis(x, 2, -1)).astype(np.uint8)

  flow = weights.inputs((size, frames, 2, crop, crop), 4, -3, 3)
  return {
    "blurry": images(1, crop),
    "sharp": images(2, scale * crop),
    "sharp_lr": images(3, crop),
    "flow": np.ascontiguousarray(np.moveaxis(flow, 2, -1)),
  }


def available_cpus() -> list[int]:
  """The CPUs this process may run on."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def use_threads(count: int) -> None:
  """Restricts this process to `count` CPUs; to be called before a framework makes its threads."""
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, available_cpus()[:count])


def peak_memory() -> int:
  """The largest resident size of this process so far, in bytes."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():  # unlike ru_maxrss it does not begin at the parent's size
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def intervals(ends: list[float]) -> list[float]:
  """Durations of all events but the first, from the times at which they ended in turn."""
  return [after - before for before, after in itertools.pairwise(ends)]


def time_steps(step: Callable[[], list[float]], count: int) -> dict[str, Any]:
  """Takes training steps and times them.

  Args:
    step: takes one, to its end, and returns its losses.
    count: how many; the first one is told apart.

  Returns:
    "first_step" in seconds; of the others "seconds" and "cpu_seconds", of all threads together; of
    all "losses".
  """
  ends, cpu_ends, losses = [time.perf_counter()], [time.process_time()], []
  for _ in range(count):
    losses.append(step())
    ends.append(time.perf_counter())
    cpu_ends.append(time.process_time())
  first, *seconds = intervals(ends)
  _, *cpu_seconds = intervals(cpu_ends)
  return {
    "first_step": first,
    "seconds": seconds,
    "cpu_seconds": cpu_seconds,
    "losses": losses,
  }


def steady_seconds(whole: float, two: float, frames: int) -> list[float]:
  """Seconds per frame, from the times of a chunk of `frames` frames and of one of two.

  The difference leaves out a chunk's first frame, which has no flow and no prediction.
  """
  return [(whole - two) / (frames - 2)]


def run_reference(
  command: str,
  doc: str,
  missing: str | None,
  needs: str,
  modules: Sequence[str],
  jobs: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]],
) -> None:
  """Runs a worker of the released code.

  Args:
    command: the worker's module.
    doc: the module's docstring.
    missing: the package that could not be imported; None if all could.
    needs: what to install, for the error.
    modules: names of imported modules whose versions are reported.
    jobs: the worker's functions by name.

  Raises:
    UserError: a package is missing.
  """
  parser = worker_parser(command, doc)
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="the released repository")
  args = parser.parse_args()
  if missing:
    raise UserError(
      f"this interpreter has no {missing}, which the reference needs; install {needs}, "
      "or name an interpreter that has them with --reference-python"
    )
  use_threads(args.threads)
  run_job(args, jobs, {name: sys.modules[name].__version__ for name in modules})


def worker_parser(command: str, doc: str) -> argparse.ArgumentParser:
  """Makes the parser of a worker's options; `benchmarks.compare` starts workers."""
  parser = cli.Parser(command, doc)
  parser.add_argument("job", help="what to measure")
  parser.add_argument("--model", choices=MODELS, default="full")
  parser.add_argument("--height", type=int, default=180)
  parser.add_argument("--width", type=int, default=320)
  parser.add_argument("--frames", type=int, default=4)
  parser.add_argument("--crop", type=int, default=64)
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--steps", type=int, default=6, help="training steps, the first one included")
  parser.add_argument("--threads", type=int, default=len(available_cpus()))
  parser.add_argument("--started", type=float, default=time.time(), help="when the process began")
  parser.add_argument("--result", type=pathlib.Path, help="where the JSON goes; default: printed")
  parser.add_argument("--keep", type=pathlib.Path, help="where an output frame goes, as .npy")
  return parser


def run_job(args: argparse.Namespace, jobs: Mapping[str, Any], versions: Mapping[str, str]) -> None:
  """Runs a worker's job and writes its result as JSON to --result, or prints it."""
  result = functools.partial(jobs[args.job], args)()
  text = json.dumps({"versions": dict(versions), **result})
  if args.result:
    args.result.write_text(text, encoding="utf-8")
  else:
    print(text)
