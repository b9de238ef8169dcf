"""What a sweep has to train: which runs there are, who shares them, and which host does what."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vsr_jax.errors import UserError
from vsr_jax.sweeps.table import ALL, Changes, Table
from vsr_jax.train.recipe import flat, lengthened

# Where things lie, and how they are read: no part of what is trained.
PLACES = ("data.root", "data.validation", "data.workers", "init_from")
_NAMED = re.compile(r"\w+(\+\w+)*=.+")  # NETWORK+NETWORK=PATH in init_from


class Run(NamedTuple):
  """A run of a trainer.

  Attributes:
    path: ROW/SEED/STAGE, its folder in the sweep's: of the first row of the table that has it.
    variant: ROW,STAGE,BUDGET, with which the table makes its recipe.
    changes: what else is set, by field.
    values: the whole recipe by field; `init_from` is what was asked for.
    before: the path of the run that it starts from; None: where `init_from` says.
  """

  path: str
  variant: str
  changes: Mapping[str, Any]
  values: Mapping[str, Any]
  before: str | None

  @property
  def stage(self) -> str:
    """Its stage."""
    return self.values["stage"]

  @property
  def steps(self) -> int:
    """Its steps."""
    return self.values["steps"]


class Chain(NamedTuple):
  """A row with a seed.

  Attributes:
    row: its name.
    seed: of all its runs.
    runs: one a stage, each from the one before; other chains may have the same.
    evaluated: whether the last one is of the row's last stage, and is scored.
  """

  row: str
  seed: int
  runs: tuple[Run, ...]
  evaluated: bool

  @property
  def path(self) -> str:
    """Its folder in the sweep's."""
    return f"{self.row}/{self.seed}"


def make_chains(
  table: Table,
  budget: str,
  rows: Collection[str],
  stages: Collection[str],
  seeds: Sequence[int],
  changes: Changes,
  length: float = 1.0,
) -> list[Chain]:
  """The chains of the rows asked for, seed by seed in the order of the table.

  Every recipe is `length` times as long as it says, where `changes` do not say how long.

  Runs are the same where everything is equal that their stage sees: the recipe but for what
  `Table.unseen` names, and the run before. Which row's folder holds one does not depend on the rows
  asked for, so that it is found again when rows are added.

  Raises:
    UserError: a row has none of the stages or lacks one between them, or a value cannot be set.
  """
  first: dict[Any, Run] = {}
  chains = []
  make = functools.cache(functools.partial(_make_values, table, budget, changes, length))
  for seed in seeds:
    for row in table.rows:
      own = [stage for stage in table.stages(row) if stage in stages]
      if row in rows:
        _check_stages(table, row, own, stages)
      before: str | None = None
      runs: list[Run] = []
      for stage in own:
        values, asked = make(row, stage)
        _check_start(table, row, stage, before, values["init_from"])
        change = {"seed": seed}
        variant = f"{row},{stage},{budget}"
        made = Run(f"{row}/{seed}/{stage}", variant, asked | change, values | change, before)
        run = first.setdefault((_seen(made.values, table.unseen.get(stage, ())), before), made)
        runs.append(run)
        before = run.path
      if row in rows:
        chains.append(Chain(row, seed, tuple(runs), own[-1] == table.stages(row)[-1]))
  return chains


def _check_stages(table: Table, row: str, own: list[str], asked: Collection[str]) -> None:
  every = list(table.stages(row))
  told = f"--stages {','.join(asked)}: row {row!r} goes through {', '.join(every)}"
  if not own:
    raise UserError(f"{told}; add one of them, or leave the row out")
  start = every.index(own[0])
  if own != every[start : start + len(own)]:
    raise UserError(f"{told}; leave none out between two")


def _make_values(
  table: Table, budget: str, changes: Changes, length: float, row: str, stage: str
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The recipe of a row's stage by field; and what of it the command line sets."""
  config = table.make(f"{row},{stage},{budget}")
  asked = {**changes.get(ALL, {}), **changes.get(stage, {})}
  asked = {key: x for key, x in asked.items() if key not in table.rows[row]}
  asked |= changes.get(row, {})
  if length != 1:
    recipe = flat(config)
    followed = lengthened(recipe, length).items()
    asked = {key: x for key, x in followed if x != recipe[key]} | asked
  return flat(with_changes(config, asked)), asked


def with_changes(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
  """The recipe itself, with changed fields.

  Raises:
    UserError: a value is of another type than the recipe's.
  """
  try:
    config.update_from_flattened_dict(changes)
  except (TypeError, ValueError) as e:
    raise UserError(f"{' '.join(str(e).split())}; give another value") from e
  return config


def make_config(table: Table, run: Run) -> ConfigDict:
  """The recipe of a run, as its trainer gets it but for `init_from`."""
  return with_changes(table.make(run.variant), run.changes)


def _check_start(table: Table, row: str, stage: str, before: str | None, start: str) -> None:
  earlier = table.stages(row)[: table.stages(row).index(stage)]
  if earlier and before is None and not start:
    raise UserError(
      f"stage {stage!r} starts from a run of {earlier[-1]!r}; add that to --stages, or give one "
      "with --config.init_from RUN"
    )


def _seen(values: Mapping[str, Any], unseen: Collection[str]) -> tuple[tuple[str, Any], ...]:
  return tuple((key, x) for key, x in values.items() if key not in unseen)


def recipe_sum(run: Run) -> int:
  """A checksum of what a run trains, whatever places its data have and whatever its seed is."""
  values = {key: x for key, x in run.values.items() if key not in (*PLACES, "seed")}
  return zlib.crc32(repr(sorted(values.items())).encode())


def start_of(run: Run, folder: str) -> str:
  """What a run's `init_from` has to be, in a sweep's folder.

  A run that starts from the one before gets the parts NETWORK=PATH of what was asked for, too, such
  as the weights of a flow network, which that one may lack.
  """
  if run.before is None:
    return run.values["init_from"]
  parts = [part.strip() for part in run.values["init_from"].split(",")]
  return ",".join([*filter(_NAMED.fullmatch, parts), f"{folder}/{run.before}"])


def all_runs(chains: Sequence[Chain]) -> dict[str, Run]:
  """The runs of chains by path, each once, in the order in which they can be trained."""
  return {run.path: run for chain in chains for run in chain.runs}


def take_part(chains: Sequence[Chain], part: int, parts: int) -> list[Chain]:
  """The chains of one of several hosts.

  Those that share a run stay together, so that no host waits for another. The groups go, the one
  with most steps first, to the host that has the fewest.

  Args:
    chains: all.
    part: the host's number, from 1.
    parts: how many there are.
  """
  groups: list[list[Chain]] = []
  for chain in chains:
    paths = {run.path for run in chain.runs}
    related = [group for group in groups if paths & all_runs(group).keys()]
    groups = [group for group in groups if group not in related]
    groups.append([*(other for group in related for other in group), chain])
  costs = [sum(run.steps for run in all_runs(group).values()) for group in groups]
  loads, mine = [0] * parts, set()
  for i in sorted(range(len(groups)), key=lambda i: (-costs[i], groups[i][0].path)):
    host = loads.index(min(loads))
    loads[host] += costs[i]
    if host == part - 1:
      mine |= {chain.path for chain in groups[i]}
  return [chain for chain in chains if chain.path in mine]
