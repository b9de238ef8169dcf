"""Command: trains and scores the rows of a table of ablations, each as an ordinary run.

  python -m vsr_jax.sweep --config configs/fmanet/ablations.py --rows all|NAME,... --out SWEEP
      [--stages NAME,...] [--seeds 0,1,2] [--budget paper|demo|smoke] [--length X]
      [--evaluate DATA] [--parallel N] [--devices 0,1] [--part I/N] [--check]
      [--config.KEY VALUE] [--STAGE.KEY VALUE] [--ROW.KEY VALUE]
  python -m vsr_jax.sweep --config configs/keep/ablations.py ...

SWEEP/ROW/SEED/STAGE are the runs, SWEEP/ROW/SEED/evaluation the scores. What rows have in common is
trained once. An interrupted call goes on where it stopped, and so does one with more rows or seeds.
A row that fails is written down with its reason, and the others go on. See docs/ablations.md.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import pathlib
import re
import shlex
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vsr_jax import cli, evaluation, paths, progress
from vsr_jax.checkpoint import read_meta
from vsr_jax.errors import UserError
from vsr_jax.files import make_folder
from vsr_jax.locks import locked
from vsr_jax.sweeps import checks, plan, record, table, work
from vsr_jax.sweeps.checks import Scored
from vsr_jax.sweeps.plan import PLACES, Chain, Run
from vsr_jax.sweeps.table import ALL, Changes, Table
from vsr_jax.sweeps.work import Task, Worker
from vsr_jax.train.recipe import LARGEST_SEED, as_flags

MOST_SEEDS, MOST_PROCESSES = 1000, 512


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args, rest = _parse()
  rows = table.load(args.config)
  if args.budget not in rows.budgets:
    raise UserError(f"--budget {args.budget}: must be one of {', '.join(rows.budgets)}")
  if args.evaluate_options is None:
    args.evaluate_options = [*rows.evaluation]
  names = table.choose("--rows", args.rows, list(rows.rows))
  stages = table.choose("--stages", args.stages, rows.all_stages)
  changes = table.parse_changes(rest, rows, args.budget)

  def make(names: Sequence[str], seeds: Sequence[int]) -> list[Chain]:
    return plan.make_chains(rows, args.budget, names, stages, seeds, changes, args.length)

  chains = make(names, args.seeds)
  # The row by which recipes and data are known again: none of those asked for in particular.
  usual = rows.base if {*rows.stages(rows.base)} & {*stages} else names[0]
  base = make([usual], [0])[0]
  scored = _scored_data(args, chains)
  told = describe(args, rows, names, stages, changes, base)
  told["evaluation"] = {"arguments": args.evaluate_options} if scored else None
  record.check(args.out, told)
  mine = plan.take_part(chains, *args.part)
  if not mine:
    print(f"part {args.part[0]} of {args.part[1]}: nothing to do, the others have every row")
    return
  found = check_runs(rows, [base, *mine], scored)
  wrong = _reasons(mine, found.wrong)
  if len(wrong) == len(mine) and len(set(wrong.values())) == 1:  # such as data that are missing
    raise UserError(f"no row can be trained: {wrong[mine[0].path]}")
  for path, reason in wrong.items():
    print(f"{path}: cannot be trained: {reason}", file=sys.stderr)
  if len(wrong) == len(mine):
    raise UserError("no row can be trained, for the reasons above")
  tasks = make_tasks(args, rows, mine, wrong, scored)
  if args.check:
    print(*(shlex.join(task.command) for task in tasks.values() if not task.reason), sep="\n")
    if wrong:
      raise UserError(f"{', '.join(wrong)} cannot be trained, for the reasons above")
    return
  data = {"training": found.training, "evaluation": found.evaluation}
  prints = {name: entry and entry["fingerprint"] for name, entry in data.items()}
  told |= {"data": data, "fingerprints": {**prints, "init_from": _start_sum(base.runs[0])}}
  record.join(args.out, told, list(rows.rows))
  with _locked_rows(args.out, mine):
    worker = Worker(args.out, mine, tasks, args.parallel, args.devices, work.launch)
    worker.work()
  _tell_end(args.out, worker, mine)


def describe(
  args: argparse.Namespace,
  rows: Table,
  names: Sequence[str],
  stages: Sequence[str],
  changes: Changes,
  base: Chain,
) -> dict[str, Any]:
  """What a sweep is of, as sweep.json has it, but for its data."""

  def kept(target: str) -> dict[str, Any]:
    return {key: x for key, x in changes.get(target, {}).items() if key not in PLACES}

  others = [name for name in changes if name != ALL]
  return {
    "version": 1,
    "system": rows.system,
    "config": args.config,
    "budget": args.budget,
    "length": args.length,
    "stages": stages,
    "rows": {name: dict(rows.rows[name]) for name in names},
    "seeds": args.seeds,
    "overrides": kept(ALL),
    "stage_overrides": {name: kept(name) for name in others if name in rows.all_stages},
    "row_overrides": {name: kept(name) for name in others if name in rows.rows},
    "base": rows.base,
    "start": {"init_from": base.runs[0].values["init_from"]},
    "recipes": {run.stage: plan.recipe_sum(run) for run in base.runs},
  }


def check_runs(rows: Table, chains: Sequence[Chain], scored: Scored | None) -> checks.Found:
  """Checks all runs of chains before anything is trained; see `checks.check_all`."""
  runs = plan.all_runs(chains)
  print(f"{len(runs)} runs: checks their recipes and data", flush=True)
  jobs = {
    path: checks.Job(plan.make_config(rows, run), run.before is None) for path, run in runs.items()
  }
  return checks.check_all(rows.system, jobs, scored)


def _reasons(chains: Sequence[Chain], wrong: Mapping[str, str]) -> dict[str, str]:
  """By chain, why the first of its runs cannot be trained for which that is known."""
  reasons: dict[str, str] = {}
  for chain in chains:
    for run in chain.runs:
      if run.path in wrong:
        reasons.setdefault(chain.path, wrong[run.path])
  return reasons


def make_tasks(
  args: argparse.Namespace,
  rows: Table,
  chains: Sequence[Chain],
  wrong: Mapping[str, str],
  scored: Scored | None,
) -> dict[str, Task]:
  """What is to be done for chains, in order; what only those that are wrong need has failed.

  Args:
    args: the command's.
    rows: the table.
    chains: rows with seeds.
    wrong: by their paths, why some cannot be trained.
    scored: where the clips of the evaluation are.
  """
  tasks: dict[str, Task] = {}
  good: set[str] = set()
  for chain in chains:
    made = []
    for run in chain.runs:
      command = train_command(args, rows, run)
      made.append(Task(run.path, command, run.steps, run.before))
    if chain.evaluated and scored is not None:
      command = evaluate_command(args, rows, chain, scored.path)
      made.append(Task(f"{chain.path}/{record.EVALUATION}", command, 0, chain.runs[-1].path))
    for task in made:
      tasks.setdefault(task.path, task)
    good |= set() if chain.path in wrong else {task.path for task in made}
  for chain in chains:
    for path in [*(run.path for run in chain.runs), f"{chain.path}/{record.EVALUATION}"]:
      if chain.path in wrong and path in tasks and path not in good:
        tasks[path].state, tasks[path].reason = record.FAILED, wrong[chain.path]
  return tasks


def train_command(args: argparse.Namespace, rows: Table, run: Run) -> list[str]:
  """The command that trains a run."""
  start = plan.start_of(run, str(args.out))
  values = {**run.changes, "init_from": start} if start else run.changes
  words = ["--config", f"{rows.file}:{run.variant}", "--workdir", str(args.out / run.path)]
  return [sys.executable, "-m", f"{rows.system}_jax.train", *words, *as_flags(values)]


def evaluate_command(args: argparse.Namespace, rows: Table, chain: Chain, data: str) -> list[str]:
  """The command that scores a row."""
  checkpoint = rows.checkpoint.format(row=chain.row, run=args.out / chain.runs[-1].path)
  words = [data, "--checkpoint", checkpoint, *args.evaluate_options]
  words += ["--out", str(args.out / chain.path / record.EVALUATION)]
  return [sys.executable, "-m", f"{rows.system}_jax.evaluate", *words]


def _scored_data(args: argparse.Namespace, chains: Sequence[Chain]) -> Scored | None:
  """Where the clips of the evaluation are; None if no row gets to its last stage."""
  if not any(chain.evaluated for chain in chains):
    return None
  found = args.evaluate or chains[0].runs[-1].values["data.validation"]
  if not found:
    raise UserError(
      "there is nothing to score the rows on; give --evaluate DATA or --config.data.validation DATA"
    )
  options = cli.Parser("vsr_jax.sweep", "--evaluate-options", allow_abbrev=False)
  evaluation.add_arguments(options)  # those that both evaluations have
  return Scored(found, options.parse_known_args(args.evaluate_options)[0].split)


def _start_sum(run: Run) -> int | None:
  """A fingerprint of what a row's first run starts from; None: from scratch."""
  sources = [part.rpartition("=")[2].strip() for part in run.values["init_from"].split(",")]
  if not any(sources):
    return None
  sums = [read_meta(path).get("sums") or read_meta(path)["arrays"] for path in sources if path]
  return zlib.crc32(repr(sums).encode())


