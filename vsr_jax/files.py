"""Files and folders that appear under their name only once they are whole.

They are written beside their place under a name that no other run uses, NAME.RUN.part, and then
renamed; of two runs that write the same output the last one to end wins, whole. What a run that
was killed has left behind is known by its name and removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator

from vsr_jax.errors import UserError
from vsr_jax.processes import Process

# Orbax writes beside the name that it is given, and appends its own word to it.
_PART = re.compile(
  r"(?P<name>.+)\.(?P<host>\w*)-(?P<space>[0-9a-f]+)-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}"
  r"(?P<old>\.old)?\.part(\.orbax.*)?",
  re.ASCII | re.DOTALL,
)
_NAME_BYTES = 120  # that are kept from a name: with the rest of it a file system must take it


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
  """Lets errors of the file system name that file instead of the one beside it, or nothing."""
  try:
    yield
  except OSError as e:
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def check_place(path: str | os.PathLike[str]) -> None:
  """Checks, before any work is done, that a file or folder can be put in a place.

  Raises:
    UserError: the folder to write in does not exist or cannot be written, or what is there already
      is somebody else's and cannot be replaced, as in /tmp.
  """
  target = os.path.realpath(path)
  parent = os.path.dirname(target)
  if not os.path.isdir(parent):
    raise UserError(f"{path}: there is no folder {parent}; create it first")
  if not os.access(parent, os.W_OK | os.X_OK):
    raise UserError(f"{path}: the folder {parent} cannot be written; choose another one")
  if os.path.lexists(target):
    folder, user = os.stat(parent), os.geteuid()
    owners = (0, folder.st_uid, os.lstat(target).st_uid)
    if folder.st_mode & stat.S_ISVTX and user not in owners:
      raise UserError(f"{path}: is somebody else's and cannot be replaced; name another output")
    if os.path.isdir(target) and not os.access(target, os.W_OK | os.X_OK):
      raise UserError(f"{path}: this folder cannot be written; name another output")


def check_folder(path: str | os.PathLike[str]) -> None:
  """Checks, before any work is done, that files can be written in a folder or that it can be made.

  Raises:
    UserError: they cannot.
  """
  there = place = os.path.realpath(path)
  while not os.path.lexists(there):
    there = os.path.dirname(there)
  if not os.path.isdir(there):
    what = "" if there == place else f"cannot be written, {there} "
    raise UserError(f"{path}: {what}is a file; name a folder")
  if not os.access(there, os.W_OK | os.X_OK):
    raise UserError(f"{path}: the folder {there} cannot be written; choose another one")


def part_name(path: str | os.PathLike[str], kind: str = "") -> str:
  """A new name beside a file or folder, for what is to take its place: NAME.RUN.part."""
  folder, name = os.path.split(os.path.abspath(path))
  run = Process.current()
  told = f"{run.host}-{run.space}-{run.pid}-{run.start}-{secrets.token_hex(4)}"
  return os.path.join(folder, f"{_shortened(name)}.{told}{kind}.part")


def _shortened(name: str) -> str:
  return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")


def remove(path: str) -> None:
  """Removes a file, or a folder with all that is in it, if it is there and can be removed."""
  with contextlib.suppress(OSError):
    if os.path.isdir(path) and not os.path.islink(path):
      shutil.rmtree(path)
    else:
      os.remove(path)


def remove_left(
  folder: str | os.PathLike[str],
  name: str | None = None,
  remove: Callable[[str], None] = remove,
) -> None:
  """Removes what runs of this machine that were killed left half-written; others' parts stay.

  An older folder that such a run had just moved aside, and put nothing in its place, comes back.

  Args:
    folder: where to look; it need not exist.
    name: the output's; None: any in the folder.
    remove: removes a part.

  Warns:
    UserWarning: something was found; it names it.
  """
  try:
    parts = sorted(filter(_PART.fullmatch, os.listdir(folder)))
  except OSError:
    return
  removed = []
  for part in parts:
    found = _PART.fullmatch(part)
    assert found  # the others were filtered out
    run = Process(found["host"], found["space"], int(found["pid"]), int(found["start"]))
    if (name is not None and found["name"] != _shortened(name)) or not run.has_ended:
      continue
    place = os.path.join(folder, name or found["name"])
    if found["old"] and not os.path.lexists(place):
      with contextlib.suppress(OSError):
        os.rename(os.path.join(folder, part), place)
        warnings.warn(f"{place}: put back, a run that was killed had moved it", stacklevel=2)
      continue
    remove(os.path.join(folder, part))
    removed += [part] if not os.path.lexists(os.path.join(folder, part)) else []
  if removed:
    more = f" and {len(removed) - 1} more" if len(removed) > 1 else ""
    warnings.warn(
      f"{os.path.join(folder, removed[0])}{more}: removed, a run that was killed had left it",
      stacklevel=2,
    )


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder with its parents.

  Raises:
    UserError: it cannot be made or something else has its name.
    OSError: the disk is full.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    if e.errno == errno.ENOSPC:
      raise
    raise UserError(f"{path}: cannot make this folder ({e.strerror}); name another one") from e


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file beside its place, then puts it there.

  Args:
    path: the file, in a folder that exists; what was there is replaced.
    content: its text, as UTF-8, or its bytes.

  Raises:
    OSError: it cannot be written; what was there still is.
  """
  part = pathlib.Path(part_name(path))
  try:
    with naming(path):
      part.write_bytes(content.encode() if isinstance(content, str) else content)
      os.replace(part, path)
  except BaseException:
    with contextlib.suppress(OSError):
      part.unlink()
    raise


def replace_folder(new: str, folder: str, remove: Callable[[str], None] = remove) -> None:
  """Puts a whole folder in the place of an older one, if there is any, which stays if that fails.

  Args:
    new: the folder, beside its place.
    folder: its place; other runs may put theirs there at the same time.
    remove: removes the older one.

  Raises:
    OSError: it cannot be renamed.
  """
  aside: list[str] = []
  try:
    while True:
      old = part_name(folder, ".old")
      with contextlib.suppress(FileNotFoundError):
        os.rename(folder, old)
        aside.append(old)
      try:
        os.rename(new, folder)
        break
      except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another run was faster: its turn
          raise
  except BaseException:
    if aside and not os.path.lexists(folder):
      os.rename(aside.pop(), folder)
    raise
  finally:
    for old in aside:
      remove(old)
