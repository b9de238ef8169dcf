"""Identifies processes, tells whether they still run, and ends workers with their parent."""

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
  """The identity of a process, different from that of any other.

  Attributes:
    host: the machine's name, at most 30 letters, digits and underscores.
    space: the PID namespace, in hexadecimal digits ("0" if unknown); containers of one machine may
      share the host's name, but not this.
    pid: the process number.
    start: when the process began, in ticks since the machine's start; 0 if unknown.
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
    return cls(host, space, os.getpid(), _start_ticks(os.getpid()))

  @property
  def is_near(self) -> bool:
    """Whether it runs or ran on this machine and in this PID namespace."""
    here = Process.current()
    return (self.host, self.space) == (here.host, here.space)

  @property
  def has_ended(self) -> bool:
    """Whether it is known to have ended; False for a process elsewhere, as nothing is known."""
    if not self.is_near:
      return False
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return True
    except OSError:  # another user's
      pass
    start = _start_ticks(self.pid)
    return bool(self.start and start) and start != self.start  # else another process has the number


def _start_ticks(pid: int) -> int:
  """When a process began, in ticks since the machine's start; 0 if unknown; -1 for a zombie."""
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
  except OSError:
    return 0
  return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


def start_worker() -> None:
  """Makes this process a worker: it ignores SIGINT and SIGTERM, and ends when its parent has ended.

  To be called first in a process that `multiprocessing` spawned.
  """
  for number in (signal.SIGINT, signal.SIGTERM):  # they reach the parent, too, which ends workers
    signal.signal(number, signal.SIG_IGN)
  if parent := parent_process():
    threading.Thread(target=_exit_with_parent, args=(parent.sentinel,), daemon=True).start()


def _exit_with_parent(sentinel: int) -> None:
  """Ends this process once its parent has ended or was killed, which closes the pipe to it."""
  with contextlib.suppress(OSError):
    connection.wait([sentinel])
  os._exit(1)
