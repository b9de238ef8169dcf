"""An emulator of Google Cloud Storage on this machine, and trainers whose runs are there."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import pytest

from vsr_jax import paths
from vsr_jax.checkpoint import has_checkpoint

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 1800  # seconds to wait for what takes moments on a quiet machine


class Emulator:
  """Serves gs://runs on loopback; `closed` makes it refuse to write and remove.

  Whoever uses gs:// in this process or in those it starts reaches it through `network` while
  `patch` lasts.
  """

  def __init__(self, patch: pytest.MonkeyPatch, server: Any):
    """Starts it; `server` is the module of that name of gcp-storage-emulator."""
    self.closed = False
    emulator, handle = self, server.Router.handle

    def handle_unless_closed(router, method):
      if not emulator.closed or method == "GET":
        return handle(router, method)
      server.Request(router._request_handler, method).data  # noqa: B018 (reads the body)
      response = server.Response(router._request_handler)
      response.status = HTTPStatus.FORBIDDEN
      response.json({"error": {"code": 403, "message": "denied"}})
      return response.close()

    patch.setattr(server.Router, "handle", handle_unless_closed)
    self.server = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="runs")
    self.server.start()
    deadline = time.monotonic() + PATIENCE
    while self.server._api._httpd is None and time.monotonic() < deadline:
      time.sleep(0.01)
    self.network = Network(self.server._api._httpd.server_address)
    url = f"http://127.0.0.1:{self.network.port}"
    patch.setenv("STORAGE_EMULATOR_HOST", url)  # of gcsfs and google.cloud.storage
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)  # of what Orbax writes with
    patch.setenv("NO_GCE_CHECK", "true")  # the credentials of a machine there take a while


class Network:
  """Connects `port` with a server until it is lost."""

  def __init__(self, address: tuple[str, int]):
    self._address, self._state = address, "open"
    self._ends: tuple[list[socket.socket], list[socket.socket]] = [], []  # clients, the server's
    self._listener = socket.create_server(("127.0.0.1", 0))
    self.port = self._listener.getsockname()[1]
    threading.Thread(target=self._listen, daemon=True).start()

  def become(self, state: str) -> None:
    """Lets it be "open"; "ended", where every connection ends; or "silent", without answers."""
    self._state = state
    clients, servers = self._ends
    for end in servers if state == "silent" else (*clients, *servers):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

  def _listen(self) -> None:
    while True:
      client, _ = self._listener.accept()
      if self._state == "ended":
        client.close()
        continue
      self._ends[0].append(client)
      if self._state == "open":
        server = socket.create_connection(self._address)
        self._ends[1].append(server)
        for ends in ((client, server), (server, client)):
          threading.Thread(target=self._carry, args=ends, daemon=True).start()

  def _carry(self, source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        if self._state == "open":
          target.sendall(data)
      if self._state != "silent":
        target.shutdown(socket.SHUT_WR)


def run(command: Sequence[object], code: int = 0) -> str:
  """Runs a command that ends with a code, and gives what it has written to stderr."""
  done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == code, done.stderr
  assert "Traceback" not in done.stderr
  return done.stderr


def kill_at_a_checkpoint(command: Sequence[object], workdir: str) -> None:
  """Starts a trainer and kills it, without a chance to save, once its run has a checkpoint."""
  process = subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE)
  try:
    wait_until(lambda: has_checkpoint(workdir), process)
  finally:
    process.kill()
    process.communicate()


def wait_until(holds: Callable[[], bool], process: subprocess.Popen) -> None:
  """Waits until something holds, while a process runs."""
  deadline = time.monotonic() + PATIENCE
  while not holds():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.1)


def rows(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The rows of a run's log, without their times."""
  log = (paths.place(workdir) / "log.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in log]
