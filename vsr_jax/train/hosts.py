"""Several hosts that train one run: joining, agreeing, and telling by name which one is gone.

JAX's own service ends all processes when one is lost, after 100 seconds and by its number. Here
every process holds a connection to the first one, which breaks as soon as a process dies, and half
a minute after its machine does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vsr_jax.errors import Terminated, UserError

LOST = 1  # exit code where another host is gone; launch/ starts such a run again
_LINE = 512  # bytes of what a process tells all others
# Seconds: of silence after which a connection is tried, between trials, and their number.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_PATIENCE = 5  # seconds in which this process may come to the same error as another one
_DONE, _FAILED = b"done", b"failed"  # what a process says before it leaves


def join(
  coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
  """Makes this process one of several; to be called before JAX uses a device.

  Args:
    coordinator: HOST:PORT of the first process. None, as for the others: TPU pods, SLURM and Open
      MPI tell it.
    processes: number of processes.
    process: this one's number, from 0.

  Raises:
    UserError: the others are not told, or cannot be reached.
  """
  try:
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=50)
  except (ValueError, TypeError, RuntimeError) as e:
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    raise UserError(
      f"--multihost: the processes do not find each other: {reason}; on other machines than TPU "
      "pods and SLURM give --coordinator HOST:PORT --processes N --process I"
    ) from e


def check_equal(told: Mapping[str, Any]) -> None:
  """Checks that all hosts were started alike, before they compute anything together.

  Args:
    told: JSON values by what they are, such as "config".

  Raises:
    UserError: on all hosts; it names those whose values differ from the first one's.
  """
  if jax.process_count() == 1:
    return
  sums = {
    name: zlib.crc32(json.dumps(value, sort_keys=True).encode()) for name, value in told.items()
  }
  found = [json.loads(text) for text in _gather(json.dumps([socket.gethostname()[:200], sums]))]
  names = [_name(i, host) for i, (host, _) in enumerate(found)]
  for what in told:
    others = [
      name for name, (_, x) in zip(names, found, strict=True) if x[what] != found[0][1][what]
    ]
    if others:
      raise UserError(
        f"{', '.join(others)}: another {what} than {names[0]} has; start all hosts with the same"
      )


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """A context in which this process ends, and says which host it was, when another one is gone.

  It ends with 2 where the other one met what a user has to mend, and otherwise with `LOST`. Every
  process enters it at the same time. Of one process alone it does nothing.
  """
  if jax.process_count() == 1:
    yield
    return
  with _connected() as links:
    leaving = threading.Event()
    threading.Thread(target=_watch, args=(links, leaving), daemon=True).start()
    try:
      yield
    except (UserError, OSError):  # commands end with 2 then
      _say(links, leaving, _FAILED)
      raise
    except Terminated:  # all stop together
      _say(links, leaving, _DONE)
      raise
    except BaseException:
      leaving.set()  # in silence: the others are to start again
      raise
    _say(links, leaving, _DONE)


def _name(process: int, host: str) -> str:
  return f"{host} (process {process})"


def _gather(text: str) -> list[str]:
  """A short text of every process, in their order."""
  line = np.zeros(_LINE, np.uint8)
  encoded = text.encode()
  line[: len(encoded)] = np.frombuffer(encoded, np.uint8)
  lines = np.asarray(multihost_utils.process_allgather(line)).reshape(-1, _LINE)
  return [bytes(x).rstrip(b"\0").decode() for x in lines]


@contextlib.contextmanager
def _connected() -> Iterator[dict[socket.socket, str]]:
  """Connections with the names of the hosts behind them: of the first process to all others."""
  host = socket.gethostname()[:200]
  with contextlib.ExitStack() as stack:
    address: Any = [host, [], 0]
    if jax.process_index() == 0:
      server = stack.enter_context(socket.create_server(("", 0), backlog=jax.process_count()))
      server.settimeout(30)
      address = [host, _addresses(), server.getsockname()[1]]
    found = [json.loads(text) for text in _gather(json.dumps(address))]
    names = [_name(i, told[0]) for i, told in enumerate(found)]
    links: dict[socket.socket, str] = {}
    if jax.process_index() == 0:
      for _ in names[1:]:
        with contextlib.suppress(OSError):  # JAX's own service is left to notice that one
          link = stack.enter_context(server.accept()[0])
          links[link] = names[int.from_bytes(link.recv(4, socket.MSG_WAITALL)) % len(names)]
    elif first := _reach(*found[0][1:]):
      stack.enter_context(first)
      first.sendall(jax.process_index().to_bytes(4))
      links[first] = names[0]
    for link in links:
      link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
      for option, value in _KEEPALIVE.items():
        if hasattr(socket, option):
          link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    yield links


def _addresses() -> list[str]:
  """Addresses by which other hosts may reach this one."""
  found = [socket.gethostname()[:200]]
  with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
    outward.connect(("192.0.2.1", 9))  # chooses the way out, and sends nothing
    found.insert(0, outward.getsockname()[0])
  return found


def _reach(addresses: list[str], port: int) -> socket.socket | None:
  for address in addresses:
    with contextlib.suppress(OSError):
      link = socket.create_connection((address, port), timeout=10)
      link.settimeout(None)
      return link
  return None


def _say(links: Mapping[socket.socket, str], leaving: threading.Event, word: bytes) -> None:
  leaving.set()
  for link in links:
    with contextlib.suppress(OSError):
      link.sendall(word)


def _watch(links: Mapping[socket.socket, str], leaving: threading.Event) -> None:
  """Waits for words of the others, or their silence; ends the process where one is gone."""
  open_links = dict(links)
  while open_links:
    for link in select.select(list(open_links), [], [])[0]:
      name = open_links.pop(link)
      try:
        word = link.recv(_LINE)
      except OSError:  # the machine does not answer
        word = b""
      if leaving.is_set() or word == _DONE:
        continue
      told, code = f"{name} is gone; the run goes on from its last checkpoint", LOST
      if word == _FAILED:
        told, code = f"{name} ended with an error, which it says", 2
        if leaving.wait(_PATIENCE):
          continue
      elif word:  # the first process tells whom it has lost
        told = word.decode(errors="replace")
      for other in open_links:
        with contextlib.suppress(OSError):
          other.sendall(_FAILED if code == 2 else told.encode()[:_LINE])
      with contextlib.suppress(OSError):
        os.write(2, f"\nerror: {told}\n".encode())
      sys.stdout.flush()
      os._exit(code)
