"""Standard streams that are closed or not read any more: output is lost, the command goes on."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


def open_missing() -> None:
  """Opens those of stdin, stdout and stderr that are closed (`>&-`) as os.devnull.

  Otherwise the next files opened would get their descriptors, and what libraries print.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      nothing = os.open(os.devnull, os.O_RDWR)
      os.dup2(nothing, number)
      if nothing != number:
        os.close(nothing)
    if getattr(sys, name) is None:
      setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def outlive_readers() -> None:
  """Lets a command print on when the reader of its stdout or stderr is gone."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
      continue  # a program has replaced it
    with contextlib.suppress(OSError):
      stream.flush()
    raw = _Outliving(stream.fileno(), "w", closefd=False)
    made = io.TextIOWrapper(
      raw if stream.write_through else io.BufferedWriter(raw),
      encoding=stream.encoding,
      errors=stream.errors,
      line_buffering=stream.line_buffering,
      write_through=stream.write_through,
    )
    setattr(sys, name, made)


class _Outliving(io.FileIO):
  """A file that is redirected to os.devnull once it cannot be written."""

  def write(self, data: Any) -> int | None:  # type: ignore[override] # None: it would block
    try:
      return super().write(data)
    except OSError:
      nothing = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nothing, self.fileno())
      os.close(nothing)
      return memoryview(data).nbytes
