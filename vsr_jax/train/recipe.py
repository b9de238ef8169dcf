"""Checks of a config before data are read, and messages for flags that cannot be parsed."""

from __future__ import annotations

import difflib
import functools
import math
import operator
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

import vsr_jax
from vsr_jax.errors import UserError
from vsr_jax.memory import free_memory
from vsr_jax.train.profile import parse_window

DTYPES = ("float32", "bfloat16")
LARGEST_SEED = 2**32 - 1  # the data order's shuffle takes no larger one
LARGEST_STEP = 2**31 - 1  # steps are counted in int32
MOST_WORKERS = 512  # processes a host

PACKAGED = pathlib.Path(vsr_jax.__file__).parent  # its configs are those of a checkout

_FLAG = re.compile(r"--?(?:no)?config\.([^=]+)")


class Condition(NamedTuple):
  """A condition on a value: in words, for the error, and as a predicate that is False for NaN."""

  words: str
  holds: Callable[[Any], bool]


def at_least(low: int) -> Condition:
  """Finite numbers from `low`."""
  return Condition(f"at least {low}", lambda x: low <= x < math.inf)


def between(low: float, high: float) -> Condition:
  """Numbers from `low` to `high`."""
  return Condition(f"{low} to {high}", lambda x: low <= x <= high)


def one_of(choices: Sequence[str]) -> Condition:
  """One of some strings."""
  return Condition(
    f"one of {', '.join(choices)}", functools.partial(operator.contains, tuple(choices))
  )


