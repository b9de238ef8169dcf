"""The command line of a trainer: a recipe with changed fields, and a run's folder."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict, config_flags

from vsr_jax import completion, console, errors, runtime
from vsr_jax.topology import EXAMPLES
from vsr_jax.train import compile_only, hosts, recipe

_CONFIG = config_flags.DEFINE_config_file("config", help_string="The recipe's file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; a run in it is resumed.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several hosts, as on a pod.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several hosts.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "This process's number.", lower_bound=0)
_COMPILE_ONLY = flags.DEFINE_bool("compile_only", False, "Compile the step; train nothing.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "The chips to compile for, such as v5e:4x4.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batches that fit the chips.")

_HELP = """\
usage: {prog} --config FILE[:VARIANT] --workdir DIR [--config.KEY=VALUE ...]
       {indent} [--[no]multihost [--coordinator HOST:PORT --processes N --process I]]
       {indent} [--compile_only --topology CHIPS [--search]]

{description}

options:
  --config FILE[:VARIANT]  the recipe, such as {example}
  --workdir DIR            the run's folder; a run in it is resumed
  --[no]multihost          one of several hosts, as on a pod
  --coordinator, --processes, --process
                           HOST:PORT of the first process, their number, and this one's from 0;
                           TPU pods and SLURM tell them
  --compile_only           trains nothing: compiles the step for chips that need not be there, and
                           writes DIR/compile.json; the exit code is 3 where it does not fit them
  --topology CHIPS         these chips, such as {topologies}
  --search                 the largest batch that fits them, without and with train.remat
  --config.KEY=VALUE       changes a field of the recipe

The fields, which {fields} explains, and what they are unless a recipe says otherwise:
"""


def run(
  name: str,
  description: str,
  example: str,
  defaults: Callable[[], ConfigDict],
  train: Callable[[ConfigDict, str], None],
  make_plan: compile_only.MakePlan,
) -> None:
  """Reads the flags and trains.

  Args:
    name: the command's module.
    description: what it does, a sentence.
    example: a recipe of its, such as "configs/fmanet/demo.py:joint"; base.py beside it explains the
      fields.
    defaults: makes a recipe with all fields.
    train: gets the recipe and the run's folder.
    make_plan: what `train` would compile.

  Raises:
    UserError: the flags or the recipe are wrong.
    SystemExit: code 3, the step was compiled and does not fit.
  """
  fields_file = str(pathlib.PurePosixPath(example).with_name("base.py"))
  if completion.is_asked():
    completion.answer(_options(defaults()))
  if {"-h", "--help"} & set(sys.argv[1:]):
    prog = " ".join(console.words(name))
    text = {"prog": prog, "indent": " " * len(prog), "fields": fields_file}
    text["topologies"] = EXAMPLES
    fields = recipe.flat(defaults())
    lines = (f"  --config.{key}={value}" for key, value in fields.items())
    print(_HELP.format(**text, description=description, example=example), *lines, sep="\n")
    return
  config = _read_flags(defaults(), fields_file)
  if config is None or _WORKDIR.value is None:
    raise errors.UserError("give --config FILE and --workdir DIR; --help tells the rest")
  if _COMPILE_ONLY.value:
    if _TOPOLOGY.value is None:
      raise errors.UserError(f"--compile_only: give --topology, such as {EXAMPLES}")
    fits = compile_only.run(config, _WORKDIR.value, _TOPOLOGY.value, make_plan, _SEARCH.value)
    sys.exit(0 if fits else compile_only.DOES_NOT_FIT)
  if _TOPOLOGY.value or _SEARCH.value:
    raise errors.UserError("--topology and --search only compile: add --compile_only")
  cluster = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  if any(value is not None for value in cluster) and not _MULTIHOST.value:
    raise errors.UserError("--coordinator, --processes and --process are for --multihost; add it")
  if _MULTIHOST.value:
    hosts.join(*cluster)
  runtime.keep_freed_memory()
  runtime.enable_compilation_cache()  # a resumed run does not compile its step again
  with hosts.watched():
    train(config, _WORKDIR.value)


def _options(known: ConfigDict) -> argparse.ArgumentParser:
  """What absl would parse, as argparse describes it: a shell's completion knows that only."""
  parser = argparse.ArgumentParser()
  for name in ("config", "workdir", "coordinator", "processes", "process", "topology"):
    parser.add_argument(f"--{name}")
  for name in ("multihost", "compile_only", "search"):
    parser.add_argument(f"--{name}", action="store_true")
  for name in recipe.flat(known):
    parser.add_argument(f"--config.{name}")
  return parser


def _read_flags(known: ConfigDict, fields_file: str) -> ConfigDict | None:
  """Parses the command line; the recipe with its changes, or None if there is no --config."""
  try:
    _, *rest = flags.FLAGS(recipe.find_packaged(sys.argv))
    config = _CONFIG.value
    if config is not None:
      str(config.stage)  # a file that cannot be read is told only when its fields are
  except Exception as e:  # a recipe is a program, and may fail in any way
    raise errors.UserError(recipe.explain(e, sys.argv[1:], known, fields_file)) from None
  if rest:
    raise errors.UserError(
      f"{rest[0]!r} belongs to no option; a truth value is set as --config.train.remat=True"
    )
  return config
