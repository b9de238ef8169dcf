"""A small part of the campaign, by another seed; `make fuzz` runs all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

KINDS = ("videos", "checkpoints", "sets", "stream")


@pytest.mark.slow
def test_a_small_campaign():
  command = [sys.executable, "-m", "tests.fuzz", "--seed", "7", "--scale", "0.02", "--only", *KINDS]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr[-3000:]
  tried = {line.split()[0]: int(line.split()[1]) for line in result.stdout.splitlines()[1:-1]}
  assert tried == {"stream": 1, "videos": 10, "checkpoints": 24, "sets": 20}
