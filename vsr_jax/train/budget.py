"""How long each stage of a recipe is trained: from minutes and a measured step.

The plan is a file, so that an interrupted run goes on with the schedule that it began with, and a
variant is trained for as long.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from ml_collections import ConfigDict

from vsr_jax import json_files
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.json_files import fields, integer, mapping, number, text
from vsr_jax.train.recipe import flat, lengthened
from vsr_jax.train.summaries import ROW

TIMED_STEPS = 12  # of which the first two are not timed
LEAST_STEPS = 20  # of a stage, however few the minutes are
ACCELERATED = 8  # times the recipe's batch on an accelerator, by device
EVALUATIONS = 4  # while a stage is trained
CHECKPOINT_SECONDS = 300.0

_NAME = "plan.json"
_STAGE = fields(
  {
    "steps": integer(1),
    "batch": integer(1),
    "workers": integer(0),
    "seconds_a_step": number(0),
    "compiled_seconds": number(0),
  }
)
_PLAN = fields({"minutes": number(0), "seed": integer(), "stages": mapping(text, _STAGE)})


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """How a stage is trained.

  Attributes:
    steps: of its schedule.
    batch: images or clips a step.
    workers: processes that read them.
    seconds_a_step: as measured.
    compiled_seconds: what the measurement took beside its steps: compiling above all.
  """

  steps: int
  batch: int
  workers: int
  seconds_a_step: float
  compiled_seconds: float


@dataclasses.dataclass
class Plan:
  """The plan of a folder.

  Attributes:
    minutes: for all stages together.
    seed: of each.
    stages: those that have been timed.
  """

  minutes: float
  seed: int
  stages: dict[str, StagePlan] = dataclasses.field(default_factory=dict)


def load(folder: pathlib.Path, minutes: float, seed: int) -> Plan:
  """Reads the plan of a folder, or begins one.

  Raises:
    UserError: it is damaged, or of other minutes or another seed.
  """
  path = folder / _NAME
  try:
    found = json_files.load(path, _PLAN, remedy="take another folder")
  except FileNotFoundError:
    return Plan(minutes, seed)
  if (found["minutes"], found["seed"]) != (minutes, seed):
    raise UserError(
      f"{path}: is of {found['minutes']:g} minutes with seed {found['seed']}; give those to go on "
      "with it, or take another folder"
    )
  stages = {name: StagePlan(**entry) for name, entry in found["stages"].items()}
  return Plan(found["minutes"], found["seed"], stages)


def save(folder: pathlib.Path, plan: Plan) -> None:
  """Writes the plan into its folder."""
  write_whole(folder / _NAME, json.dumps(dataclasses.asdict(plan), indent=1) + "\n")


def count_steps(seconds: float, a_step: float, compiled: float) -> int:
  """The steps of a stage for which there is time.

  Args:
    seconds: of the stage, its timing included.
    a_step: as measured in `TIMED_STEPS` steps.
    compiled: what the timing took beside them. The stage compiles its step anew, which takes less,
      and evaluates more often.
  """
  left = seconds - TIMED_STEPS * a_step - 2.5 * compiled
  return max(LEAST_STEPS, int(left / a_step))


def read_timing(run: pathlib.Path, seconds: float) -> tuple[float, float]:
  """What a short run tells: seconds a step, and what it took beside its steps.

  Args:
    run: its folder, with a row of the log for every step.
    seconds: that it took as a whole.
  """
  ends: dict[int, float] = {}
  for _, row in json_files.load_lines(run / "log.jsonl", ROW, remedy="run again"):
    ends.setdefault(row["step"], row["seconds"])
  steps = sorted(ends)
  first = steps[min(1, len(steps) - 2)]
  a_step = (ends[steps[-1]] - ends[first]) / (steps[-1] - first)
  return max(a_step, 1e-4), max(seconds - len(steps) * a_step, 0.0)


def apply(config: ConfigDict, stage: StagePlan) -> None:
  """Sets a recipe's length, and what depends on it, as the recipe has them for its own length."""
  config.update_from_flattened_dict(lengthened(flat(config), stage.steps / config.steps))
  config.data.batch, config.data.workers = stage.batch, stage.workers
  config.train.log_every = max(1, stage.steps // 100)
  config.train.image_every = max(1, stage.steps // EVALUATIONS)
  config.train.evaluate_every = max(1, stage.steps // EVALUATIONS)
  seconds = max(stage.seconds_a_step, 1e-4)
  config.train.checkpoint_every = min(stage.steps, max(1, round(CHECKPOINT_SECONDS / seconds)))


def for_timing(config: ConfigDict) -> None:
  """Sets a recipe to a few steps with everything in use that costs time."""
  config.steps = TIMED_STEPS
  if "discriminator" in config:
    config.discriminator.start = 0
  config.train.log_every = 1
  for name in ("image_every", "evaluate_every", "checkpoint_every"):
    config.train[name] = TIMED_STEPS
