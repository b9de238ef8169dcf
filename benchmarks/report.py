"""The results as a table for people and as JSON: rows, machine, files."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import compare, data
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole

SIMD = {  # flag of the CPU -> its name, the widest first
  "avx512f": "AVX-512",
  "avx2": "AVX2",
  "avx": "AVX",
  "sve": "SVE",
  "asimd": "NEON",
}

KEEP_STAGES = {  # what a step of each stage is
  "vqgan": "stage I, 2 images of 64x64",
  "prediction": "stage II, a clip of 4 frames of 128x128",
  "fusion": "stage III, a clip of 4 frames of 128x128",
}

HEADERS = {"data": ("", "1 worker", "most", "ratio")}  # of parts that differ

BUSY = 0.5  # load average above which times are not reliable

Table = list[tuple[str, str, str, str]]  # what, ours, reference, ratio


def machine(threads: int, load: float) -> dict[str, Any]:
  """The machine in general terms, and its load average before the first run."""
  return {
    "load": load,
    "architecture": platform.machine(),
    "threads": threads,
    "simd": simd_level(),
    "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    "system": platform.system(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
  }


def simd_level(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
  """The widest vector instructions that the CPU says it has; "unknown" where it does not say."""
  if not cpuinfo.is_file():
    return "unknown"
  lines = cpuinfo.read_text(encoding="utf-8").splitlines()
  flags = {flag for x in lines if x.startswith(("flags", "Features")) for flag in x.split()}
  return next((name for flag, name in SIMD.items() if flag in flags), "unknown")


def restoration_table(result: dict[str, Any]) -> Table:
  """The rows of `compare.restoration`."""
  runs, ours = result["runs"], result["runs"]["ours"]
  seconds = compare.median_of(ours, "seconds")
  later = _without_first_runs(runs)
  rows = [
    _row("seconds a frame, steady state", runs, "seconds", "{:.3g}"),
    _row_of_ours("frames a second", f"{1 / seconds:.3g}"),
    _row("start to first frame (s)", later, "first_frame"),
    _row("start to last frame (s)", later, "last_frame"),
    _row("peak memory (GB)", later, "memory", "{:.2f}", 1e-9),
    *_first_run(ours),
    *_work(result, seconds),
  ]
  if result["agreement"]:
    apart = "{relative:.0e} relative, {levels:.0f}/255 rounded"
    rows.append(_row_of_ours("outputs differ by", apart.format(**result["agreement"])))
  return rows


def training_table(result: dict[str, Any]) -> Table:
  """The rows of `compare.training`, and of each stage of `compare_keep.training`."""
  runs, ours = result["runs"], result["runs"]["ours"]
  later = _without_first_runs(runs)
  rows = [
    _row("seconds a step", runs, "seconds", "{:.3g}"),
    _row("CPU seconds a step, of all threads", runs, "cpu_seconds", "{:.3g}"),
    _row("peak memory (GB)", later, "memory", "{:.2f}", 1e-9),
    *_first_run(ours),
  ]
  if result["agreement"]:
    apart = "{first:.0e}, in the end {largest:.0e}"
    rows.append(_row_of_ours("losses differ by (relative)", apart.format(**result["agreement"])))
  return rows


def keep_table(result: dict[str, Any]) -> Table:
  """The rows of `compare_keep.keep`."""
  runs, ours = result["runs"], result["runs"]["ours"]
  seconds = compare.median_of(ours, "seconds")
  later = _without_first_runs(runs)
  rows = [
    _row("seconds a frame, without a chunk's first", runs, "seconds", "{:.3g}"),
    _row(f"seconds a chunk of {result['frames']} frames", runs, "chunk"),
    _row("start to the end of a chunk of 2 (s)", later, "first_chunk"),
    _row("peak memory (GB)", later, "memory", "{:.2f}", 1e-9),
    *_first_run(ours),
    *_work(result, seconds),
  ]
  if faces := result.get("faces"):
    rows += [_row_of_ours(f"{name} a face, 1280x720 (s)", f"{faces[name]:.3f}") for name in faces]
    share = sum(faces.values()) / seconds
    rows.append(_row_of_ours("these of the network's time", f"{100 * share:.1f} %"))
  if result["agreement"]:
    a = result["agreement"]
    apart = f"{a['relative']:.0e} relative ({a['frames'][0]} frames), "
    apart += f"{a['levels']:.0f}/255 rounded ({a['frames'][1]} frames); {a['codes']} codes"
    rows.append(_row_of_ours("outputs differ by", apart))
  return rows


def long_table(result: dict[str, Any]) -> Table:
  """The rows of `compare.long_clips`."""
  short, long = (run["memory"] for run in result["runs"])
  few, many = result["frames"]
  growth = (long - short) / (many - few)
  return [
    _row_of_ours(f"peak memory, {few} frames (GB)", f"{1e-9 * short:.3f}"),
    _row_of_ours(f"peak memory, {many} frames (GB)", f"{1e-9 * long:.3f}"),
    _row_of_ours("growth a frame (kB)", f"{1e-3 * growth:.1f}"),
  ]


def _row_of_ours(what: str, cell: str) -> tuple[str, str, str, str]:
  return what, cell, "", ""


def _row(what: str, runs: compare.Runs, key: str, form: str = "{:.1f}", unit: float = 1) -> tuple:
  cells = [
    form.format(unit * compare.median_of(runs[side], key)) if side in runs else ""
    for side in ("ours", "reference")
  ]
  ratio = compare.median_ratio(runs, key)
  return what, *cells, "" if ratio is None else f"{ratio:.2f}"


def _without_first_runs(runs: compare.Runs) -> compare.Runs:
  """The runs but each side's first, which compiles or reads its files for the first time."""
  return {side: side_runs[1:] or side_runs for side, side_runs in runs.items()}


