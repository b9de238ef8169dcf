"""Compiles a run's training step for chips that are not there, and says whether it fits them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vsr_jax import runtime
from vsr_jax.chips import Chip
from vsr_jax.compile_report import Report, examine
from vsr_jax.files import make_folder, write_whole
from vsr_jax.paths import place
from vsr_jax.sharding import batch_sharding, make_mesh, replicated
from vsr_jax.topology import devices_of
from vsr_jax.train import recipe
from vsr_jax.train.stage import Params, Stage
from vsr_jax.train.step import build_step

DOES_NOT_FIT = 3  # the exit code
REPORT = "compile.json"  # in the run's folder
MOST = 4096  # samples a chip that are tried, at most


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a trainer compiles for a recipe.

  Attributes:
    stage: what is trained.
    init_params: `key -> params` of every sub-network but the opponent, as `loop.fit` takes it.
    batch: shapes and dtypes [b ...] of a batch of all hosts together, by name.
    auxiliary: shapes of the params that only the loss uses.
  """

  stage: Stage
  init_params: Callable[[jax.Array], Params]
  batch: Mapping[str, jax.ShapeDtypeStruct]
  auxiliary: Params


MakePlan = Callable[[ConfigDict, int], Plan]
"""Makes the plan of a recipe for so many devices; raises `UserError` if it cannot be trained."""


def run(config: ConfigDict, workdir: str, topology: str, make_plan: MakePlan, search: bool) -> bool:
  """Compiles a recipe's step, prints and writes the report, and says whether it fits.

  Args:
    config: the recipe.
    workdir: the run's folder, in which `REPORT` is written.
    topology: see `topology.devices_of`.
    make_plan: of the recipe's system.
    search: look for the largest batches, instead.

  Raises:
    UserError: the topology or the recipe cannot be used.
  """
  runtime.compile_without_devices()
  devices, chip = devices_of(topology)
  make_plan(config, len(devices))  # what is wrong is told before a folder is made
  make_folder(place(workdir))
  told: dict[str, Any] = {"topology": topology, "config": config.to_dict()}
  if search:
    rows = search_batches(config, devices, chip, make_plan)
    print(search_table(rows))
    fits, told["search"] = any(row.batch for row in rows), [row.to_json() for row in rows]
  else:
    report = compile_step(config, devices, chip, make_plan)
    print(
      f"A training step of stage {config.stage!r}, batch {config.data.batch}, {report.to_text()}"
    )
    fits = report.fits
    told |= report.to_json()
  path = place(workdir) / REPORT
  write_whole(path, json.dumps(told, indent=2, allow_nan=False) + "\n")
  print(f"{path}: written")
  return fits


def compile_step(
  config: ConfigDict, devices: Sequence[jax.Device], chip: Chip, make_plan: MakePlan
) -> Report:
  """Compiles the very step that training would run on these devices.

  Args:
    config: the recipe.
    devices: all of the mesh.
    chip: what they are.
    make_plan: of the recipe's system.
  """
  plan, mesh = make_plan(config, len(devices)), make_mesh(devices=devices)
  options = recipe.fit_options(config)
  names = ("accumulate", "clip_norm", "ema_decay", "fsdp_min_size")
  step, state = build_step(
    plan.stage, plan.init_params, mesh, **{name: options[name] for name in names}
  )
  with jax.set_mesh(mesh):
    traced = step.trace(state, *_inputs(plan, mesh))
    return examine(traced, chip, len(devices), config.dtype)


def _inputs(plan: Plan, mesh: Mesh) -> tuple[Any, Any, Any]:
  """A step's arguments after the state, as shapes on the mesh."""

  def placed(sharding: jax.sharding.Sharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  key = jax.eval_shape(lambda: jax.random.key(0))
  everywhere = replicated(mesh)
  return (
    placed(batch_sharding(mesh), dict(plan.batch)),
    placed(everywhere, key),
    placed(everywhere, plan.auxiliary),
  )


@dataclasses.dataclass(frozen=True)
class Largest:
  """The largest batch that fits with a policy of recomputing activations.

  Attributes:
    remat: whether activations are computed again in the backward pass.
    batch: samples on all chips together; 0 if not even one a chip fits.
    report: of that batch; None if none fits.
  """

  remat: bool
  batch: int
  report: Report | None

  def to_json(self) -> dict[str, Any]:
    """JSON values."""
    report = None if self.report is None else self.report.to_json()
    return {"remat": self.remat, "batch": self.batch, "report": report}


def search_batches(
  config: ConfigDict, devices: Sequence[jax.Device], chip: Chip, make_plan: MakePlan
) -> list[Largest]:
  """Finds the largest batch that fits, without and with remat.

  Args:
    config: the recipe; its batch and remat do not count.
    devices: all of the mesh.
    chip: what they are.
    make_plan: of the recipe's system.
  """
  found = []
  unit = len(devices) * config.train.accumulate
  for remat in (False, True):
    reports: dict[int, Report] = {}

    def need(count: int, remat: bool = remat, reports: dict[int, Report] = reports) -> float:
      changed = config.copy_and_resolve_references()
      changed.data.batch, changed.train.remat = count * unit, remat
      reports[count] = compile_step(changed, devices, chip, make_plan)
      print(f"remat {remat}, batch {count * unit}: {reports[count].verdict}", file=sys.stderr)
      return reports[count].needed

    count = largest_fitting(need, chip.memory, MOST)
    found.append(Largest(remat, count * unit, reports.get(count)))
  return found


def largest_fitting(need: Callable[[int], float], room: float, most: int) -> int:
  """The largest count from 1 to `most` that needs at most `room`, 0 if there is none.

  Args:
    need: grows with the count, nearly in proportion; it is expensive.
    room: what there is.
    most: the largest count that is tried.
  """
  good, good_need, slope = 0, 0.0, math.inf
  bad, count = most + 1, 1
  while bad - good > 1:
    size = need(count)
    if size <= room:
      # The first count has all that does not grow, such as params: only differences tell.
      slope = (size - good_need) / (count - good) if good else math.inf
      good, good_need = count, size
    else:
      bad = count
    more = int((room - good_need) / slope) if 0 < slope < math.inf else good
    count = good + max(1, more)
    if count >= bad:
      count = bad - 1 if size <= room else (good + bad) // 2
  return good


def search_table(rows: Sequence[Largest]) -> str:
  """The rows as an aligned table with a title."""
  cells = [("remat", "largest batch", "a chip", "memory a chip", "at least, a sample")]
  for row in rows:
    if row.report is None:
      cells.append((str(row.remat), "none", "", "", ""))
      continue
    seconds = max(row.report.seconds.values()) / row.batch
    memory = f"{row.report.needed / 1e9:.2f} GB"
    each = str(row.batch // row.report.chips)
    cells.append((str(row.remat), str(row.batch), each, memory, f"{seconds:.3g} s"))
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return "\n".join(
    "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
  )
