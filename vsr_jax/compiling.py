"""Reports compilation that takes long through `logging`; nothing is printed by default.

A command listens with `vsr_jax.progress.Clock`; a program that uses the library shows the logger
`vsr_jax.compiling` at level INFO.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

MOMENT = 2.0  # seconds; shorter compilation is not reported

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
  """A context for compiling: logs after `MOMENT` that it goes on, and at the end how long it took.

  The record at the end has the attribute `seconds`; its level is INFO where the first record was
  logged, else DEBUG. An exception leaves it out.

  Args:
    what: names what is compiled, for instance "for 320x180".
  """
  if not _logger.isEnabledFor(logging.INFO):
    yield
    return
  told = threading.Event()

  def tell():
    told.set()
    _logger.info("compiling %s (once a size)", what)

  timer = threading.Timer(MOMENT, tell)
  timer.daemon = True
  timer.start()
  began = time.monotonic()
  try:
    yield
  finally:
    timer.cancel()
    timer.join()
  seconds = time.monotonic() - began
  level = logging.INFO if told.is_set() else logging.DEBUG
  _logger.log(level, "compiled %s in %.0f s", what, seconds, extra={"seconds": seconds})


@contextlib.contextmanager
def listening(take: Callable[[logging.LogRecord], object]) -> Iterator[None]:
  """A context in which `take` gets every record of `compiling`, in the thread that made it."""

  class Taking(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
      take(record)

  handler = Taking(logging.DEBUG)
  level, propagate = _logger.level, _logger.propagate
  _logger.addHandler(handler)
  _logger.setLevel(logging.DEBUG)
  _logger.propagate = False  # else handlers of the root logger would repeat it
  try:
    yield
  finally:
    _logger.setLevel(level)
    _logger.propagate = propagate
    _logger.removeHandler(handler)
