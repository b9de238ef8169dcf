"""Commands that are killed at random moments, and two at once that write to one place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tests.data_prep import layouts
from tests.data_prep.helpers import write_clip_set, write_flow
from tests.fuzz.runner import DONE, FAILED, REFUSED, Outcome
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import video
from vsr_jax.data_prep import built, clip_set, flow_store

ROOT = pathlib.Path(__file__).parents[2]
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_TRAINING = (
  "fmanet_jax.train",
  "--config",
  str(ROOT / "configs/fmanet/smoke.py:degradation"),
  "--config.train.checkpoint_every=1",
  "--config.data.crop=8",
)


@dataclasses.dataclass(frozen=True)
class Job:
  """A command that is killed and run again.

  Attributes:
    name: of the command.
    command: for an output, the module and its arguments.
    result: for an output, what must be the same as that of a run that nobody disturbed.
  """

  name: str
  command: Callable[[pathlib.Path], Sequence[str]]
  result: Callable[[pathlib.Path], object]


def jobs(folder: pathlib.Path) -> list[Job]:
  """Makes the inputs of the commands below a folder, and lists these."""
  videos, labels, downloads = (folder / name for name in ("videos", "labels", "downloads"))
  videos.mkdir(parents=True)
  for name in ("street.mp4", "river.mp4"):
    encode(videos / name, moving_waves(10, 256, 256), "libx264")
  data = folder / "data"
  write_clip_set(data, {"alley": 6, "beach": 8})
  for name, length in (("alley", 6), ("beach", 8)):
    write_flow(data, name, length, 3, 1)
    (labels / name).mkdir(parents=True)
    for i in range(length):
      for k in (i - 1, i + 1):
        flow = np.full((24, 32, 2), k - i, np.float32)
        np.save(labels / name / f"{i:08d}_{k:08d}.npy", flow)
  layouts.write_gopro(downloads)

  def label(out: pathlib.Path) -> Sequence[str]:
    if not out.exists():
      write_clip_set(out, {"alley": 6, "beach": 8})
    return ("vsr_jax.data_prep.flow_labels", str(out), "--released", str(labels))

  prepared = sorted(map(str, videos.iterdir()))
  return [
    Job(
      "train", lambda out: (*_TRAINING, f"--config.data.root={data}", f"--workdir={out}"), losses
    ),
    Job(
      "prepare", lambda out: ("vsr_jax.data_prep.prepare", *prepared, "--out", str(out)), contents
    ),
    Job("flow_labels", label, lambda out: contents(out / flow_store.FOLDER)),
    Job(
      "build",
      lambda out: (
        *("vsr_jax.data_prep.build", "gopro", "--manual-dir", str(downloads)),
        *("--data-dir", str(out)),
      ),
      built_clips,
    ),
  ]


def losses(workdir: pathlib.Path) -> list[dict]:
  """The logged values of a run by step, without times; steps done twice must agree."""
  rows = {}
  for line in (workdir / "log.jsonl").read_text().splitlines():
    row = json.loads(line)
    if "loss" in row:
      kept = {k: v for k, v in row.items() if "second" not in k}
      assert rows.setdefault(row["step"], kept) == kept, f"step {row['step']} differs when repeated"
  return [rows[step] for step in sorted(rows)]


def contents(folder: pathlib.Path) -> dict[str, str]:
  """The files below a folder, but for locks, and hashes of what they hold."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and not path.name.startswith(".")
  }


def built_clips(data_dir: pathlib.Path) -> dict[str, str]:
  """Hashes of a built set's clips; its files hold them in blocks of no certain size."""
  folder = built.find_folder("gopro", data_dir)
  return {
    f"{split} {clip['name']}": hashlib.sha256(
      b"".join(frame for frames in source[i].streams.values() for frame in frames)
    ).hexdigest()
    for split in built.splits(folder)
    for source in [built.Records(folder, split)]
    for i, clip in enumerate(source.clips)
  }


def kill_at_random(
  folder: pathlib.Path, job: Job, count: int, rng: np.random.Generator
) -> Iterator[Outcome]:
  """Kills a command `count` times, and lets it finish afterwards each time."""
  began = time.monotonic()
  code, said = run(job.command(folder / job.name / "undisturbed"))  # compiles, too
  if code:
    yield Outcome(f"kills: {job.name}, undisturbed", FAILED, said, time.monotonic() - began, 0)
    return
  began = time.monotonic()
  expected = job.result(folder / job.name / "undisturbed")
  run(job.command(folder / job.name / "timed"))
  usual = time.monotonic() - began
  for i in range(count):
    out = folder / job.name / str(i)
    number = _SIGNALS[rng.integers(len(_SIGNALS))]
    after = float(rng.uniform(0.1, 1.0)) * usual
    name = f"kills {i}: {job.name} by {number.name} after {after:.1f} of {usual:.1f} s"
    began = time.monotonic()
    kind, said = _kill_and_rerun(job, out, number, after, expected)
    yield Outcome(name, kind, said, time.monotonic() - began, 0)


