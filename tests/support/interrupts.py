"""Commands that are stopped while they run."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Sequence


def send_when_seen(
  command: Sequence,
  pattern: str,
  number: signal.Signals,
  before: Callable[[], object] = lambda: None,
) -> tuple[int, str]:
  """Starts a command; once it has printed a pattern to stderr, calls `before` and sends a signal.

  Returns:
    Its exit code, and what it printed to stderr after that.
  """
  # Unbuffered: `communicate` reads the pipe itself, and would miss what a buffer holds.
  process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, bufsize=0)
  seen = b""
  while not re.search(pattern.encode(), seen):
    part = process.stderr.read(1)
    assert part, seen.decode()
    seen += part
  before()
  process.send_signal(number)
  rest = process.communicate(timeout=60)[1]
  return process.returncode, rest.decode()
