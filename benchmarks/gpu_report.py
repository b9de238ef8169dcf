"""The results of `benchmarks.gpu` as tables for people."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import report
from benchmarks.gpu_parts import BASE, PRECISIONS, TABLES

SHARES = ("of the peak", "of the product", "of the bandwidth")
RESTORING = ("", "compile (s)", "frames/s", "memory (GB)", *SHARES, "differs by, of 255")
TRAINING = ("", "compile (s)", "steps/s", "memory (GB)", *SHARES)


def to_markdown(entries: dict[str, Any]) -> str:
  """The machine, and a table for each system and for training, of the parts that are there."""
  machine, device, sizes = entries["machine"], entries["device"], entries["sizes"]
  versions = ", ".join(f"{name} {version}" for name, version in entries["versions"].items())
  where = f"{device['kind']}; {machine['threads']} CPU threads ({machine['architecture']})"
  if device["platform"] != "gpu":
    where = f"No GPU, the CPU is measured: {machine['threads']} threads ({machine['architecture']})"
  blocks = [f"{where}.\n{versions}; preset {entries['preset']}."]
  chip = device["chip"]
  if chip:
    told = f"{chip['name']}: published are {chip['bfloat16'] / 1e12:.4g} TFLOP/s of bfloat16, "
    told += f"{chip['float32'] / 1e12:.4g} of TF32, {chip['memory_bandwidth'] / 1e9:.4g} GB/s."
    blocks.append(told)
  about = {
    "fmanet": f"{sizes['height']}x{sizes['width']} -> x4, {sizes['configuration']} configuration",
    "keep": f"{sizes['configuration']} configuration, window of {sizes['window']} frames",
    "train": "first step left out",
  }
  for table, title in TABLES.items():
    found = [part for part in entries["parts"].values() if part["table"] == table]
    if found:
      header = TRAINING if table == "train" else RESTORING
      rows = [_row(part, chip, len(header)) for part in found]
      blocks += [f"## {title}: {about[table]}", report.align([header, *rows])]
  if statuses := [part for part in entries["parts"].values() if "status" in part]:
    blocks.append("\n".join(f"- {x['table']}: {x['row']}: {x['status']}" for x in statuses))
  return "\n\n".join(blocks) + "\n"


def _row(part: dict[str, Any], chip: dict[str, Any] | None, length: int) -> tuple[str, ...]:
  """A part's cells; where it has no result, the reason is below the tables."""
  if "seconds" not in part:
    return (part["row"], "see below", *[""] * (length - 2))
  seconds = part["seconds"]
  seconds = statistics.median(seconds) if isinstance(seconds, list) else seconds
  cells = [part["row"], _number(part.get("compile"), "{:.1f}"), _number(1 / seconds)]
  cells += [_number(part.get("device_memory"), "{:.2f}", 1e-9), *shares(part, seconds, chip)]
  if length == len(RESTORING):
    cells.append(_difference(part))
  return tuple(cells)


def shares(part: dict[str, Any], seconds: float, chip: dict[str, Any] | None) -> list[str]:
  """The cells of `SHARES`: what work and memory traffic take of what the chip can do.

  Args:
    part: a result, with "flops" and "traffic" of a frame or a step, and "product_peak".
    seconds: that a frame or a step takes.
    chip: the chip's published figures; None if they are not known, as of a CPU.
  """
  flops, traffic = (part[key] / seconds if key in part else None for key in ("flops", "traffic"))
  if part["on_cpu"] or part["precision"] is None or chip is None:
    peak = bandwidth = None
  else:
    peak, bandwidth = chip[PRECISIONS[part["precision"]].dtype], chip["memory_bandwidth"]
  limits = (flops, peak), (flops, part.get("product_peak")), (traffic, bandwidth)
  return [f"{100 * a / b:.1f} %" if a is not None and b else "" for a, b in limits]


def _difference(part: dict[str, Any]) -> str:
  if part["row"] == BASE:
    return "(compared with)"
  found = part.get("difference")
  return f"{found['mean']:.1e}, at most {found['largest']:.0f}" if found else ""


def _number(value: float | None, form: str = "{:.3g}", unit: float = 1) -> str:
  return "" if value is None else form.format(unit * value)