POSITIVE = Condition("above 0 and finite", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Condition("at least 0 and finite", lambda x: 0 <= x < math.inf)
STEPS = Condition(
  "whole numbers of steps, at least 0, such as (2000,3000)",
  lambda x: isinstance(x, Iterable) and all(type(n) is int and n >= 0 for n in x),
)


def _is_window(x: Any) -> bool:
  try:
    return bool(parse_window(x))
  except (TypeError, ValueError):
    return False


# By key of the flattened config, for the fields that all recipes have. A value of None, "not used",
# passes every condition.
COMMON = {
  "seed": between(0, LARGEST_SEED),
  "dtype": one_of(DTYPES),
  "steps": Condition(f"at least 1 and at most {LARGEST_STEP}", lambda x: 1 <= x <= LARGEST_STEP),
  "data.batch": at_least(1),
  "data.workers": between(0, MOST_WORKERS),
  "train.accumulate": at_least(1),
  "train.clip_norm": POSITIVE,
  "train.ema_decay": Condition("at least 0 and below 1", lambda x: 0 <= x < 1),
  "train.fsdp_min_size": at_least(1),
  "train.log_every": at_least(1),
  "train.image_every": at_least(0),
  "train.checkpoint_every": at_least(0),
  "train.keep": at_least(1),
  "train.evaluate_every": at_least(0),
  "train.profile": Condition("START:STEPS, such as 1000:5", _is_window),
}
RATE = {  # the fields of a learning rate
  "lr": NOT_NEGATIVE,
  "end": NOT_NEGATIVE,
  "boundaries": STEPS,
  "factor": POSITIVE,
  "start": at_least(0),
  "speed": NOT_NEGATIVE,
}


def check(config: ConfigDict, conditions: Mapping[str, Condition]) -> None:
  """Checks values of a config; those of `loss` and `optim` and those in `COMMON` in any case.

  Args:
    config: a recipe.
    conditions: for further fields, by key of the flattened config.

  Raises:
    UserError: its line names each wrong value and what it must be.
  """
  values = flat(config)
  conditions = {**COMMON, **conditions}
  for key in values:
    group, _, name = key.rpartition(".")
    if group.startswith("optim."):
      conditions[key] = RATE[name]
    elif group == "loss" and key not in conditions:
      conditions[key] = NOT_NEGATIVE
  wrong = [
    f"{key} = {_short_repr(values[key])}: must be {condition.words}"
    for key, condition in conditions.items()
    if values[key] is not None and not condition.holds(values[key])
  ]
  if wrong:
    raise UserError("; ".join(wrong))
  if config.train.profile is not None:
    last = parse_window(config.train.profile).last
    if last > config.steps:
      raise UserError(
        f"train.profile = {config.train.profile!r}: ends with step {last}, after the run's "
        f"{config.steps} steps; choose an earlier window"
      )


def _short_repr(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."


def check_batch(
  config: ConfigDict, sample_bytes: int, remedy: str, devices: int | None = None
) -> None:
  """Checks that a batch divides among the devices, and that its images fit into memory.

  Args:
    config: a recipe.
    sample_bytes: what a sample's arrays take.
    remedy: the field to lower beside data.batch, for the error.
    devices: how many there would be, where the step is only compiled; then images need no memory.

  Raises:
    UserError: it does not.
  """
  batch, accumulate = config.data.batch, config.train.accumulate
  count = jax.device_count() if devices is None else devices
  if batch % (parts := count * accumulate):
    raise UserError(
      f"data.batch = {batch}: must be a multiple of {parts}, the {count} devices times "
      f"train.accumulate = {accumulate}"
    )
  if devices is not None:
    return
  device = jax.local_devices()[0]
  share = batch // (jax.process_count() if device.platform == "cpu" else jax.device_count())
  size, free = share * sample_bytes, free_memory(device)
  if size > free:
    raise UserError(
      f"data.batch = {batch}: its frames alone take {size / 1e9:.1f} GB of the {free / 1e9:.1f} GB "
      f"of memory that are free; lower it, or {remedy}"
    )


def fit_options(config: ConfigDict) -> dict[str, Any]:
  """The options of `loop.fit` that stand in every recipe, by their names."""
  names = ["accumulate", "ema_decay", "clip_norm", "fsdp_min_size", "keep"]
  names += ["log_every", "image_every", "checkpoint_every", "evaluate_every"]
  window = config.train.profile
  options = {"profile": None if window is None else parse_window(window), "dtype": config.dtype}
  options |= {"steps": config.steps, "seed": config.seed}
  return options | {x: config.train[x] for x in names}


def flat(config: Mapping[str, Any], group: str = "") -> dict[str, Any]:
  """Nested fields as "a.b" -> value."""
  found = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      found |= flat(value, f"{group}{key}.")
    else:
      found[f"{group}{key}"] = value
  return found


def changes(config: ConfigDict, usual: ConfigDict) -> dict[str, Any]:
  """The fields of a recipe that differ from another one's, "a.b" -> value."""
  before = flat(usual)
  return {key: value for key, value in flat(config).items() if value != before[key]}


def lengthened(values: Mapping[str, Any], part: float) -> dict[str, Any]:
  """The fields of a recipe that follow its length, for one that is `part` times as long.

  The moving average is to forget where a short run began: it spans a quarter of it, at most.
  """
  steps = max(1, round(part * values["steps"]))
  found: dict[str, Any] = {"steps": steps}
  for key, value in values.items():
    if key.endswith(".boundaries"):
      found[key] = tuple(max(1, round(part * step)) for step in value)
    elif key == "discriminator.start":
      found[key] = round(part * value)
    elif key == "train.ema_decay" and value is not None:
      found[key] = min(value, 1 - 4 / max(steps, 8))
  return found


def as_flags(values: Mapping[str, Any]) -> list[str]:
  """Values by field as a trainer's arguments."""
  return [f"--config.{key}={value}" for key, value in values.items()]


def find_packaged(arguments: Sequence[str]) -> list[str]:
  """A command's arguments, a recipe configs/... led to the installed one if there is none here."""

  def found(name: str, value: str) -> str:
    path = value.partition(":")[0]
    is_ours = name.lstrip("-") == "config" and path.startswith("configs/")
    return str(PACKAGED / value) if is_ours and not os.path.exists(path) else value

  led = list(arguments)
  for i, argument in enumerate(led):
    name, equals, value = argument.partition("=")
    if equals:
      led[i] = f"{name}={found(name, value)}"
    elif i + 1 < len(led):
      led[i + 1] = found(name, led[i + 1])
  return led


def explain(error: Exception, arguments: Sequence[str], known: ConfigDict, fields_file: str) -> str:
  """One line that says what is wrong with a command line that could not be parsed.

  Args:
    error: what parsing it raised.
    arguments: the command's.
    known: the default config, which has all fields.
    fields_file: the file that explains them.
  """
  wrong = [*_wrong_file(error, arguments), *_unknown_fields(arguments, known)]
  return "; ".join(wrong) or f"{_reason(error)}; see the fields in {fields_file}"


def _wrong_file(error: Exception, arguments: Sequence[str]) -> Iterator[str]:
  for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
    name, _, value = argument.partition("=")
    if name.lstrip("-") != "config":
      continue
    path, _, variant = (value or following).partition(":")
    if not os.path.isfile(path) or not path.endswith(".py"):
      yield f"--config {path!r}: no such file of a recipe; give one like configs/fmanet/joint.py"
    elif "has no attribute 'get_config'" in str(error):
      yield f"--config {path}: is no recipe, which has a function get_config"
    elif variant and "get_config() takes 0 positional" in str(error):
      yield f"--config {path}: has no variants; leave :{variant} out"


def _unknown_fields(arguments: Sequence[str], known: ConfigDict) -> Iterator[str]:
  fields = {field: field.rpartition(".")[2] for field in flat(known)}
  groups = {field.rpartition(".")[0] for field in fields} | {"optim"}
  for argument in arguments:
    found = _FLAG.match(argument)
    if not found or found[1] in fields or found[1] in groups:
      continue
    key = found[1]
    # The nearest keys, and the same or nearly the same name in another group.
    names = difflib.get_close_matches(key.rpartition(".")[2], sorted(set(fields.values())))
    near = difflib.get_close_matches(key, fields) + [f for f in fields if fields[f] in names]
    near = near or difflib.get_close_matches(key, fields, cutoff=0)
    listed = ", ".join(list(dict.fromkeys(near))[:4])
    yield f"--config.{key}: a recipe has no such field; the nearest are {listed}"


def _reason(error: Exception) -> str:
  """An error's text, without the traceback that config_flags puts before what a recipe raised."""
  text = str(error.args[0] if isinstance(error, KeyError) else error)  # str() would quote it
  lines = text.splitlines()
  if "Traceback" in text:
    lines = lines[1 + max(i for i, line in enumerate(lines) if line.startswith("  ")) :]
  return " ".join(lines) or type(error).__name__
