"""Runs work in other threads, so that it runs ahead and signals are always handled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds to wait for a thread that was told to stop. A read from a disk that does not answer never
# ends, and while the main thread waits for it Ctrl-C has no effect.
PATIENCE = 2


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
  """Runs an iterator in a thread, ahead of its consumer.

  Args:
    items: what to iterate over.
    depth: how many items are made ahead of the consumer, at most.

  Yields:
    The items; an exception that the iterator raises is raised here in its place. When the consumer
    stops early the thread ends after its current item, for which at most 2 seconds are waited.
  """
  made: queue.SimpleQueue = queue.SimpleQueue()
  slots = threading.Semaphore(depth)
  stopped = threading.Event()

  def work():
    iterator = iter(items)
    try:
      while slots.acquire() and not stopped.is_set():
        made.put((next(iterator), None))
    except BaseException as e:  # StopIteration too: the consumer has to hear of it
      made.put((None, e))

  thread = threading.Thread(target=work, name="prefetch", daemon=True)
  thread.start()
  try:
    while True:
      item, error = made.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      slots.release()
      yield item
  finally:
    stopped.set()
    slots.release()
    thread.join(PATIENCE)


def interruptible(function: Callable[..., T], *args: Any) -> T:
  """Calls a function that may block in a library, where Python cannot handle signals.

  Args:
    function: what to call. Called from the main thread, which handles signals, it runs in a thread
      of its own; when a signal raises an exception here that thread is abandoned.
    *args: its arguments.

  Returns:
    The function's result; its exceptions are raised here.
  """
  if threading.current_thread() is not threading.main_thread():
    return function(*args)
  made: queue.SimpleQueue = queue.SimpleQueue()

  def work():
    try:
      made.put((function(*args), None))
    except BaseException as e:
      made.put((None, e))

  threading.Thread(target=work, name="interruptible", daemon=True).start()
  result, error = made.get()
  if error is not None:
    raise error
  return result
