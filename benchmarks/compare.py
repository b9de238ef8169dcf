"""Runs our workers and the reference's in turn, one at a time, and compares the results.

Every run is a process of its own, so that neither side's memory or threads disturb the other's.
This module imports no framework, because its process stays alive during the runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vsr_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
# The largest relative difference of frames and losses; float32 rounding gives a few 1e-6.
TOLERANCE = 1e-4
# The largest difference of 8-bit frames; float32 rounding gives 1, accelerators' default a few.
LEVELS = 8
CLIP_LENGTHS = (10, 200)  # frames of the two clips whose peak memory is compared
SMALL = (48, 64)  # height and width of the long clips' frames

Run = dict[str, Any]
Runs = dict[str, list[Run]]  # "ours" and, with a reference, "reference"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What to compare, and where to keep files meanwhile.

  Attributes:
    scratch: a folder for this benchmark alone; compiled programs are cached there.
    reference: a checkout of the released PyTorch code, or None.
    reference_python: the interpreter that has PyTorch.
    model: "full" or "tiny", the model that restores clips; training takes "tiny".
    frames: number of frames of the restored clip.
    height: height of its frames, in pixels.
    width: width of its frames, in pixels.
    crop: side of the training crops, in low-resolution pixels.
    steps: training steps per run.
    repeats: runs per side.
    threads: number of CPUs that each side may use.
    keep_reference: a checkout of the released PyTorch code of KEEP, or None.
    keep_frames: frames of KEEP's chunk.
    video: the video from which the clips to be read are made, or None for the packaged one.
    samples: number of training samples, and of batches, whose reading is timed.
  """

  scratch: pathlib.Path
  reference: pathlib.Path | None
  reference_python: str
  model: str
  frames: int
  height: int
  width: int
  crop: int
  steps: int
  repeats: int
  threads: int
  keep_reference: pathlib.Path | None = None
  keep_frames: int = 6
  video: pathlib.Path | None = None
  samples: int = 40


def run_worker(settings: Settings, python: str, module: str, job: str, **options: Any) -> Run:
  """Runs one worker process from start to end, and returns its result.

  Raises:
    UserError: the worker failed; it has printed why on stderr.
  """
  result = settings.scratch / "result.json"
  options = {"threads": settings.threads, "result": result, **options}
  command = worker_command(python, module, job, **options)
  environment = worker_environment(settings.scratch, settings.threads)
  print(f"running benchmarks.{module} {job}", file=sys.stderr, flush=True)
  try:
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
  except OSError as e:
    raise UserError(f"{python}: cannot be run ({e.strerror}); name another interpreter") from None
  if done.returncode:
    raise UserError(f"benchmarks.{module} {job} failed ({done.returncode}); its reason is above")
  return json.loads(result.read_text(encoding="utf-8"))


def worker_command(python: str, module: str, job: str, **options: Any) -> list[str]:
  """The command of a worker, with its options and the time at which it starts."""
  command = [python, "-m", f"benchmarks.{module}", job]
  for name, value in {"started": time.time(), **options}.items():
    command += [f"--{name}", str(value)]
  return command


def worker_environment(scratch: pathlib.Path, threads: int) -> dict[str, str]:
  """The environment of a worker; compiled programs are cached in `scratch`."""
  return os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(scratch / "cache"),
    "OMP_NUM_THREADS": str(threads),
  }


def in_turn(
  settings: Settings,
  ours: Callable[[], Run],
  reference: Callable[[], Run],
  check: Callable[[Run, Run], Any],
) -> tuple[Runs, Any]:
  """Runs both sides alternately, the first side too, and applies `check` to the first pair.

  Raises:
    UserError: the two sides ran on different devices, or whatever a run or the check raises.
  """
  if not settings.reference:
    return {"ours": [ours() for _ in range(settings.repeats)]}, None
  runs: Runs = {"ours": [], "reference": []}
  sides = [("reference", reference), ("ours", ours)]
  checked = None
  for i in range(settings.repeats):
    for name, run in sides[:: 1 if i % 2 == 0 else -1]:
      runs[name].append(run())
    if i == 0:
      devices = [runs[name][0]["device"] for name in ("ours", "reference")]
      if devices[0] != devices[1]:
        raise UserError(
          f"ours ran on {devices[0]} and the reference on {devices[1]}: give the reference an "
          "interpreter whose PyTorch uses the same, or set JAX_PLATFORMS=cpu or leave it out"
        )
      checked = check(runs["ours"][0], runs["reference"][0])
  return runs, checked


