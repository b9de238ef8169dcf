"""The page's jobs, one at a time: restore commands as processes that are watched and stopped.

A clip is restored by `python -m SYSTEM.restore` in a process of its own, so that it can be ended
and its memory bounded; what it prints is the job's progress. Nothing in here needs gradio.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import vsr_jax
from vsr_jax import compare, files
from vsr_jax.errors import UserError
from vsr_jax.page.uploads import Limits, Upload

SYSTEMS = {"fmanet": "fmanet_jax", "keep": "keep_jax"}

_POLL = 0.25  # seconds between looks at a process
_PATIENCE = 10.0  # seconds that a process gets to end by itself
_UNWATCHED = 60.0  # seconds after which a job that nobody looks at is stopped
_SWEEP = 20.0  # seconds between looks at what is to be deleted
_LINES, _LONGEST = 40, 2000  # lines that a job keeps, and their characters

_PROGRESS = re.compile(
  r"(?P<what>[\w ]+): .*?(?P<done>\d+)/(?P<total>\d+) \[[\d:]+<(?P<left>[\d:?]+),"
)
_SUMMARY = re.compile(r"restored\.\w+: (?P<frames>\d+) frames of (?P<size>\d+x\d+)")
_FIGURES = {
  "face tracks": r", (\d+) face track",
  "frames without a face": r", (\d+) frames without a face",
  "restoring": r" in ([\d.]+ s)",
  "speed": r", ([\d.]+ (?:s/frame|frames/s))",
  "compiling": r" after (\d+ s) of compiling",
}


@dataclasses.dataclass(eq=False)
class Job:
  """The restoring of one clip.

  Attributes:
    folder: its own, in which its commands run.
    commands: they run one after the other.
    output: the restored clip or picture in the folder.
    state: "waiting", "running", "done", "failed" or "stopped".
    reason: why it is to stop; "" if it is not.
    message: why it failed.
    what: what it is doing, in a few words.
    done: frames of that, so far.
    total: frames of that; 0 if unknown.
    left: the time left for that, as minutes:seconds; "" if unknown.
    compiling: what the command says while it compiles; "" at other times.
    lines: the last lines that the commands printed.
    seconds: how long it took.
    seen: when somebody last looked at it, by `time.monotonic`.
  """

  folder: pathlib.Path
  commands: list[list[str]]
  output: pathlib.Path
  state: str = "waiting"
  reason: str = ""
  message: str = ""
  what: str = "starting"
  done: int = 0
  total: int = 0
  left: str = ""
  compiling: str = ""
  lines: collections.deque[str] = dataclasses.field(
    default_factory=lambda: collections.deque(maxlen=_LINES)
  )
  seconds: float = 0.0
  seen: float = dataclasses.field(default_factory=time.monotonic)

  @property
  def has_ended(self) -> bool:
    """Whether nothing more happens to it."""
    return self.state in ("done", "failed", "stopped")

  @property
  def notes(self) -> list[str]:
    """What the commands want the visitor to know, each once."""
    found = [line for line in list(self.lines) if line.startswith(("note: ", "warning: "))]
    return list(dict.fromkeys(found))

  @property
  def side_by_side(self) -> pathlib.Path | None:
    """The video that shows the clip before and after; None for a picture."""
    path = self.folder / compare.VIDEO
    return path if path.exists() else None

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Pictures before and after: their paths."""
    names = ((f"before_{i}.jpg", f"after_{i}.jpg") for i in range(compare.PAIRS))
    paths = [(str(self.folder / before), str(self.folder / after)) for before, after in names]
    return [pair for pair in paths if all(map(os.path.exists, pair))]

  def numbers(self) -> list[tuple[str, str]]:
    """What the restore command said of the result: names and values."""
    for line in list(self.lines):
      if found := _SUMMARY.match(line):
        rows = [("frames", found["frames"]), ("size", found["size"])]
        parts = {name: re.search(pattern, line) for name, pattern in _FIGURES.items()}
        rows += [(name, part[1]) for name, part in parts.items() if part]
        return [*rows, ("in all", f"{self.seconds:.1f} s")]
    return []

  def read(self, line: str) -> None:
    """Takes a line that a command printed."""
    if found := _PROGRESS.match(line):
      self.what, self.done, self.total = found["what"], int(found["done"]), int(found["total"])
      self.left = "" if "?" in found["left"] else found["left"]
      self.compiling = "" if self.done else self.compiling
    elif line.startswith("compiling "):
      self.compiling = line[:_LONGEST]
    elif line:
      self.lines.append(line[:_LONGEST])


