"""An iterator that runs ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
  """Runs an iterator in a thread, ahead of its consumer.

  Args:
    items: what to iterate over.
    depth: how many items at most are made before they are asked for.

  Yields:
    The items; an exception of theirs arrives in its place. When the consumer stops early the
    thread ends after the item it is at.
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
    thread.join()
