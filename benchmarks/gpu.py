"""Times both systems on a GPU, precision by precision, in minutes.

    python -m benchmarks.gpu [--preset full] [--minutes 8] [--reference DIR] [--out DIR] ...

Every part is a process of its own with a limit of time. Its row is written to gpu.md and gpu.json
as soon as it is known, also where the part failed, so that a run that is cut off keeps the others.
README.md beside this file tells how it measures. This module imports no framework.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import compare, gpu_report, report, workload
from benchmarks.gpu_parts import BASE, PRESETS, TABLES, Part, make_parts
from vsr_jax import cli, files
from vsr_jax.errors import UserError

LEAST = 10.0  # seconds; a part is not begun with less
START = 120.0  # seconds for JAX to list its devices
LONGEST = 200  # characters of a reason

Entries = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command; `arguments` are those of the command line unless given."""
  deadline = time.monotonic()
  args = _parse(arguments)
  deadline += 60 * args.minutes
  files.check_folder(args.out)
  with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
    folder = pathlib.Path(scratch)
    device = find_device(folder, args.cpu)
    references = {"fmanet": args.reference, "keep": args.keep_reference}
    parts = make_parts(
      PRESETS[args.preset], device["platform"] == "gpu", references, args.reference_python
    )
    cpus = workload.available_cpus()
    entries = {
      "machine": report.machine(len(cpus), os.getloadavg()[0]),
      "versions": device.pop("versions"),
      "device": device,
      "preset": args.preset,
      "sizes": dataclasses.asdict(PRESETS[args.preset]),
      "parts": {},
    }
    chosen = [part for part in parts if part.table in args.only.split(",")]
    measure(chosen, folder, args.out, entries, deadline)
  print(gpu_report.to_markdown(entries))
  print(f"\nwritten to {args.out}/gpu.md and gpu.json")
  if not any("seconds" in found for found in entries["parts"].values()):
    raise UserError("no part could be measured; the table tells why")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = cli.Parser("benchmarks.gpu", __doc__)
  add = parser.add_argument
  add("--preset", choices=PRESETS, default="full", help="sizes; default: %(default)s")
  add("--cpu", action="store_true", help="measure the CPU where there is no GPU")
  add("--minutes", type=float, default=8.0, metavar="M", help="at most; default: %(default)s")
  add("--only", default=",".join(TABLES), metavar="A,B", help="default: %(default)s")
  add("--reference", type=pathlib.Path, metavar="DIR", help="a checkout of the released FMA-Net")
  add("--keep-reference", type=pathlib.Path, metavar="DIR", help="one of KEEP, with submodules")
  add("--reference-python", default=sys.executable, metavar="PATH", help="one that has PyTorch")
  add("--out", type=pathlib.Path, default=pathlib.Path("bench_output"), metavar="DIR")
  args = parser.parse_args(arguments)
  if not 0 < args.minutes < math.inf:
    parser.error(f"--minutes {args.minutes}: must be above 0")
  if unknown := [name for name in args.only.split(",") if name not in TABLES]:
    parser.error(f"--only {','.join(unknown)}: there are {', '.join(TABLES)}")
  return args


def find_device(scratch: pathlib.Path, cpu: bool) -> Entries:
  """What `gpu_worker.find_device` tells of JAX's first device, with versions.

  Args:
    scratch: a folder for this benchmark alone.
    cpu: whether a CPU will do.

  Raises:
    UserError: there is no GPU and a CPU was not asked for, or JAX does not start.
  """
  part = Part("device", "", None, "gpu_worker", "device", {})
  found = Running(part, scratch, workload.available_cpus()).finish(START)
  if "status" in found:
    raise UserError(f"JAX's devices cannot be listed: {found['status']}")
  if found["platform"] != "gpu" and not cpu:
    raise UserError(
      f"there is no GPU here, JAX computes on {found['kind']}: install jax[cuda12] where there is "
      "one, or measure the CPU with --cpu (and --preset small)"
    )
  return found


def measure(
  parts: Sequence[Part], scratch: pathlib.Path, out: pathlib.Path, entries: Entries, deadline: float
) -> None:
  """Runs the parts one after another, those of the CPU beside them, and writes every result.

  Args:
    parts: in the order in which they run.
    scratch: a folder for this benchmark alone.
    out: where gpu.md and gpu.json are written.
    entries: of gpu.json; "parts" gets a result by name, with "status" where it has none.
    deadline: `time.monotonic` at which the last part ends.
  """
  limit = PRESETS[entries["preset"]].limit
  beside = [part for part in parts if part.on_cpu]
  cpus = workload.available_cpus()
  # Each has half of the CPUs, or they share them where there are few.
  half = len(cpus) // 2 if beside and len(cpus) > 2 else 0
  running = [Running(part, scratch, cpus[-half:] if half else cpus) for part in beside]

  def record(part: Part, found: Entries) -> None:
    told = {key: getattr(part, key) for key in ("table", "row", "precision", "on_cpu")}
    entries["parts"][part.name] = told | found
    compare_outputs(scratch, entries["parts"])
    texts = {"gpu.md": gpu_report.to_markdown(entries), "gpu.json": json.dumps(entries, indent=1)}
    report.write_texts(out, texts)

  try:
    for part in parts:
      if part.on_cpu:
        continue
      left = deadline - time.monotonic()
      if left < LEAST:
        record(part, {"status": "left out: no time was left"})
        continue
      print(f"measuring {part.name}", file=sys.stderr, flush=True)
      record(part, Running(part, scratch, cpus[: len(cpus) - half]).finish(min(left, limit)))
      for other in [x for x in running if x.is_over]:
        running.remove(other)
        record(other.part, other.finish(0))
    while running:
      other = running.pop(0)
      record(other.part, other.finish(deadline - time.monotonic()))
  finally:
    for other in running:
      other.stop()


