"""Checks of a sweep before anything is trained, by the systems' own checks, in another process."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import zlib
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import jax
from ml_collections import ConfigDict

from vsr_jax.errors import UserError
from vsr_jax.processes import start_worker


class NamedClip(Protocol):
  """What is told of a clip of the data."""

  @property
  def name(self) -> str: ...

  @property
  def length(self) -> int: ...

  @property
  def sizes(self) -> Mapping[str, tuple[int, int]]: ...


Check = Callable[[ConfigDict, bool], tuple[Sequence[NamedClip], Sequence[NamedClip]]]
"""Checks a recipe, its data and, if told so, what it starts from.

Gives the clips of training and those of the evaluation. A trainer's `make_check(scored)` makes
it, given where the latter are or None, and opens every set once.
"""


class Scored(NamedTuple):
  """Where the clips of the evaluation are.

  Attributes:
    path: of their set.
    split: of a release or a built set.
  """

  path: str
  split: str = "test"


class Job(NamedTuple):
  """A run to be checked.

  Attributes:
    config: its recipe.
    starts: whether it starts from what `init_from` says, which is then checked, too.
  """

  config: ConfigDict
  starts: bool


class Found(NamedTuple):
  """What the checks have found.

  Attributes:
    wrong: by the job's name, why it cannot be trained.
    training: what the clips of training are, in JSON values; None if no job has any.
    evaluation: those of the evaluation.
  """

  wrong: dict[str, str]
  training: dict[str, Any] | None
  evaluation: dict[str, Any] | None


def check_all(system: str, jobs: Mapping[str, Job], scored: Scored | None) -> Found:
  """Checks runs in a process that holds no accelerator and ends with it.

  Args:
    system: "fmanet" or "keep".
    jobs: the runs by name.
    scored: where the clips of the evaluation are; None: there is none.

  Raises:
    UserError: the process ended by itself.
  """
  context = multiprocessing.get_context("spawn")
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(target=_send, args=(sender, system, dict(jobs), scored))
  process.start()
  sender.close()
  try:
    return receiver.recv()
  except EOFError:
    process.join()
    raise UserError(
      f"the checks of recipes and data ended with code {process.exitcode}, for want of memory "
      "perhaps; what they say is above"
    ) from None
  finally:
    process.kill()
    process.join()


def _send(sender: Connection, system: str, jobs: Mapping[str, Job], scored: Scored | None) -> None:
  start_worker()
  jax.config.update("jax_platforms", "cpu")
  sender.send(check_here(system, jobs, scored))


def check_here(system: str, jobs: Mapping[str, Job], scored: Scored | None) -> Found:
  """Checks runs in this process; see `check_all`."""
  check: Check = importlib.import_module(f"{system}_jax.train").make_check(scored)
  wrong: dict[str, str] = {}
  told: list[dict[str, Any]] = []
  for name, job in jobs.items():
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # it would tell what starts from where
        training, evaluation = check(job.config, job.starts)
    except UserError as e:
      wrong[name] = str(e)
      continue
    if not told:
      told.append(describe(job.config.data.root, training))
      told += [describe(scored.path, evaluation)] if scored else []
  return Found(wrong, *[*told, None, None][:2])


def describe(path: str, clips: Sequence[NamedClip]) -> dict[str, Any]:
  """What clips are: how many, and a fingerprint of their names, lengths and sizes."""
  told = sorted([clip.name, clip.length, sorted(clip.sizes.items())] for clip in clips)
  return {
    "path": path,
    "clips": len(clips),
    "frames": sum(clip.length for clip in clips),
    "fingerprint": zlib.crc32(json.dumps(told).encode()),
  }
