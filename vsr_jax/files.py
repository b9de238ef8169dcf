"""Files and folders that appear under their name only once they are whole.

They are written beside their place under a name that no other run uses, NAME.RUN.part, and then
renamed; where two runs write the same output, that of the last one to end stays, complete. What a
killed run left behind is recognised by its name and removed by the next run.
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

from vsr_jax import paths
from vsr_jax.errors import UserError
from vsr_jax.processes import Process

# Orbax writes under the name that it is given with a suffix of its own.
_PART = re.compile(
  r"(?P<name>.+)\.(?P<host>\w*)-(?P<space>[0-9a-f]+)-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}"
  r"(?P<old>\.old)?\.part(\.orbax.*)?",
  re.ASCII | re.DOTALL,
)
_NAME_BYTES = 120  # of NAME that are kept, so that the whole of NAME.RUN.part is a valid file name


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
  """A context in which an `OSError` names `path`, not the temporary file beside it or none."""
  try:
    yield
  except OSError as e:
    raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def check_place(path: str | os.PathLike[str]) -> None:
  """Checks, before any work is done, that a file or folder can be put in a place.

  Raises:
    UserError: the folder to write in does not exist or cannot be written, or the place is taken by
      something that may not be replaced, such as another user's file in /tmp.
  """
  _check_local(path)
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
    UserError: the folder cannot be written or made.
  """
  _check_local(path)
  there = place = os.path.realpath(path)
  while not os.path.lexists(there):
    there = os.path.dirname(there)
  if not os.path.isdir(there):
    what = "" if there == place else f"cannot be written, {there} "
    raise UserError(f"{path}: {what}is a file; name a folder")
  if not os.access(there, os.W_OK | os.X_OK):
    raise UserError(f"{path}: the folder {there} cannot be written; choose another one")


def _check_local(path: str | os.PathLike[str]) -> None:
  if not os.fspath(path):
    raise UserError("'' names neither a file nor a folder; name what is to be written")
  if os.fspath(path).startswith("gs:/"):  # pathlib makes one slash of two
    raise UserError(f"{path}: this is written to folders of a file system only; name one")


def part_name(path: str | os.PathLike[str], kind: str = "") -> str:
  """A new name beside a file or folder, NAME.RUN.part, for what is to take its place.

  `kind` is put before ".part": ".old" for an older folder that is moved aside.
  """
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
  """Removes what killed runs of this machine left half-written; parts of other runs stay.

  An older folder that such a run had moved aside without replacing it is put back.

  Args:
    folder: where to look; it need not exist.
    name: the output whose parts are removed; None: those of every output in the folder.
    remove: the function that removes a part.

  Warns:
    UserWarning: something was removed or put back; the warning names it.
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
    UserError: the folder cannot be made, its name belongs to something else, or its bucket cannot
      be written.
    OSError: the disk is full.
  """
  if paths.in_bucket(path):  # whose folders are only names
    paths.check_writable(path)
    return
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    if e.errno == errno.ENOSPC:
      raise
    raise UserError(f"{path}: cannot make this folder ({e.strerror}); name another one") from e


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file beside its place, then puts it there; in a bucket objects appear whole anyway.

  Args:
    path: the file, in a folder that exists; what was there is replaced.
    content: its text, as UTF-8, or its bytes.

  Raises:
    OSError: the file cannot be written; what was there is unchanged.
    UserError: its bucket cannot be used.
  """
  data = content.encode() if isinstance(content, str) else content
  if paths.in_bucket(path):
    with paths.reaching(path, writing=True):
      path.write_bytes(data)
    return
  part = pathlib.Path(part_name(path))
  try:
    with naming(path):
      part.write_bytes(data)
      os.replace(part, path)
  except BaseException:
    with contextlib.suppress(OSError):
      part.unlink()
    raise


def replace_folder(new: str, folder: str, remove: Callable[[str], None] = remove) -> None:
  """Puts a complete folder in its place; an older one there is removed, or kept if that fails.

  Args:
    new: the complete folder, beside its place.
    folder: its place; other runs may put theirs there at the same time.
    remove: the function that removes the older folder.

  Raises:
    OSError: a folder cannot be renamed.
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
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another run was faster
          raise
  except BaseException:
    if aside and not os.path.lexists(folder):
      os.rename(aside.pop(), folder)
    raise
  finally:
    for old in aside:
      remove(old)