def _kill_and_rerun(
  job: Job, out: pathlib.Path, number: signal.Signals, after: float, expected: object
) -> tuple[str, str]:
  code, said = run(job.command(out), number, after)
  if code not in (0, 2, 130, -number) or "Traceback" in said:
    return FAILED, f"ended with {code}\n{said}"
  code, said = run(job.command(out))
  if code:
    return FAILED, f"the run after it ended with {code}\n{said}"
  try:
    if job.result(out) != expected:
      return FAILED, "the result differs from that of an undisturbed run"
  except AssertionError as e:
    return FAILED, str(e)
  partial = [str(path) for path in out.rglob("*.part*")]
  return (FAILED, f"left behind: {partial}") if partial else (DONE, "")


def run(
  command: Sequence[str], number: signal.Signals | None = None, after: float = 0
) -> tuple[int, str]:
  """Runs a module; sends it a signal after some seconds, if it still runs.

  Returns:
    Its exit code, and the end of what it printed to stderr, or what it left running.
  """
  with _start(command) as process:
    try:
      if number is not None:
        try:
          process.wait(after)
        except subprocess.TimeoutExpired:
          process.send_signal(number)
      process.wait(600)
      left = _still_running(process.pid)
      if left:
        os.killpg(process.pid, signal.SIGKILL)
        return 1, f"left running: {left}"
      said = process.communicate()[1]
    finally:
      process.kill()
  return process.returncode, said[-2000:]


def _start(command: Sequence[str]) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", *command],
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    errors="replace",
    start_new_session=True,
  )


def _still_running(session: int) -> list[str]:
  """Processes of a session that have not ended within five seconds."""
  end = time.monotonic() + 5
  while (left := _processes_of(session)) and time.monotonic() < end:
    time.sleep(0.1)
  return left


def _processes_of(session: int) -> list[str]:
  found = []
  for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdecimal():
      try:
        state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        if int(of) == session and state != "Z":
          found.append((entry / "cmdline").read_text().replace("\0", " ")[:200])
      except OSError:  # it ended meanwhile
        pass
  return found


def two_at_once(folder: pathlib.Path) -> Iterator[Outcome]:
  """Pairs of commands that write to one place at once: each ends well or is refused."""
  folder.mkdir(parents=True)
  for name, images in (("one", moving_waves(40, 64, 64)), ("two", 255 - moving_waves(40, 64, 64))):
    encode(folder / f"{name}.mp4", images, "libx264")
  data = folder / "data"
  write_clip_set(data, {"alley": 6, "beach": 8})
  for name, length in (("alley", 6), ("beach", 8)):
    write_flow(data, name, length, 3, 1)

  for out in (folder / "out.mp4", folder / "out_frames"):
    pair = [
      ("keep_jax.restore", "--no-network", "--aligned", str(folder / f"{name}.mp4"), str(out))
      for name in ("one", "two")
    ]
    yield _pair(f"pairs: two restores to one {out.name}", pair, lambda out=out: _whole(out), (0, 0))
  train = (*_TRAINING, f"--config.data.root={data}", f"--workdir={folder / 'run'}")
  yield _pair(
    "pairs: two trainers in one folder", [train, train], lambda: losses(folder / "run"), (0, 2)
  )
  (folder / "sources").mkdir()
  encode(folder / "sources" / "river.mp4", moving_waves(10, 256, 256), "libx264")
  source, out = folder / "sources" / "river.mp4", folder / "set"
  prepare = ("vsr_jax.data_prep.prepare", str(source), "--out", str(out))
  yield _pair(
    "pairs: two preparations of one set", [prepare, prepare], lambda: clip_set.read_index(out), None
  )


def _pair(
  name: str,
  commands: Sequence[Sequence[str]],
  check: Callable[[], object],
  codes: tuple[int, int] | None,
) -> Outcome:
  began = time.monotonic()
  processes = [_start(command) for command in commands]
  said = [process.communicate(timeout=600)[1] for process in processes]
  found = tuple(sorted(process.returncode for process in processes))
  kind, text = DONE, "\n".join(said)
  if "Traceback" in text or found not in ((0, 0), (0, 2)) or (codes and found != codes):
    kind, text = FAILED, f"ended with {found}\n{text}"
  else:
    try:
      check()
    except Exception as e:  # whatever it is, the result is no good
      kind, text = FAILED, f"{type(e).__name__}: {e}"
  if kind == DONE and 2 in found:
    kind = REFUSED
  return Outcome(name, kind, text[-2000:], time.monotonic() - began, 0)


def _whole(out: pathlib.Path) -> None:
  """Raises `AssertionError` unless an output is one of the two clips, whole, and alone."""
  with video.open_reader(str(out)) as reader:
    frames = [frame.image for frame in reader]
    assert reader.warning is None
  clip = moving_waves(40, 64, 64)
  small = np.stack(frames)[:, 4::8, 4::8]  # an aligned face comes out eight times as large
  distances = [np.abs(small - c.astype(float)).mean() for c in (clip, 255 - clip)]
  assert min(distances) < 8, f"neither of the two: {distances}"
  left = [path.name for path in out.parent.iterdir() if ".part" in path.name]
  assert not left, f"left behind: {left}"