@contextlib.contextmanager
def _locked_rows(folder: pathlib.Path, chains: Sequence[Chain]):
  """Locks the folders of these rows, and of those in which their shared runs lie."""
  owned = {run.path.rpartition("/")[0] for run in plan.all_runs(chains).values()}
  with contextlib.ExitStack() as stack:
    for path in sorted(owned | {chain.path for chain in chains}):
      make_folder(folder / path)
      stack.enter_context(locked(folder / path))
    yield


def _tell_end(folder: pathlib.Path, worker: Worker, chains: Collection[Chain]) -> None:
  failed = worker.failed()
  print(f"{folder}: {len(chains) - len(failed)} of {len(chains)} rows and seeds are done")
  for path, reason in failed.items():
    print(f"  {path}: {reason}")
  if failed:
    raise UserError(
      f"{folder}: {', '.join(failed)} failed, for the reasons above; the same command tries again"
    )
  progress.tell_next("vsr_jax.report", folder, "--out", "report")


def _parse() -> tuple[argparse.Namespace, list[str]]:
  parser = cli.Parser("vsr_jax.sweep", __doc__, allow_abbrev=False)
  add = parser.add_argument
  add("--config", required=True, metavar="FILE", help="configs/fmanet/ablations.py, or keep's")
  add("--rows", default="all", metavar="NAME,...", help="of the file; default: all")
  add("--stages", default="all", metavar="NAME,...", help="of the rows' stages; default: all")
  add("--seeds", type=_seeds, default=[0], metavar="0,1,...", help="default: 0")
  add("--budget", default="paper", help="paper, demo or smoke: which recipe the rows change")
  add("--length", type=_length, default=1.0, metavar="X", help="times the recipe's; default: 1")
  add("--out", type=_folder, required=True, metavar="SWEEP", help="where everything is kept")
  add("--evaluate", metavar="DATA", help="what is scored; default: data.validation of the recipe")
  add(
    "--evaluate-options",
    type=shlex.split,
    metavar="'...'",
    help="further arguments of the evaluation, such as '--degradation train --lpips alexnet'; "
    "default: what the papers' tables need, for FMA-Net '--by-motion --reconstruction'",
  )
  add("--parallel", type=_count, default=1, metavar="N", help="processes at a time; default: 1")
  add(
    "--devices",
    type=_devices,
    default=[],
    metavar="0,1,...",
    help="accelerators of which each process gets one, in turn; default: each process sees all",
  )
  add("--part", type=_part, default=(1, 1), metavar="I/N", help="the rows of the Ith of N hosts")
  add("--check", action="store_true", help="check everything, list the commands, train nothing")
  parser.epilog = (
    "--config.KEY VALUE changes a field of all recipes, --STAGE.KEY VALUE those of a stage, and "
    "--ROW.KEY VALUE those of a row, such as --config.data.root DATA --joint.steps 2000"
  )
  return parser.parse_known_args()


