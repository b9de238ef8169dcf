"""What commands that evaluate share: their arguments, the loop over clips, the end."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import tqdm

from vsr_jax import paths, progress, score_table
from vsr_jax.errors import UserError
from vsr_jax.metrics import Score
from vsr_jax.score_table import ScoreTable

BICUBIC = "bicubic"  # the row to beat

Advance = Callable[[int], object]


class Job(NamedTuple):
  """A clip to be scored.

  Attributes:
    name: the clip's.
    frames: how many of its frames are scored.
    score: scores them and returns the scores by method; it is given a function to be told how many
      more are done, and raises `UserError` where the clip cannot be scored.
  """

  name: str
  frames: int
  score: Callable[[Advance], Mapping[str, Score]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments for which clips are scored, of which outputs, and where that is written."""
  add = parser.add_argument
  add("--split", default="test", help="of a release or a built set; default: test")
  add("--clips", metavar="A,B", help="names of the clips to score; default: all")
  add("--frames", type=int, metavar="N", help="only the first N of every clip")
  add(
    "--outputs",
    action="append",
    default=[],
    type=named_path,
    metavar="[NAME=]DIR",
    help="a row for what another method has restored: DIR/CLIP/*.png or DIR/CLIP.mp4; repeatable",
  )
  add("--out", type=paths.place, metavar="DIR", default="evaluation", help="default: evaluation")


def named_path(text: str) -> tuple[str, pathlib.Path]:
  """The argument NAME=PATH or PATH: a row's name, by default that of the file or folder."""
  name, separator, path = text.partition("=")
  if not separator or os.sep in name:
    name, path = "", text
  if not path:
    raise argparse.ArgumentTypeError(f"{text!r} names no folder")
  found = paths.place(path)
  return name or (found if paths.in_bucket(path) else found.resolve()).name, found


def check_names(names: Iterable[str]) -> None:
  """Raises `UserError` for two methods of one name."""
  seen = set()
  for name in names:
    if name in seen:
      raise UserError(f"{name}: two rows have this name; give NAME=DIR")
    seen.add(name)


def check_size(
  number: int, output: tuple[int, ...], truth: tuple[int, ...], label: str, remedy: str
) -> None:
  """Raises `UserError` unless a restored frame has the truth's shape [h w 3].

  Args:
    number: the frame's.
    output: shape of the restored frame.
    truth: the truth's.
    label: what the error calls the truth.
    remedy: what to do.
  """
  if output != truth:
    sizes = [f"{shape[1]}x{shape[0]}" for shape in (output, truth)]
    raise UserError(
      f"frame {number} was restored to {sizes[0]} but the truth, {label}, is {sizes[1]}; {remedy}"
    )


def evaluate(jobs: Sequence[Job], table: ScoreTable, folder: pathlib.Path) -> None:
  """Scores clips one by one into a table; one that cannot be scored is skipped and named.

  Args:
    jobs: the clips.
    table: filled in.
    folder: gets metrics.json and metrics.md, at the start, which shows whether they can be written,
      and after every clip, so that an interrupted run leaves what it has finished.
  """
  score_table.write(folder, table)
  with progress.Clock(), progress.bar(None, sum(job.frames for job in jobs)) as bar:
    done = 0
    for job in jobs:
      bar.set_description(job.name)
      try:
        table.scores[job.name] = job.score(bar.update)
      except UserError as e:
        table.skipped[job.name] = str(e)
        tqdm.tqdm.write(f"skipped {job.name}: {e}")
      done += job.frames
      bar.update(done - bar.n)  # what was skipped
      table.complete = job is jobs[-1]
      score_table.write(folder, table)


def tell(table: ScoreTable, folder: pathlib.Path, data: object) -> None:
  """Prints the table and where it is.

  Raises:
    UserError: no clip was scored.
  """
  print(score_table.to_markdown(table))
  print(f"written to {folder}/metrics.json and metrics.md")
  if not table.scores:
    raise UserError(f"{data}: no clip could be scored; the reasons are above")