class Running:
  """A worker's process, from its start on.

  Attributes:
    part: what it measures.
  """

  def __init__(self, part: Part, scratch: pathlib.Path, cpus: Sequence[int]):
    """Starts it on some CPUs; its files are in `scratch`."""
    self.part = part
    self._result, self._log = (output_path(scratch, part.name, x) for x in (".json", ".log"))
    options = {"threads": len(cpus), "result": self._result, **part.options}
    if part.table in ("fmanet", "keep"):
      options["keep"] = output_path(scratch, part.name)
    command = compare.worker_command(part.python, part.module, part.job, **options)
    environment = compare.worker_environment(scratch, len(cpus))
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if part.on_cpu:
      environment["JAX_PLATFORMS"] = "cpu"
    self._began = time.monotonic()
    self._process: subprocess.Popen | None = None
    self._refusal = ""
    try:
      with self._log.open("wb") as log, _on(cpus):
        self._process = subprocess.Popen(
          command, cwd=compare.ROOT, env=environment, stdout=log, stderr=log
        )
    except OSError as e:
      self._refusal = f"failed: {part.python}: cannot be run ({e.strerror})"

  @property
  def is_over(self) -> bool:
    """Whether the process has ended."""
    return self._process is None or self._process.poll() is not None

  def finish(self, seconds: float) -> Entries:
    """The worker's result, waited for so long; "status" tells why there is none, or not all."""
    status = self._refusal
    if self._process is not None:
      try:
        code = self._process.wait(max(0.0, seconds))
        status = f"failed ({code}): {last_line(self._log)}" if code else ""
      except subprocess.TimeoutExpired:
        status = f"cut off after {time.monotonic() - self._began:.0f} s"
      finally:
        self.stop()
    found = {}
    if self._result.exists():
      found = json.loads(self._result.read_text(encoding="utf-8"))
    return found | ({"status": status} if status else {})

  def stop(self) -> None:
    """Ends the process if it still runs."""
    if self._process is not None and self._process.poll() is None:
      self._process.kill()
      self._process.wait()


@contextlib.contextmanager
def _on(cpus: Sequence[int]) -> Iterator[None]:
  """A context in which processes start on these CPUs."""
  before = workload.available_cpus()
  bind = getattr(os, "sched_setaffinity", lambda *_: None)
  bind(0, cpus)
  try:
    yield
  finally:
    bind(0, before)


def last_line(log: pathlib.Path) -> str:
  """What a worker printed last; an error that ends it, or what it says of memory."""
  lines = [x.strip() for x in log.read_text(encoding="utf-8", errors="replace").splitlines()]
  lines = [x for x in lines if x] or ["it printed nothing"]
  memory = [x for x in lines if "RESOURCE_EXHAUSTED" in x or "out of memory" in x.lower()]
  return (memory or lines)[-1][:LONGEST]


def output_path(scratch: pathlib.Path, name: str, ending: str = "") -> pathlib.Path:
  """Where a part's files are; without an ending, as NumPy's writers take it, that of its frames."""
  stem = "".join(c if c.isalnum() else "_" for c in name)
  return scratch / f"{stem}{ending}"


def compare_outputs(scratch: pathlib.Path, parts: Entries) -> None:
  """Adds to each part that restored frames by how much these differ from those of `BASE`."""
  for name, found in parts.items():
    base = parts.get(f"{found['table']}: {BASE}", {})
    if "difference" in found or name == f"{found['table']}: {BASE}":
      continue
    if found["table"] in ("fmanet", "keep") and "seconds" in found and "seconds" in base:
      ours = np.load(output_path(scratch, f"{found['table']}: {BASE}", ".npy"))
      found["difference"] = difference(ours, read_output(scratch, name))


def read_output(scratch: pathlib.Path, name: str) -> np.ndarray:
  """The 8-bit frames that a part has restored; of the released FMA-Net, one."""
  archive = output_path(scratch, name, ".npz")
  if archive.exists():  # the released KEEP's, in [-1, 1]
    with np.load(archive) as file:
      return np.rint(127.5 * (np.clip(file["output"], -1, 1) + 1))
  found = np.load(output_path(scratch, name, ".npy"))
  if found.dtype == np.uint8:
    return found
  return np.rint(255 * np.clip(found, 0, 1))


def difference(base: np.ndarray, other: np.ndarray) -> Entries:
  """How much 8-bit frames differ: the mean over all numbers and the largest, of 255.

  Args:
    base: [t h w 3].
    other: likewise, as many or more; or [h w 3], the frame `workload.CHECKED`.
  """
  base = base[workload.CHECKED] if other.ndim == 3 else base
  apart = np.abs(base.astype(np.float32) - other[: len(base)])
  return {"mean": float(apart.mean()), "largest": float(apart.max())}


if __name__ == "__main__":
  cli.run(main)
