"""Which process wrote something, whether it still runs, and workers that end with their parent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import threading
from multiprocessing import connection, parent_process


@dataclasses.dataclass(frozen=True)
class Process:
  """A process, as it can be told from all others.

  Attributes:
    host: name of its machine, of letters, digits and underscores.
    space: of process numbers; containers of one machine may share its name, but not this.
    pid: its number.
    start: when it began, in ticks since the machine's start; 0 where that cannot be known.
  """

  host: str
  space: str
  pid: int
  start: int

  @classmethod
  def current(cls) -> Process:
    """This process."""
    host = re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII)[:30]
    try:
      space = f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
      space = "0"
    return cls(host, space, os.getpid(), _start(os.getpid()))

  @property
  def is_near(self) -> bool:
    """Whether it ran, or runs, where this process can see it."""
    here = Process.current()
    return (self.host, self.space) == (here.host, here.space)

  @property
  def has_ended(self) -> bool:
    """Whether it is known to run no more; of a process elsewhere nothing is known."""
    if not self.is_near:
      return False
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return True
    except OSError:  # somebody else's
      pass
    start = _start(self.pid)
    return bool(self.start and start) and start != self.start  # another one has its number now


def _start(pid: int) -> int:
  """When a process began, in ticks; 0: not known; -1: only its exit code is left."""
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
  except OSError:
    return 0
  return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


def start_worker() -> None:
  """Makes this process a worker: it leaves signals to its parent, and ends when that has ended.

  For the beginning of a process that `multiprocessing` spawned.
  """
  for number in (signal.SIGINT, signal.SIGTERM):  # they reach the parent, too, which ends workers
    signal.signal(number, signal.SIG_IGN)
  if parent := parent_process():
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
  """Waits for a parent to end, as it does when it is killed, too: a pipe to it closes."""
  with contextlib.suppress(OSError):
    connection.wait([sentinel])
  os._exit(1)
