"""Locks folders so that one run at a time writes there."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import IO, Any

from vsr_jax import files
from vsr_jax.errors import UserError
from vsr_jax.processes import Process

NAME = ".lock"  # the lock file in the folder; it is never removed
_MOUNTS = pathlib.Path("/proc/self/mountinfo")
# File systems that one machine mounts: every process that can write there sees the kernel's lock.
_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
  """A context that keeps other runs from writing to a folder; removes what killed runs left there.

  The kernel's lock ends with its process, however that ends. Where machines share a folder it may
  not reach all of them, or be missing. There the lock file names the holder, and if a run on
  another machine was killed, the user has to remove the file.

  Args:
    folder: made when it is missing.

  Raises:
    UserError: another run is writing there, or the folder cannot be made.
    OSError: the lock cannot be written.
  """
  folder = pathlib.Path(folder)
  files.make_folder(folder)
  with (folder / NAME).open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      by_kernel = True
    except BlockingIOError:
      raise _in_use(folder, _read(file)) from None
    except OSError:  # the file system has no locks
      by_kernel = False
    holder = _read(file)
    if holder and not _is_stale(holder, by_kernel, folder):
      raise _in_use(folder, holder)
    with files.naming(folder / NAME):
      _write(file, json.dumps(_describe(Process.current())))
    try:
      files.remove_left(folder)
      yield
    finally:
      with contextlib.suppress(OSError):
        _write(file, "")


def _is_stale(holder: dict[str, Any], by_kernel: bool, folder: pathlib.Path) -> bool:
  """Whether a lock's holder is gone; `by_kernel` says that this process has the kernel's lock."""
  process = Process(**holder["process"])
  if by_kernel and (process.is_near or _file_system(folder) in _LOCAL):
    return True
  return process.has_ended


def _in_use(folder: pathlib.Path, holder: dict[str, Any] | None) -> UserError:
  told, far = "", False
  if holder:
    process = Process(**holder["process"])
    told = f" (process {process.pid} on {process.host}, since {holder['since']})"
    far = not process.is_near
  remedy = f"; if it ended, remove {folder / NAME}" if far else ""
  return UserError(f"{folder}: another run is writing there{told}; wait for it to end{remedy}")


def _describe(process: Process) -> dict[str, Any]:
  since = time.strftime("%Y-%m-%d %H:%M:%S %z")
  return {"process": dataclasses.asdict(process), "since": since}


def _read(file: IO[str]) -> dict[str, Any] | None:
  """Reads a lock file; None if it is empty (free), or damaged, as by a crash of the machine."""
  file.seek(0)
  try:
    holder = json.loads(file.read())
    Process(**holder["process"]), holder["since"]
  except (ValueError, TypeError, KeyError):
    return None
  return holder


def _write(file: IO[str], text: str) -> None:
  file.seek(0)
  file.truncate()
  file.write(text)
  file.flush()
  os.fsync(file.fileno())


def _file_system(folder: pathlib.Path) -> str:
  """The kind of file system that a folder lies on; "" where that cannot be known."""
  found, place = ("", 0), folder.resolve()
  try:
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
      fields, _, source = line.partition(" - ")
      point = fields.split()[4].encode("latin-1", "replace").decode("unicode_escape")
      if place.is_relative_to(point) and len(point) >= found[1]:  # the last of several counts
        found = source.split()[0], len(point)
  except (OSError, ValueError, IndexError):
    return ""
  return found[0]
