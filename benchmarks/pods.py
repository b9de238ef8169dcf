"""Command: compiles every stage of both papers' recipes for pods and a GPU, and makes a table.

  python -m benchmarks.pods OUT [--topology v5e:4x4 ...] [--stage fmanet/joint ...]

Each is a call of a trainer with --compile_only and rematerialisation, in a process of its own; its
report is OUT/SYSTEM_STAGE/TOPOLOGY/compile.json. Reports that are there already are kept, so that
an interrupted call goes on. The batch is the recipe's, raised to one sample a chip where there are
more chips. The table of all is printed and written to OUT/pods.md.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import importlib
import math
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vsr_jax import cli, files, json_files
from vsr_jax.train.compile_only import DOES_NOT_FIT, REPORT

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("fmanet/degradation", "fmanet/joint", "keep/vqgan", "keep/prediction", "keep/fusion")
TOPOLOGIES = ("v5e:4x4", "v5e:16x16")
TITLES = (
  "stage", "chips", "batch", "GB a chip", "fits", "TFLOP", "traffic, GB", "sent, GB",
  "s, compute", "s, memory", "s, network",
)  # fmt: skip


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("benchmarks.pods", __doc__)
  add = parser.add_argument
  add("out", metavar="OUT", type=pathlib.Path, help="the folder of the reports")
  add("--topology", action="append", help=f"repeatable; default: {', '.join(TOPOLOGIES)}")
  add("--stage", action="append", choices=STAGES, help="repeatable; default: all")
  args = parser.parse_args()
  files.make_folder(args.out)
  reports = {}
  for topology in args.topology or TOPOLOGIES:
    for stage in args.stage or STAGES:
      print(f"{stage} for {topology}", file=sys.stderr, flush=True)
      reports[stage, topology] = compile_stage(stage, topology, args.out)
      files.write_whole(args.out / "pods.md", table(reports))
  print(table(reports), end="")


def compile_stage(stage: str, topology: str, out: pathlib.Path) -> Mapping[str, Any] | None:
  """The report of a stage for a topology, compiled unless it is there.

  Args:
    stage: one of `STAGES`.
    topology: as `--topology` of the trainers takes it.
    out: the folder of all reports.

  Returns:
    What is in compile.json; None if the trainer ended otherwise than with a report.
  """
  name = re.sub(r"[^\w.]+", "_", pathlib.Path(topology).name)
  folder = out / stage.replace("/", "_") / name
  if not (folder / REPORT).exists():
    command = [sys.executable, "-m", *trainer_arguments(stage, topology, folder)]
    if subprocess.run(command, cwd=ROOT, check=False).returncode not in (0, DOES_NOT_FIT):
      return None
  schema = json_files.fields({"fits": json_files.anything}, more=True)
  return json_files.load(folder / REPORT, schema, remedy="remove it")


def trainer_arguments(stage: str, topology: str, folder: pathlib.Path) -> list[str]:
  """The arguments of `python -m` that compile a stage's step."""
  system, name = stage.split("/")
  return [
    f"{system}_jax.train",
    "--config",
    f"configs/{system}/{name}.py",
    "--workdir",
    str(folder.resolve()),
    "--compile_only",
    "--topology",
    str(pathlib.Path(topology).resolve()) if ".txtpb" in topology else topology,
    "--config.train.remat=True",
    f"--config.data.batch={batch_for(stage, count_chips(topology))}",
  ]


def count_chips(topology: str) -> int:
  """How many chips a topology has."""
  name, _, sides = topology.rpartition(":")
  return math.prod(int(side) for side in sides.split("x")) if name else 1


def batch_for(stage: str, chips: int) -> int:
  """The recipe's batch, rounded up to the same number of samples on every chip."""
  system, name = stage.split("/")
  module = importlib.import_module(f"vsr_jax.configs.{system}.{name}")
  return chips * math.ceil(module.get_config().data.batch / chips)


def table(reports: Mapping[tuple[str, str], Mapping[str, Any] | None]) -> str:
  """A Markdown table of reports by stage and topology; amounts and seconds are of one chip."""
  rows: list[Sequence[str]] = [TITLES, ["---", "---"] + ["---:"] * (len(TITLES) - 2)]
  for (stage, topology), found in reports.items():
    chips = pathlib.Path(topology).name
    if found is None:
      rows.append([stage, chips, "not compiled", *[""] * (len(TITLES) - 3)])
      continue
    cells = [stage, chips, str(found["config"]["data"]["batch"]), _giga(found["needed_bytes"])]
    cells += ["yes" if found["fits"] else "**no**", f"{found['flops'] / 1e12:.3g}"]
    seconds, sent = found["roofline_seconds"], [x["sent"] for x in found["collectives"].values()]
    cells += [_giga(found["traffic_bytes"]), _giga(sum(sent) if seconds else None)]
    cells += [f"{seconds[x]:.3g}" if seconds else "" for x in ("compute", "memory", "network")]
    rows.append(cells)
  return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _giga(size: float | None) -> str:
  return "" if size is None else f"{size / 1e9:.3g}"


if __name__ == "__main__":
  cli.run(main)
