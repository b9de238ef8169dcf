"""A small part of the campaign, by another seed; `make fuzz` runs all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("kind", ["videos", "checkpoints", "sets", "stream"])
def test_a_small_campaign(kind):
  command = [sys.executable, "-m", "tests.fuzz", "--seed", "7", "--scale", "0.03", "--only", kind]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr[-3000:]
