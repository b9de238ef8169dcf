"""A table of ablations, which is a file of configs/, and the changes that a command line makes."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vsr_jax.errors import UserError
from vsr_jax.train.recipe import find_packaged, flat

ALL = "config"  # in --config.KEY: of every stage of every row
_NEEDS = (
  *("SYSTEM", "OVERRIDES", "BUDGETS", "UNSEEN", "CHECKPOINT", "EVALUATION"),
  *("stages", "get_config"),
)
_CHANGE = re.compile(r"--(\w+)\.([\w.]+)(?:=(.*))?", re.DOTALL)


class Table(NamedTuple):
  """The rows of a file such as configs/fmanet/ablations.py.

  Attributes:
    file: its path, as trainers take it.
    system: "fmanet" or "keep": whose trainer and evaluation are run.
    rows: by name the fields that a row changes, "model.flows" say; the first one is the base.
    budgets: the recipes that the rows can change.
    unseen: by stage the fields that its training does not depend on.
    checkpoint: how the evaluation takes a checkpoint, with {row} and {run} in it.
    evaluation: options of the evaluation, unless others are asked for.
    stages: the stages of a row, each from the one before.
    make: the recipe of "ROW,STAGE,BUDGET".
  """

  file: str
  system: str
  rows: Mapping[str, Mapping[str, Any]]
  budgets: Sequence[str]
  unseen: Mapping[str, Sequence[str]]
  checkpoint: str
  evaluation: Sequence[str]
  stages: Callable[[str], tuple[str, ...]]
  make: Callable[[str], ConfigDict]

  @property
  def base(self) -> str:
    """The row that the others are compared with."""
    return next(iter(self.rows))

  @property
  def all_stages(self) -> list[str]:
    """Every stage that a row has."""
    return list(dict.fromkeys(stage for row in self.rows for stage in self.stages(row)))


Changes = Mapping[str, Mapping[str, Any]]
"""Values by field, by what they are of: `ALL`, a stage or a row."""


def load(file: str) -> Table:
  """Reads a table; configs/... is the installed one's where there is none here.

  Raises:
    UserError: the file is missing, cannot be run or is no table of ablations.
  """
  _, path = find_packaged(["--config", file])
  if not os.path.isfile(path) or not path.endswith(".py"):
    raise UserError(f"--config {file}: no such table; give one like configs/fmanet/ablations.py")
  spec = importlib.util.spec_from_file_location("vsr_jax_sweep_table", path)
  assert spec is not None  # of a file that ends with .py
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as e:  # a table is a program, and may fail in any way
    reason = " ".join(str(e).split()) or type(e).__name__
    raise UserError(f"--config {file}: cannot be read: {reason}; mend it") from e
  if missing := [name for name in _NEEDS if not hasattr(module, name)]:
    raise UserError(
      f"--config {file}: is no table of ablations, it has no {missing[0]}; give one like "
      "configs/fmanet/ablations.py"
    )
  return Table(
    path,
    module.SYSTEM,
    module.OVERRIDES,
    module.BUDGETS,
    module.UNSEEN,
    module.CHECKPOINT,
    module.EVALUATION,
    module.stages,
    module.get_config,
  )


def choose(what: str, asked: str, known: Sequence[str]) -> list[str]:
  """The names of a list A,B or "all", in the order of the known ones.

  Raises:
    UserError: a name is not known.
  """
  names = list(known) if asked == "all" else [name.strip() for name in asked.split(",")]
  for name in names:
    if name not in known:
      near = difflib.get_close_matches(name, known)
      told = f", {near[0]} perhaps" if near else ""
      raise UserError(f"{what} {name!r}: there is none; name some of {', '.join(known)}{told}")
  return [name for name in known if name in names]


def parse_changes(arguments: Sequence[str], table: Table, budget: str) -> Changes:
  """Reads --config.KEY VALUE, --STAGE.KEY=VALUE and --ROW.KEY VALUE.

  Args:
    arguments: what is left of the command line.
    table: whose rows and stages are changed.
    budget: of which recipe.

  Raises:
    UserError: an argument is something else, or there is no such field, or it is of another type.
  """
  known = (ALL, *table.all_stages, *table.rows)
  recipe = table.make(f"{table.base},{table.stages(table.base)[0]},{budget}")
  changes: dict[str, dict[str, Any]] = {}
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    found = _CHANGE.fullmatch(argument)
    if not found:
      raise UserError(f"{argument!r} belongs to no option; --help tells what is possible")
    target, key, value = found.groups()
    if target not in known:
      raise UserError(f"{argument}: must begin with one of {', '.join(f'--{x}.' for x in known)}")
    if value is None:
      if not rest:
        raise UserError(f"{argument}: give a value after it")
      value = rest.pop(0)
    if key in ("seed", "stage"):
      option = {"seed": "--seeds", "stage": "--stages"}[key]
      raise UserError(f"--{target}.{key}: the sweep sets it; give {option}")
    changes.setdefault(target, {})[key] = _value(f"--{target}.{key}", key, value, recipe)
  return changes


def _value(option: str, key: str, text: str, recipe: ConfigDict) -> Any:
  fields = flat(recipe)
  if key not in fields:
    near = difflib.get_close_matches(key, fields, cutoff=0)[:3]
    raise UserError(f"{option}: a recipe has no such field; the nearest are {', '.join(near)}")
  changed = recipe.copy_and_resolve_references()
  written = {"true": "True", "false": "False"}.get(text, text)
  try:
    value = text if isinstance(fields[key], str) else ast.literal_eval(written)
  except (ValueError, SyntaxError):
    value = text
  try:
    changed.update_from_flattened_dict({key: value})
  except (TypeError, ValueError) as e:
    raise UserError(f"{option} {text!r}: must be like {fields[key]!r}") from e
  return flat(changed)[key]