def make_job(
  system: str, upload: Upload, options: Sequence[str], frames: Sequence[str], root: pathlib.Path
) -> Job:
  """Makes a job and its folder, with a copy of the upload.

  Args:
    system: one of `SYSTEMS`.
    upload: what is to be restored.
    options: from `uploads.restore_options`.
    frames: from `uploads.frame_options`.
    root: the folder that gets the job's.

  Raises:
    UserError: the upload is not there any more.
  """
  folder = root / f"job_{secrets.token_hex(16)}"
  folder.mkdir(mode=0o700)
  try:
    shutil.copyfile(upload.folder / upload.name, folder / upload.name)
  except FileNotFoundError as e:
    files.remove(str(folder))
    raise UserError(
      "the file is deleted already, as none stays here for long; give it again"
    ) from e
  output = "restored.png" if upload.info.is_folder else "restored.mp4"
  python = [sys.executable, "-P", "-m"]  # -P: no module is looked for in the job's folder
  shown = [option for option in options if option == "--deinterlace"]
  commands = [
    [*python, f"{SYSTEMS[system]}.restore", upload.name, output, *options, *frames],
    [*python, "vsr_jax.compare", upload.name, output, ".", *shown, *frames],
  ]
  return Job(folder, commands, folder / output)


class Queue:
  """Runs jobs one at a time, in the order in which they came; a context manager."""

  def __init__(self, root: pathlib.Path, limits: Limits):
    """Takes the folder of uploads and jobs, which is all the queue's own, and what a job may do."""
    self._root, self._limits = root, limits
    self._changed = threading.Condition()
    self._jobs: list[Job] = []  # the first one runs
    self._closed = False
    self._worker = threading.Thread(target=self._work, daemon=True)
    self._worker.start()

  def __enter__(self) -> Queue:
    return self

  def __exit__(self, *exception) -> None:
    with self._changed:
      self._closed = True
      for job in list(self._jobs):
        self._stop(job, "the page was closed")
      self._changed.notify_all()
    self._worker.join(2 * _PATIENCE)

  def add(self, job: Job) -> None:
    """Appends a job.

    Raises:
      UserError: too many wait; the job's folder is removed.
    """
    with self._changed:
      if len(self._jobs) <= self._limits.waiting:
        self._jobs.append(job)
        self._changed.notify_all()
        return
    files.remove(str(job.folder))
    raise UserError(f"{self._limits.waiting} clips are waiting already; try again later")

  def ahead(self, job: Job) -> int:
    """How many jobs come before one that waits."""
    with self._changed:
      return self._jobs.index(job) if job in self._jobs else 0

  def stop(self, job: Job, reason: str) -> None:
    """Takes a job out of the queue, or ends its process; one that has ended stays as it is."""
    with self._changed:
      self._stop(job, reason)

  def _stop(self, job: Job, reason: str) -> None:
    if job.has_ended:
      return
    job.reason = job.reason or reason
    if job.state == "waiting":
      self._end(job, "stopped")

  def _end(self, job: Job, state: str) -> None:
    """Takes a job out; of one without a result nothing is kept."""
    if job in self._jobs:
      self._jobs.remove(job)
    if state != "done":
      files.remove(str(job.folder))
    job.state = state

  def sweep(self) -> None:
    """Deletes what was uploaded or made too long ago, except for the jobs in the queue."""
    with self._changed:
      busy = {job.folder.name for job in self._jobs}
    before = time.time() - 60 * self._limits.kept
    for path in self._root.iterdir():
      with contextlib.suppress(OSError):
        if path.name not in busy and path.stat().st_mtime < before:
          files.remove(str(path))

  def _work(self) -> None:
    """In the thread: runs jobs until the queue is closed, and sweeps."""
    swept = time.monotonic()
    while not self._closed:
      with self._changed:
        if not self._jobs:
          self._changed.wait(1)
        job = self._jobs[0] if self._jobs else None
        if job:
          job.state = "running"
      if job:
        self._run(job)
      if time.monotonic() - swept > _SWEEP:
        swept = time.monotonic()
        self.sweep()

  def _run(self, job: Job) -> None:
    began = time.monotonic()
    try:
      for command in job.commands:
        if not job.message and not job.reason:
          job.message = self._run_command(job, command, began)
    except Exception as e:  # the next job must run all the same
      print(f"error: {job.folder}: {e}", file=sys.stderr)
      job.message = "the command could not be run; the log of the page tells why"
    job.seconds = time.monotonic() - began
    with self._changed:
      self._end(job, "stopped" if job.reason else "failed" if job.message else "done")

  def _run_command(self, job: Job, command: list[str], began: float) -> str:
    """Runs a command to its end; returns what went wrong, "" if nothing."""
    process = subprocess.Popen(
      command,
      cwd=job.folder,
      env=_environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      start_new_session=True,  # Ctrl-C ends the page, which ends the process
    )
    assert process.stdout
    with process.stdout:
      os.set_blocking(process.stdout.fileno(), False)
      text = b""
      while process.poll() is None:
        select.select([process.stdout], [], [], _POLL)
        read = process.stdout.read()
        text = _read_lines(job, text + (read or b""))
        if read == b"":  # it closed the pipe; select would not wait
          time.sleep(_POLL)
        job.reason = job.reason or self._why_stop(job, process.pid, began)
        if job.reason:
          _end_process(process)
      _read_lines(job, text + (process.stdout.read() or b"") + b"\n")
    return "" if process.returncode == 0 or job.reason else _failure(job, process.returncode)

  def _why_stop(self, job: Job, pid: int, began: float) -> str:
    """Why the job that runs must be stopped; "" if it may go on."""
    now = time.monotonic()
    if now - job.seen > _UNWATCHED:
      return "nobody looks at it any more"
    if now - began > 60 * self._limits.minutes:
      return f"it took more than {self._limits.minutes:g} minutes; take a shorter part"
    if _resident(pid) > 1e9 * self._limits.gigabytes:
      return (
        f"it took more than {self._limits.gigabytes:g} GB of memory; take smaller tiles or frames"
      )
    return ""


