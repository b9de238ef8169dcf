"""KEEP's part of the comparison: the same chunk on both sides, and long clips on ours."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np

from benchmarks import compare
from benchmarks.compare import Run, Settings, in_turn, run_worker
from vsr_jax.errors import UserError

LARGEST_CHUNK = 20  # frames: the released code's chunk and our window
CLIP_LENGTHS = (20, 300)  # frames, between which memory must not grow
MARGIN = 3e-3  # of two logits: rounding within the flow moves logits by up to 6e-4
TOLERANCE = 2e-3  # relative, of frames, end to end: the flow magnifies rounding


def keep(settings: Settings) -> dict[str, Any]:
  """Restores the same chunk of aligned faces on both sides.

  Returns:
    The JSON entries: sizes, all runs, FLOPs a frame, and the agreement of the outputs.
  """
  s = dataclasses.replace(settings, reference=settings.keep_reference)
  clip = {"model": s.model, "frames": s.keep_frames}
  kept = {name: s.scratch / f"keep_{name}.npz" for name in ("ours", "reference", "output")}

  def reference() -> Run:
    folder = s.reference.resolve()
    options = {"folder": folder, "keep": kept["reference"], **clip}
    return run_worker(s, s.reference_python, "keep_reference", "time", **options)

  def check(*_: Run) -> dict[str, float]:
    run_worker(s, sys.executable, "keep", "output", keep=kept["output"], **clip)
    ours, theirs, output = (np.load(path) for path in kept.values())
    return compare_chunks(ours["frames"], theirs, output)

  work = run_worker(s, sys.executable, "keep", "work", **clip)
  runs, agreement = in_turn(
    s,
    lambda: run_worker(s, sys.executable, "keep", "time", keep=kept["ours"], **clip),
    reference,
    check,
  )
  flops = {name: work[name] for name in ("flops", "flops_of")}
  return {**clip, **flops, "agreement": agreement, "runs": runs}


def long_clips(settings: Settings, full_size: bool) -> dict[str, Any]:
  """Our peak memory for a clip of one window and for a long one."""
  clip = {"model": "full" if full_size else "tiny"}
  # The first run compiles, which can take more memory than the clip: it does not count.
  lengths = (CLIP_LENGTHS[0], *CLIP_LENGTHS)
  runs = [run_worker(settings, sys.executable, "keep", "stream", frames=n, **clip) for n in lengths]
  return {**clip, "frames": list(CLIP_LENGTHS), "runs": runs[1:]}


def compare_chunks(ours: np.ndarray, reference: Any, output: Any) -> dict[str, float]:
  """Whether both sides chose the same codes and computed the same frames.

  A code may differ where the reference's two best logits lie within rounding of each other; the
  frame is another then, and so are those after it: frames are compared as far as codes are equal.

  Args:
    ours: uint8 RGB [t h w 3], as our timed run gave it.
    reference: "output" [t h w 3] in [-1, 1] and beyond and "logits" [t n codes], as the reference's
      timed run gave them.
    output: the same, computed by our functions in full precision.

  Returns:
    "relative": norm of the difference of the frames over the reference's norm.
    "levels": greatest difference of the 8-bit frames.
    "frames": how many were compared.
    "codes": how many codes of all frames differ.

  Raises:
    UserError: they differ by more than rounding.
  """
  best = np.sort(reference["logits"], axis=-1)
  sure = best[..., -1] - best[..., -2] > MARGIN
  codes, wanted = (x["logits"].argmax(-1) for x in (output, reference))
  differ = codes != wanted
  count = int(np.argmax([*differ.any(-1), True]))  # frames before the first such code
  if (differ[: count + 1] & sure[: count + 1]).any() or not count:
    raise UserError(f"{differ[: count + 1].sum()} codes differ in frame {count + 1} or before")
  frames = reference["output"][:count]
  relative = float(np.linalg.norm(output["output"][:count] - frames) / np.linalg.norm(frames))
  rounded = np.rint(127.5 * (np.clip(frames, -1, 1) + 1))
  levels = float(np.abs(ours[:count] - rounded).max())
  if not relative <= TOLERANCE or not levels <= compare.LEVELS:
    raise UserError(
      f"restored frames differ by {relative:.1e} relative and {levels:.0f}/255 after rounding"
    )
  found = {"relative": relative, "levels": levels, "frames": count}
  return found | {"codes": int(differ.sum())}