def _folder(text: str) -> pathlib.Path:
  if not text or paths.in_bucket(text):
    raise argparse.ArgumentTypeError(f"{text!r}: a sweep is kept in a folder of a file system")
  if {",", "="} & {*text}:
    raise argparse.ArgumentTypeError(f"{text!r}: runs start from there, name it without , and =")
  return pathlib.Path(text)


def _length(text: str) -> float:
  try:
    length = float(text)
  except ValueError:
    length = 0.0
  if not 1e-6 <= length <= 1e3:  # NaN is neither
    raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0, such as 0.25")
  return length


def _seeds(text: str) -> list[int]:
  words = [word.strip() for word in text.split(",")]
  if not all(re.fullmatch(r"\d{1,10}", word, re.ASCII) for word in words):
    raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers, such as 0,1,2")
  seeds = sorted({int(word) for word in words})
  if seeds[-1] > LARGEST_SEED or len(seeds) > MOST_SEEDS:
    raise argparse.ArgumentTypeError(
      f"{text!r}: at most {MOST_SEEDS} seeds, none above {LARGEST_SEED}"
    )
  return seeds


def _count(text: str) -> int:
  if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or not 1 <= int(text) <= MOST_PROCESSES:
    raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1 to {MOST_PROCESSES}")
  return int(text)


def _devices(text: str) -> list[str]:
  words = [word.strip() for word in text.split(",")]
  if not all(re.fullmatch(r"\d{1,4}", word, re.ASCII) for word in words):
    raise argparse.ArgumentTypeError(f"{text!r}: give numbers of accelerators, such as 0,1")
  return words


def _part(text: str) -> tuple[int, int]:
  found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text, re.ASCII)
  if not found or not 1 <= int(found[1]) <= int(found[2]):
    raise argparse.ArgumentTypeError(f"{text!r}: give a host's number and how many, such as 1/4")
  return int(found[1]), int(found[2])


if __name__ == "__main__":
  cli.run(main)