def _environment() -> dict[str, str]:
  """The commands find the packages where the page did, and print at once."""
  home = os.path.dirname(os.path.dirname(os.path.abspath(vsr_jax.__file__)))
  path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
  own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
  return {**os.environ, **own}


def _read_lines(job: Job, text: bytes) -> bytes:
  """Gives whole lines to the job; a progress bar ends one by returning the carriage."""
  *lines, rest = re.split(rb"[\r\n]+", text)
  for line in lines:
    job.read(line.decode(errors="replace").strip())
  return rest[-_LONGEST:]


def _end_process(process: subprocess.Popen[bytes]) -> None:
  """Lets a command clean up and end, or else kills it and all that it started."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(_PATIENCE)
      return


def _failure(job: Job, code: int) -> str:
  """Why a command ended, in a line for the visitor."""
  for line in reversed(job.lines):
    if line.startswith("error: "):
      return line.removeprefix("error: ")
  if code == -signal.SIGKILL:
    return "the system ended it, probably for want of memory; take smaller tiles or frames"
  print("\n".join(job.lines), file=sys.stderr)
  return "the restore command broke down; the log of the page tells why"


def _resident(pid: int) -> int:
  """Bytes of memory that a process holds; 0 where that is unknown."""
  try:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
  except (OSError, ValueError, IndexError):
    return 0
  return pages * os.sysconf("SC_PAGE_SIZE")
