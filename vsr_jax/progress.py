"""What a command tells of its way: progress, compiling, time and speed."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import tqdm

from vsr_jax import compiling


class Clock:
  """How long a command works; a context manager.

  Compiling that takes long is told above the progress bar; it is left out of the speed.

  Attributes:
    began: as `time.monotonic` has it.
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
    """Begins anew, as entering the context does."""
    self.began, self.compiled = time.monotonic(), 0.0

  def _take(self, record: logging.LogRecord) -> None:
    self.compiled += getattr(record, "seconds", 0)
    if record.levelno >= logging.INFO:
      tqdm.tqdm.write(record.getMessage(), file=sys.stderr)

  def speed(self, count: int) -> str:
    """The end of a line on so many frames: the time and the speed."""
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
  """Within it the time that compiling takes is taken out of a bar's."""

  def take(record: logging.LogRecord) -> None:
    if hasattr(record, "seconds"):
      made.unpause()

  with compiling.listening(take):
    yield


def tell_next(module: str, *arguments: object) -> None:
  """Prints the command that comes after this one, to be copied; what is to be filled in is CAPS."""
  print(f"next: {shlex.join(['python', '-m', module, *map(str, arguments)])}")