def restoration(settings: Settings) -> dict[str, Any]:
  """Restores the same clip on both sides.

  Returns:
    The JSON entries: sizes, all runs, FLOPs per frame, and the agreement of the outputs.
  """
  s = settings
  clip = {"model": s.model, "height": s.height, "width": s.width, "frames": s.frames}
  kept = {name: s.scratch / f"{name}.npy" for name in ("ours", "reference", "output")}

  def check(*_: Run) -> dict[str, float]:
    run_worker(s, sys.executable, "restoration", "output", keep=kept["output"], **clip)
    return compare_frames(*(np.load(path) for path in kept.values()))

  work = run_worker(s, sys.executable, "restoration", "work", **clip)
  runs, agreement = in_turn(
    s,
    lambda: run_worker(s, sys.executable, "restoration", "time", keep=kept["ours"], **clip),
    lambda: _reference(s, "restoration", keep=kept["reference"], **clip),
    check,
  )
  return {**clip, "flops": work["flops"], "agreement": agreement, "runs": runs}


def training(settings: Settings) -> dict[str, Any]:
  """Trains the joint stage for a few steps on the same batch on both sides."""
  s = settings
  step = {"model": "tiny", "batch": 2, "crop": s.crop, "steps": s.steps}
  runs, agreement = in_turn(
    s,
    lambda: run_worker(s, sys.executable, "training", "time", **step),
    lambda: _reference(s, "training", **step),
    lambda ours, reference: compare_losses(ours["losses"], reference["losses"]),
  )
  return {**step, "agreement": agreement, "runs": runs}


def long_clips(settings: Settings, full_size: bool) -> dict[str, Any]:
  """Measures our peak memory for a short and for a long clip of frames of one size."""
  s = settings
  height, width = (s.height, s.width) if full_size else SMALL
  clip = {"model": s.model, "height": height, "width": width}
  # The first run compiles, which can take more memory than the clip, so it is not counted.
  lengths = (CLIP_LENGTHS[0], *CLIP_LENGTHS)
  runs = [run_worker(s, sys.executable, "restoration", "time", frames=n, **clip) for n in lengths]
  return {**clip, "frames": list(CLIP_LENGTHS), "runs": runs[1:]}


def _reference(settings: Settings, job: str, **options: Any) -> Run:
  python, folder = settings.reference_python, settings.reference.resolve()
  return run_worker(settings, python, "reference", job, folder=folder, **options)


def compare_frames(ours: np.ndarray, reference: np.ndarray, output: np.ndarray) -> dict[str, float]:
  """Checks that both sides computed the same frame.

  Args:
    ours: uint8 RGB [s*h s*w 3], from our timed run.
    reference: the same frame in floating point, from the reference's timed run.
    output: the same frame in floating point, computed by our functions in full precision.

  Returns:
    "relative": norm of output - reference over the reference's norm.
    "levels": greatest difference of the 8-bit frames, of 255.

  Raises:
    UserError: they differ by more than rounding.
  """
  relative = float(np.linalg.norm(output - reference) / np.linalg.norm(reference))
  rounded = np.rint(255 * np.clip(reference, 0, 1))
  levels = float(np.abs(ours - rounded).max())
  if not relative <= TOLERANCE or not levels <= LEVELS:
    raise UserError(
      f"the restored frames differ: {relative:.1e} relative (at most {TOLERANCE:.0e}), "
      f"{levels:.0f} of 255 when rounded (at most {LEVELS}); the times of different functions are "
      "not compared"
    )
  return {"relative": relative, "levels": levels}


def compare_losses(
  ours: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], later: float = np.inf
) -> dict[str, float]:
  """Checks that both sides trained alike.

  Args:
    ours: the losses of each step.
    reference: likewise.
    later: the largest difference after the first step.

  Returns:
    "first" and "largest": the relative difference of the first step's losses and the greatest of
    all steps, the sum of a step's differences over the sum of its losses.

  Raises:
    UserError: the losses differ by more than rounding in the first step, or by more than `later`.
  """
  x, y = np.array(ours), np.array(reference)
  apart = np.abs(x - y).sum(1) / np.abs(y).sum(1)
  for found, most in ((apart[0], TOLERANCE), (apart.max(), max(later, TOLERANCE))):
    if not found <= most:
      raise UserError(
        f"the losses differ by {found:.1e} (at most {most:.0e}); the times of different functions "
        "are not compared"
      )
  return {"first": float(apart[0]), "largest": float(apart.max())}


def median_of(runs: list[Run], key: str) -> float | None:
  """The median over runs of an entry, a number or a list (its median); None if runs lack it."""
  values = [run.get(key) for run in runs]
  if any(value is None for value in values):
    return None
  return statistics.median(
    statistics.median(value) if isinstance(value, list) else value for value in values
  )


def median_ratio(runs: Runs, key: str) -> float | None:
  """The median over pairs of runs of the reference's number over ours; None without reference."""
  if "reference" not in runs:
    return None
  pairs = zip(runs["ours"], runs["reference"], strict=True)
  return statistics.median(median_of([b], key) / median_of([a], key) for a, b in pairs)
