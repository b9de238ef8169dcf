"""What a command prints while it works: progress, compiling, time and speed."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import tqdm

from vsr_jax import compiling, console


class Clock:
  """A context manager that measures how long a command works.

  Compiling that takes long is reported above the progress bar; it is left out of the speed.

  Attributes:
    began: the start in seconds, by `time.monotonic`.
    compiled: seconds that compiling took.
  """

  def __enter__(self) -> Clock:
    self.start()
    self._listening = compiling.listening(self._take)
    self._listening.__enter__()
    return self

  def __exit__(self, *exception) -> None:
    self._listening.__exit__(*exception)

  def start(self) -> None:
    """Starts the measurement anew, as entering the context does."""
    self.began, self.compiled = time.monotonic(), 0.0

  def _take(self, record: logging.LogRecord) -> None:
    self.compiled += getattr(record, "seconds", 0)
    if record.levelno >= logging.INFO:
      tqdm.tqdm.write(record.getMessage(), file=sys.stderr)

  def speed(self, count: int) -> str:
    """The time and the speed for `count` frames, as the end of a line to print."""
    seconds = time.monotonic() - self.began
    each = max(seconds - self.compiled, 1e-6) / count
    rate = f"{1 / each:.2f} frames/s" if each <= 1 else f"{each:.2f} s/frame"
    told = self.compiled >= compiling.MOMENT
    after = f" after {self.compiled:.0f} s of compiling" if told else ""
    return f" in {seconds:.1f} s, {rate}{after}"


@contextlib.contextmanager
def bar(
  what: str | None, total: int | None, unit: str = "frame", **options: Any
) -> Iterator[tqdm.tqdm]:
  """A progress bar whose estimate of the time left does not count compiling as work."""
  with tqdm.tqdm(desc=what, total=total, unit=unit, **options) as made, unpausing(made):
    yield made


@contextlib.contextmanager
def unpausing(made: tqdm.tqdm) -> Iterator[None]:
  """A context in which the time that compiling takes does not count as the bar's."""

  def take(record: logging.LogRecord) -> None:
    if hasattr(record, "seconds"):
      made.unpause()

  with compiling.listening(take):
    yield


def tell_next(module: str, *arguments: object) -> None:
  """Prints the command to run next, for the user to copy; names in capitals are to be filled in."""
  print(f"next: {shlex.join([*console.words(module), *map(str, arguments)])}")
