"""Handles Orbax's threads, which go on, and print, after a read or a write has failed."""

from __future__ import annotations

import contextlib
import functools
import logging
import pathlib
import sys
import threading
from collections.abc import Iterator

_PATIENCE = 60  # seconds to wait for each thread that still writes after a save has failed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """A context that hides what Orbax's abandoned reads would print: pages for each array."""
  log, hook = logging.getLogger("asyncio"), sys.unraisablehook
  disabled, absl = log.disabled, logging.getLogger("absl")
  quiet = not_by_orbax in absl.filters
  log.disabled = True
  sys.unraisablehook = lambda told: isinstance(told.exc_value, Exception) or hook(told)
  absl.addFilter(not_by_orbax)
  try:
    yield
  finally:
    log.disabled, sys.unraisablehook = disabled, hook
    if not quiet:
      absl.removeFilter(not_by_orbax)


def drop_late_reports() -> None:
  """From now on hides reports of TensorStore's threads on reads whose event loop has ended."""
  hook = sys.unraisablehook
  if not (isinstance(hook, functools.partial) and hook.func is _unless_late):
    sys.unraisablehook = functools.partial(_unless_late, hook)


def _unless_late(hook, report) -> None:
  if not (report.exc_type is RuntimeError and str(report.exc_value) == "Event loop is closed"):
    hook(report)


def not_by_orbax(record: logging.LogRecord) -> bool:
  """A log filter, false for Orbax's records: a traceback for each array when a disk is full."""
  return "orbax" not in pathlib.Path(record.pathname).parts


def let_end() -> None:
  """Waits for Orbax's writers: they go on after a failure and would make a removed folder again."""
  with quiet():
    for thread in threading.enumerate():
      if type(thread).__module__.startswith("orbax."):
        threading.Thread.join(thread, _PATIENCE)  # Orbax's own would raise what has failed
