"""KEEP's part of the comparison: the same chunk on both sides, and long clips on our side."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import numpy as np

from benchmarks import compare, keep_stages
from benchmarks.compare import Run, Settings, in_turn, run_worker
from vsr_jax.errors import UserError

LARGEST_CHUNK = 20  # frames: the released code's largest chunk, and our window
CLIP_LENGTHS = (20, 300)  # frames of the two clips whose peak memory is compared
# Two logits closer than this may change order: rounding in the flow moved them by up to 4e-3.
MARGIN = 1e-2
# The largest relative difference of frames, end to end, where the flow magnifies rounding.
TOLERANCE = 2e-3

COMPARED = 5  # training steps, from the first on
# The largest relative difference of their losses but the first step's. Adam magnifies rounding: its
# first steps are as large for a gradient that is all rounding as for any other. Should that decide
# a code that is nearly as good as another one, losses move by up to 8e-3.
LOSS_TOLERANCE = 1e-2


def keep(settings: Settings) -> dict[str, Any]:
  """Restores the same chunk of aligned faces on both sides.

  Returns:
    The JSON entries: sizes, all runs, FLOPs per frame, the seconds per frame of finding,
    aligning and pasting faces, and the agreement of the outputs.
  """
  s = dataclasses.replace(settings, reference=settings.keep_reference)
  clip = {"model": s.model, "frames": s.keep_frames}
  checkpoint = _convert(s, s.model)
  ours = {**clip, "checkpoint": checkpoint}
  kept = {name: s.scratch / f"keep_{name}.npz" for name in ("ours", "reference", "output")}

  def reference() -> Run:
    folder = s.reference.resolve()
    options = {"folder": folder, "keep": kept["reference"], **clip}
    return run_worker(s, s.reference_python, "keep_reference", "time", **options)

  def check(*_: Run) -> dict[str, float]:
    run_worker(s, sys.executable, "keep", "output", keep=kept["output"], **ours)
    timed, theirs, output = (np.load(path) for path in kept.values())
    return compare_chunks(timed["frames"], theirs, output)

  work = run_worker(s, sys.executable, "keep", "work", **ours)
  runs, agreement = in_turn(
    s,
    lambda: run_worker(s, sys.executable, "keep", "time", keep=kept["ours"], **ours),
    reference,
    check,
  )
  flops = {name: work[name] for name in ("flops", "flops_of")}
  faces = run_worker(s, sys.executable, "keep", "faces", **ours)["faces"]
  return {**clip, **flops, "faces": faces, "agreement": agreement, "runs": runs}


def training(settings: Settings) -> dict[str, Any]:
  """Trains each stage for a few steps on the same batch on both sides.

  Returns:
    The JSON entries by stage: all runs, and the agreement of the losses.
  """
  s = dataclasses.replace(settings, reference=settings.keep_reference)

  def check(ours: Run, reference: Run) -> dict[str, float]:
    losses = (run["losses"][:COMPARED] for run in (ours, reference))
    return compare.compare_losses(*losses, LOSS_TOLERANCE)

  found = {}
  for stage in keep_stages.STAGES:

    def ours(stage=stage) -> Run:
      return run_worker(s, sys.executable, "keep_training", stage, steps=s.steps)

    def reference(stage=stage) -> Run:
      options = {"folder": s.reference.resolve(), "steps": s.steps}
      return run_worker(s, s.reference_python, "keep_training_reference", stage, **options)

    runs, agreement = in_turn(s, ours, reference, check)
    found[stage] = {"agreement": agreement, "runs": runs}
  return found


def long_clips(settings: Settings, full_size: bool) -> dict[str, Any]:
  """Measures our peak memory for a clip of one window and for a long clip."""
  clip = {"model": "full" if full_size else "tiny"}
  # The first run compiles, which can take more memory than the clip, so it is not counted.
  lengths = (CLIP_LENGTHS[0], *CLIP_LENGTHS)
  ours = {**clip, "checkpoint": _convert(settings, clip["model"])}
  runs = [run_worker(settings, sys.executable, "keep", "stream", frames=n, **ours) for n in lengths]
  return {**clip, "frames": list(CLIP_LENGTHS), "runs": runs[1:]}


def _convert(settings: Settings, model: str) -> pathlib.Path:
  """Makes the checkpoint with the reference's weights, unless it exists."""
  folder = settings.scratch / f"keep_{model}"
  if not folder.exists():
    run_worker(settings, sys.executable, "keep", "convert", model=model, checkpoint=folder)
  return folder


def compare_chunks(ours: np.ndarray, reference: Any, output: Any) -> dict[str, float]:
  """Checks that both sides chose the same codes and computed the same frames.

  A code may differ where the reference's two best logits lie within rounding of each other; the
  frame is different then, and so are those after it. Frames are compared as far as codes are equal.

  Args:
    ours: uint8 RGB [t h w 3], from our timed run.
    reference: "output" [t h w 3], not clipped to [-1, 1], and "logits" [t tokens codes], from the
      reference's timed run.
    output: the same, computed by our functions in full precision.

  Returns:
    "relative": norm of the difference of the frames of `output` over the reference's norm.
    "levels": greatest difference of the 8-bit frames of the timed run.
    "frames": how many were compared, of `output` and of the timed run, from the first on.
    "codes": how many codes of all frames differ.

  Raises:
    UserError: they differ by more than rounding, or fewer than two frames could be compared, so
      that no prediction was.
  """
  best = np.sort(reference["logits"], axis=-1)
  unsure = best[..., -1] - best[..., -2] < MARGIN
  codes, wanted = (x["logits"].argmax(-1) for x in (output, reference))
  differ = codes != wanted
  count = _count_before_first(differ.any(-1))
  frames = reference["output"]
  rounded = np.rint(127.5 * (np.clip(frames, -1, 1) + 1))
  levels = np.abs(ours - rounded).max((1, 2, 3))
  # The codes of the timed run are not known: its frames may differ where a code is unsure.
  timed = _count_before_first((levels > compare.LEVELS) & unsure.any(-1))
  frames = frames[:count]
  relative = float(np.linalg.norm(output["output"][:count] - frames) / np.linalg.norm(frames))
  found = {"relative": relative, "levels": float(levels[:timed].max(initial=0))}
  found |= {"frames": [count, timed], "codes": int(differ.sum())}
  sure = not (differ[: count + 1] & ~unsure[: count + 1]).any()
  close = relative <= TOLERANCE and found["levels"] <= compare.LEVELS
  if not (sure and close and min(count, timed) >= 2):
    raise UserError(f"restored chunks differ: {found}")
  return found


def _count_before_first(flags: np.ndarray) -> int:
  """The number of flags before the first that is true."""
  return int(np.argmax([*flags, True]))
