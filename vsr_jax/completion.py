"""Completion of commands in a shell by argcomplete, which only the extra "completion" installs.

argcomplete lets the shell call the command itself, with _ARGCOMPLETE in its environment, and reads
what the command writes into a descriptor that it opens. Without that nothing is imported here.
"""

from __future__ import annotations

import argparse
import os
import sys


def is_asked() -> bool:
  """Whether this process is to complete a command line, and not to run it."""
  return "_ARGCOMPLETE" in os.environ


def answer(parser: argparse.ArgumentParser) -> None:
  """Ends the process with what can follow, if a shell asks for that; otherwise does nothing."""
  if not is_asked():
    return
  try:
    import argcomplete
  except ImportError:  # a shell may have it where this environment does not
    sys.exit(1)
  argcomplete.autocomplete(parser)