def _work(result: dict[str, Any], seconds: float) -> Table:
  """Rows on the work per frame and its share of the machine's peak, if it was counted."""
  peak = compare.median_of(result["runs"]["ours"], "product_peak")
  rows = [_row_of_ours("matrix-product peak (GFLOP/s)", f"{1e-9 * peak:.0f}")]
  if result["flops"]:
    rows.append(_row_of_ours("work (GFLOP a frame)", f"{1e-9 * result['flops']:.0f}"))
    rows.append(_row_of_ours("of the peak", f"{100 * result['flops'] / seconds / peak:.0f} %"))
  return rows


def _first_run(ours: list[compare.Run]) -> Table:
  """Rows on the time of compiling, and on an accelerator's memory."""
  rows = [
    _row_of_ours("compile, first run (s)", f"{ours[0]['compile']:.1f}"),
    _row_of_ours("peak memory, first run (GB)", f"{1e-9 * ours[0]['memory']:.2f}"),
  ]
  if len(ours) > 1:
    cached = compare.median_of(ours[1:], "compile")
    rows.append(_row_of_ours("compile, from the cache (s)", f"{cached:.1f}"))
  if memory := compare.median_of(ours, "device_memory"):
    rows.append(_row_of_ours("device memory (GB)", f"{1e-9 * memory:.2f}"))
  return rows


def titles(results: dict[str, Any]) -> dict[str, tuple[str, Table]]:
  """Title and rows by name of the part, for the parts that were run."""
  found = {}
  if r := results.get("restoration"):
    what = f"Restoration, {r['model']} configuration, {r['height']}x{r['width']} -> x4"
    found["restoration"] = f"{what}, {r['frames']} frames a run", restoration_table(r)
  if r := results.get("training"):
    what = f"Training step, joint stage, {r['model']} configuration"
    found["training"] = (
      f"{what}, batch {r['batch']} of {r['crop']}x{r['crop']}",
      training_table(r),
    )
  if r := results.get("long"):
    found["long"] = f"Length of the clip, {r['height']}x{r['width']} frames", long_table(r)
  if r := results.get("keep"):
    what = f"KEEP, {r['model']} configuration, {r['frames']} frames a chunk"
    found["keep"] = what, keep_table(r)
  for stage, r in results.get("keep-training", {}).items():
    found[f"keep-training {stage}"] = (
      f"KEEP, training step, {KEEP_STAGES[stage]}",
      training_table(r),
    )
  if r := results.get("keep_long"):
    found["keep_long"] = f"KEEP, length of the clip, {r['model']} configuration", long_table(r)
  if r := results.get("data"):
    what = f"Reading training batches, {r['workers'][-1]} workers at most, of {r['video']}"
    found["data"] = what, data.table(r)
  return found


def to_markdown(results: dict[str, Any]) -> str:
  """All parts as Markdown tables, with columns aligned for reading as plain text."""
  m = results["machine"]
  where = (
    f"{m['threads']} CPU threads ({m['architecture']}, {m['simd']}), {m['memory'] / 1e9:.0f} GB of "
    f"memory, {m['system']}; device {results['device']}; {results['repeats']} runs a side"
  )
  versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
  flags = f"XLA_FLAGS={m['xla_flags']}" if m["xla_flags"] else "no XLA_FLAGS"
  load = f"load average {m['load']:.1f} at the start: what else ran slowed both sides, unequally"
  blocks = [f"{where}.\n{versions}; {flags}{f'; {load}' if m['load'] > BUSY else ''}."]
  for name, (title, rows) in titles(results).items():
    header = HEADERS.get(name, ("", "ours", "reference", "ratio"))
    blocks += [f"## {title}", align([header, *rows])]
  return "\n\n".join(blocks)


def align(rows: Sequence[tuple[str, ...]]) -> str:
  """A Markdown table, aligned; the first row is its header, the first column names the others."""
  widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
  lines = []
  for row in rows:
    cells = [row[0].ljust(widths[0])]
    cells += [x.rjust(width) for x, width in zip(row[1:], widths[1:], strict=True)]
    lines.append(f"| {' | '.join(cells)} |")
  rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
  return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def collect(
  threads: int, load: float, repeats: int, parts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
  """The entries of benchmark.json: machine, versions, and the parts by name."""
  runs = [run for part in parts.values() for run in _all_runs(part)]
  versions = {"python": platform.python_version()}
  for run in runs:
    versions |= run["versions"]
  device = runs[0]["device"]
  return {
    "machine": machine(threads, load),
    "device": device,
    "versions": versions,
    "repeats": repeats,
    **parts,
  }


def _all_runs(part: dict[str, Any]) -> list[compare.Run]:
  """The runs of a part: of both sides or of ours alone, of all stages if it has some."""
  if "runs" not in part:
    return [run for stage in part.values() for run in _all_runs(stage)]
  runs = part["runs"]
  return runs if isinstance(runs, list) else [run for side in runs.values() for run in side]


def write(folder: pathlib.Path, results: dict[str, Any]) -> None:
  """Writes benchmark.json and benchmark.md; see `write_texts`."""
  texts = {"benchmark.json": json.dumps(results, indent=1), "benchmark.md": to_markdown(results)}
  write_texts(folder, texts)


def write_texts(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
  """Writes files by name, each to a temporary file first.

  Raises:
    UserError: the folder or a file in it cannot be written.
    OSError: the disk is full.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
      write_whole(folder / name, f"{text}\n")
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(f"{folder}: cannot be written ({e.strerror}); name another --out") from e
