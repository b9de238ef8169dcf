"""Places: folders and files of a file system or, by gs://BUCKET/..., of Google Cloud Storage.

A bucket's are `etils.epath.Path`s, which read and write like pathlib's. What is special about
them is here: an object appears whole or not at all, cannot grow, and cannot be renamed; a folder is
what objects' names begin with; and a bucket can be missing, closed, or out of reach at any time.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import logging
import multiprocessing.util
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, BinaryIO, cast

from vsr_jax.errors import UserError

PACKAGE = "gcsfs"  # reads and writes gs://; the extra "gcs"
PUT_EVERY = 60.0  # seconds between two puttings of an object that grows
_COPY = "vsr_jax_bucket"  # in the folder for temporary files
_AT_ONCE = 16  # transfers
# Both are looked at once, by whoever uses epath or gcsfs first. TensorFlow, which is there for
# data_prep.build, would be loaded for what gcsfs does as well; and gcsfs would ask for a bucket's
# kind, for which a run may lack the right.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Seconds after which a request that does not get through fails and is tried again: TensorStore and
# gcsfs would wait for an answer for ever, on a network that is lost without a word.
_CONNECT, _SILENCE, _REQUEST = 10, 15, 600
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", str(_CONNECT))
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_SILENCE))
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_GS = "gs://"


def in_bucket(path: str | os.PathLike[str]) -> bool:
  """Whether a path is one of a bucket."""
  return os.fspath(path).startswith(_GS)


def place(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path of a file system as pathlib's, one of a bucket as epath's, which does the same.

  Raises:
    UserError: it is of another kind of store, names no bucket, or the package is missing.
  """
  text = os.fspath(path)
  if not _URL.match(text):
    return pathlib.Path(text)
  if not in_bucket(text):
    raise UserError(f"{text}: of stores on the network only gs://BUCKET/FOLDER can be used")
  if not text.removeprefix(_GS).split("/")[0]:
    raise UserError(f"{text}: names no bucket; give gs://BUCKET/FOLDER")
  if importlib.util.find_spec(PACKAGE) is None:
    raise UserError(f'{text}: gs:// needs a package more; pip install -e ".[gcs]"')
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # prints tracebacks of what it raises
  import fsspec.config
  from etils import epath

  fsspec.config.conf["gcs"] = _settings() | fsspec.config.conf.get("gcs", {})
  return cast(pathlib.Path, epath.Path(text.rstrip("/")))


def _settings() -> dict[str, Any]:
  """What gcsfs is told, unless the user's own settings of fsspec say otherwise."""
  aiohttp = importlib.import_module("aiohttp")  # comes with gcsfs
  patience = aiohttp.ClientTimeout(total=_REQUEST, sock_connect=_CONNECT, sock_read=_SILENCE)
  # Listings that are kept would miss what TensorStore writes and what other hosts do.
  return {"use_listings_cache": False, "requests_timeout": patience}


def local(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path of a file system, for what can be kept nowhere else.

  Raises:
    UserError: it is one of a bucket.
  """
  if _URL.match(os.fspath(path)):
    raise UserError(
      f"{path}: pictures and videos are read and written in folders of a file system"
      " only; copy it with gcloud storage cp"
    )
  return pathlib.Path(path)


def absolute(path: str | os.PathLike[str]) -> pathlib.Path:
  """A place by its full name; a bucket's is full already."""
  return place(path) if in_bucket(path) else place(path).absolute()


@contextlib.contextmanager
def reaching(path: str | os.PathLike[str], *, writing: bool = False) -> Iterator[None]:
  """A context in which whatever a bucket's libraries raise becomes one line that names the place.

  A `FileNotFoundError` stays one unless `writing`, where it means that the bucket is gone.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # of aiohttp, google.auth, gcsfs, TensorStore
    if not in_bucket(path) or (isinstance(e, FileNotFoundError) and not writing):
      raise
    raise no_use(path, e) from e


def no_use(path: str | os.PathLike[str], error: BaseException) -> UserError:
  """The error that a bucket cannot be used, and why."""
  why = (str(error).splitlines() or [""])[0][:200]
  if isinstance(error, FileNotFoundError):
    why = "there is no such bucket"
  elif isinstance(error, TimeoutError):  # whose text is empty
    why = "it does not answer"
  return UserError(
    f"{os.fspath(path)}: the bucket cannot be used ({why or type(error).__name__}); check its name,"
    " your rights there (gcloud auth application-default login) and the network, and run again"
  )


def check_writable(folder: pathlib.Path) -> None:
  """Checks that objects can be written to and removed from a folder of a bucket.

  Raises:
    UserError: they cannot; the text says why.
  """
  probe = folder / f".write_test.{secrets.token_hex(4)}"  # several hosts check at once
  with reaching(folder, writing=True):
    probe.write_bytes(b"")
    probe.unlink()


def is_folder(path: str | os.PathLike[str]) -> bool:
  """Whether there is a folder of this name; a UserError says that its bucket cannot be used."""
  if not in_bucket(path):
    return place(path).is_dir()
  place(path)
  try:
    with reaching(path):  # epath's `is_dir` is false, too, where the right to look is missing
      return bool(_store().info(os.fspath(path))["type"] == "directory")
  except FileNotFoundError:
    return False


def size(path: pathlib.Path) -> int:
  """The bytes of a file.

  Raises:
    UserError: its bucket cannot be used.
    OSError: it cannot be read; FileNotFoundError if it is missing.
  """
  with reaching(path):
    found: Any = path.stat()  # whose fields are others for a bucket
  return found.length if in_bucket(path) else found.st_size


def sizes(folder: pathlib.Path) -> dict[str, int]:
  """The bytes of every file in a folder and those below, by the name within the folder.

  Raises:
    UserError: the bucket cannot be used.
    OSError: the folder cannot be read.
  """
  if not in_bucket(folder):
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
  with reaching(folder):
    listed = _store().find(os.fspath(folder), detail=True)
  start = _store()._strip_protocol(os.fspath(folder)) + "/"
  # Consoles make objects named FOLDER/ so that an empty folder shows.
  names = ((name, info) for name, info in listed.items() if not name.endswith("/"))
  return {name.removeprefix(start): int(info["size"]) for name, info in sorted(names)}


def _store() -> Any:
  import fsspec

  return fsspec.filesystem("gcs", finalize_on_close=True)


@contextlib.contextmanager
def nearby(folder: pathlib.Path, what: str = "") -> Iterator[pathlib.Path]:
  """A context with a folder of a file system: itself, or a temporary copy of a bucket's.

  Args:
    folder: what is read.
    what: what it is, for a bar that shows the progress of the copy; "": none is shown.

  Raises:
    UserError: the bucket cannot be used; and errors of the context, which then name `folder`.
  """
  if not in_bucket(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="bucket_") as near:
    copy_from(folder, pathlib.Path(near), what)
    with _naming(folder, pathlib.Path(near)):
      yield pathlib.Path(near)


@contextlib.contextmanager
def kept_nearby(folder: pathlib.Path, what: str) -> Iterator[pathlib.Path]:
  """As `nearby`, but the copy stays until the process ends, for readers that go on after that.

  Warns:
    UserWarning: the copy of a run that was killed was removed.
  """
  if not in_bucket(folder):
    yield folder
    return
  near = _copies.get(folder)
  if near is None:
    from vsr_jax import files  # which imports this module

    files.remove_left(tempfile.gettempdir(), _COPY)
    made = files.part_name(os.path.join(tempfile.gettempdir(), _COPY))
    os.mkdir(made, 0o700)
    # Unlike atexit, this also comes before an end by a signal, and not in forked processes.
    multiprocessing.util.Finalize(None, shutil.rmtree, (made, True), exitpriority=0)
    near = pathlib.Path(made, *folder.parts[2:])  # whose name tells what it is a copy of
    copy_from(folder, near, what)
    _copies[folder] = near
  with _naming(folder, near):
    yield near


_copies: dict[pathlib.Path, pathlib.Path] = {}  # of this process


@contextlib.contextmanager
def _naming(folder: pathlib.Path, near: pathlib.Path) -> Iterator[None]:
  """A context whose errors name a folder of a bucket, not its copy."""
  try:
    yield
  except UserError as e:
    raise UserError(str(e).replace(str(near), str(folder))) from e


def open_copy(path: pathlib.Path) -> BinaryIO:
  """Opens a temporary copy of a bucket's file for reading.

  Raises:
    UserError: the bucket cannot be used.
    FileNotFoundError: there is no such file.
  """
  copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (the caller closes it)
  try:
    with reaching(path), path.open("rb") as file:
      shutil.copyfileobj(file, copy, 1 << 20)
  except FileNotFoundError as e:
    copy.close()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from e
  except BaseException:
    copy.close()
    raise
  copy.seek(0)
  return copy


def copy_from(folder: pathlib.Path, near: pathlib.Path, what: str = "") -> None:
  """Copies what is in a folder of a bucket to one of a file system; see `nearby`.

  Raises:
    UserError: the bucket cannot be used, there is no such folder, an object's name is no file's, or
      the disk is too small.
  """
  found = sizes(folder)
  if not found:
    raise UserError(f"{folder}: there is nothing of that name in the bucket; check it")
  for name in found:
    if any(part in ("", ".", "..") for part in name.split("/")):
      raise UserError(f"{folder}: holds an object named {name!r}, which is no file; remove it")

  near.mkdir(parents=True, exist_ok=True)
  need, free = sum(found.values()), shutil.disk_usage(near).free
  if need > free:
    raise UserError(
      f"{folder}: its copy needs {need / 1e9:.3g} GB, and the disk of {near} has {free / 1e9:.3g};"
      " let TMPDIR name a folder on a larger one"
    )

  def get(name: str) -> None:
    target = near / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with reaching(folder, writing=True):
      content = (folder / name).read_bytes()
    target.write_bytes(content)

  _each(get, found, what)


def copy_to(near: pathlib.Path, folder: pathlib.Path, last: str) -> None:
  """Copies a folder to one of a bucket, whose older contents it replaces.

  Args:
    near: the folder of a file system.
    folder: the bucket's.
    last: the folder within that is written last, so that without it the copy is known to be part.
  """

  def put(name: str) -> None:
    with reaching(folder, writing=True):
      (folder / name).write_bytes((near / name).read_bytes())

  found = sizes(near)
  with reaching(folder, writing=True):
    older = sizes(folder)
    for name in sorted(older, key=lambda name: not name.startswith(f"{last}/")):
      (folder / name).unlink()
  _each(put, {name: n for name, n in found.items() if not name.startswith(f"{last}/")}, "")
  _each(put, {name: n for name, n in found.items() if name.startswith(f"{last}/")}, "")


def _each(do: Callable[[str], None], found: dict[str, int], what: str) -> None:
  """Does something for each file, several at once."""
  import tqdm

  def counted(name: str) -> int:
    do(name)
    return found[name]

  bar = tqdm.tqdm(desc=what, total=sum(found.values()), unit="B", unit_scale=True, disable=not what)
  with bar, ThreadPoolExecutor(_AT_ONCE, "transfers") as pool:
    for done in pool.map(counted, found):
      bar.update(done)


class GrowingFile:
  """A file that grows, opened at its end.

  One of a file system is written as it grows. A bucket's object cannot grow: it is held here and
  put anew, whole, at most every `PUT_EVERY` seconds, and by `put` and `close`.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._put, self._failed = time.monotonic(), False
    self._file: IO[bytes] = io.BytesIO() if in_bucket(path) else path.open("ab")
    if in_bucket(path):
      with reaching(path), contextlib.suppress(FileNotFoundError):
        self._file.write(path.read_bytes())

  @property
  def held(self) -> int:
    """The bytes that are put again and again; 0 in a file system."""
    return self._file.tell() if in_bucket(self._path) else 0

  def write(self, data: bytes) -> None:
    """Adds bytes."""
    self._file.write(data)

  def flush(self) -> None:
    """Lets others see what was written, in a bucket after a while."""
    self._file.flush()
    if time.monotonic() - self._put >= PUT_EVERY:
      self.put()

  def put(self) -> None:
    """Lets others see what was written, now; a UserError says that the bucket cannot be used."""
    self._file.flush()
    self._put = time.monotonic()
    if isinstance(self._file, io.BytesIO):
      self._failed = True
      with reaching(self._path, writing=True):
        self._path.write_bytes(self._file.getvalue())
      self._failed = False

  def close(self) -> None:
    """Puts the rest, unless that has just failed after many trials, and closes the file."""
    try:
      if not self._failed:
        self.put()
    finally:
      self._file.close()
