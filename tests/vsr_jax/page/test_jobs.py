"""The page's jobs: one at a time, watched, bounded, and ended with their session."""

from __future__ import annotations

import os
import pathlib
import shutil
import time

import pytest

from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import progress
from vsr_jax.errors import UserError
from vsr_jax.page import jobs
from vsr_jax.page.jobs import Job, Queue, make_job
from vsr_jax.page.uploads import Limits, take_upload
from vsr_jax.page.visits import Visits

BAR = r"printf 'restoring:  50%%|## | 1/2 [00:01<00:03,  1.0s/frame]\r' >&2"


def wait_for(condition, seconds=20.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.fixture
def shell_job(tmp_path):
  """Makes jobs whose commands are run by the shell."""
  count = 0

  def make(*scripts):
    nonlocal count
    count += 1
    folder = tmp_path / f"job_{count}"
    folder.mkdir()
    commands = [["/bin/sh", "-c", script] for script in scripts]
    return Job(folder, commands, folder / "restored.mp4")

  return make


def ended(queue, job):
  queue.add(job)
  wait_for(lambda: job.has_ended)
  return job


def test_what_commands_print_is_the_progress(capsys):
  job = Job(pathlib.Path("job"), [], pathlib.Path("job/restored.mp4"))
  with progress.Clock() as clock, progress.bar("finding faces", 3) as bar:
    for _ in range(3):
      bar.update()
      bar.refresh()
  for line in capsys.readouterr().err.replace("\r", "\n").splitlines():
    job.read(line)
  assert (job.what, job.done, job.total, job.left) == ("finding faces", 3, 3, "00:00")
  for line, compiling in (
    ("restoring:   0%|    | 0/3 [00:00<?, ?frame/s]", ""),
    ("compiling for 64x48 (once a size)", "compiling for 64x48 (once a size)"),
    ("restoring:   0%|    | 0/3 [00:08<?, ?frame/s]", "compiling for 64x48 (once a size)"),
    ("restoring:  33%|#   | 1/3 [00:09<00:02,  1.00s/frame]", ""),
  ):
    job.read(line)
    assert (job.compiling, job.left) == (compiling, "00:02" if job.done else "")
  job.read("note: restoring with the demonstration weights")
  job.read("note: restoring with the demonstration weights")
  assert job.notes == ["note: restoring with the demonstration weights"]
  clock.began -= 6
  took = clock.speed(3)
  job.read(
    f"restored.mp4: 3 frames of 64x48, 2 face tracks, 1 frames without a face{took} (aligning 1 s)"
  )
  job.seconds = 7
  assert job.numbers() == [
    ("frames", "3"),
    ("size", "64x48"),
    ("face tracks", "2"),
    ("frames without a face", "1"),
    ("restoring", took.split(", ")[0].removeprefix(" in ")),
    ("speed", took.split(", ")[1]),
    ("in all", "7.0 s"),
  ]


def test_jobs_run_one_at_a_time_in_their_order(tmp_path, shell_job):
  log = tmp_path / "log"
  with Queue(tmp_path, Limits()) as queue:
    made = [
      shell_job(f"echo {i} begins >> {log}; sleep 0.1; echo {i} ends >> {log}") for i in range(3)
    ]
    for job in made:
      queue.add(job)
    wait_for(lambda: all(job.has_ended for job in made))
  assert [job.state for job in made] == ["done"] * 3
  assert log.read_text().split("\n")[:-1] == [
    f"{i} {what}" for i in range(3) for what in ("begins", "ends")
  ]


def test_a_job_that_runs_and_one_that_waits_are_stopped(tmp_path, shell_job):
  marked = tmp_path / "marked"
  with Queue(tmp_path, Limits()) as queue:
    runs = shell_job(f"{BAR}; sleep 60 & wait", f"touch {marked}")
    waits, last = shell_job(f"touch {marked}"), shell_job("true")
    for job in (runs, waits, last):
      queue.add(job)
    wait_for(lambda: runs.total)
    assert (runs.what, runs.done, runs.total, runs.left) == ("restoring", 1, 2, "00:03")
    assert (queue.ahead(waits), queue.ahead(last)) == (1, 2)
    queue.stop(waits, "cancelled")
    assert waits.state == "stopped"
    assert queue.ahead(last) == 1
    queue.stop(runs, "cancelled")
    wait_for(lambda: last.has_ended)
  assert (runs.state, runs.reason, last.state) == ("stopped", "cancelled", "done")
  assert not marked.exists()
  assert not runs.folder.exists()
  assert not waits.folder.exists()
  assert last.folder.exists()


def test_a_command_that_ignores_sigterm_is_killed(tmp_path, shell_job, monkeypatch):
  monkeypatch.setattr(jobs, "_PATIENCE", 0.2)
  with Queue(tmp_path, Limits()) as queue:
    job = shell_job(f"trap '' TERM; {BAR}; while true; do sleep 1; done")
    queue.add(job)
    wait_for(lambda: job.total)
    queue.stop(job, "cancelled")
    wait_for(lambda: job.has_ended)
  assert job.state == "stopped"


@pytest.mark.parametrize(
  ("script", "message"),
  [
    ("echo note: x; echo 'error: the uploaded file: is empty; replace it' >&2; exit 2",
     "the uploaded file: is empty; replace it"),
    ("kill -9 $$", "the system ended it, probably for want of memory; "),
    ("echo Traceback; exit 1", "the restore command broke down; "),
    ("cd /; exec no-such-command", "the restore command broke down; "),
  ],
)  # fmt: skip
def test_a_failure_is_one_line_and_leaves_nothing(tmp_path, shell_job, capfd, script, message):
  with Queue(tmp_path, Limits()) as queue:
    job = ended(queue, shell_job(script, f"touch {tmp_path}/second"))
  assert (job.state, job.message[: len(message)]) == ("failed", message)
  assert list(tmp_path.iterdir()) == []
  if "broke down" in message:  # the reason is for whoever serves the page
    assert job.lines[0] in capfd.readouterr().err


def test_a_command_that_is_missing_does_not_end_the_queue(tmp_path, shell_job, capfd):
  with Queue(tmp_path, Limits()) as queue:
    job = shell_job()
    job.commands = [["/no/such/command"]]
    assert ended(queue, job).state == "failed"
    assert "/no/such/command" in capfd.readouterr().err
    assert ended(queue, shell_job("true")).state == "done"


def test_time_memory_and_attention_are_bounded(tmp_path, shell_job, monkeypatch):
  sleep = "sleep 60 & wait"
  for limits, seconds, message in (
    (Limits(minutes=1e-3), 0, "it took more than 0.001 minutes; "),
    (Limits(gigabytes=1e-5), 0, "it took more than 1e-05 GB of memory; "),
    (Limits(), 1e3, "nobody looks at it any more"),
  ):
    with Queue(tmp_path, limits) as queue:
      job = shell_job(sleep)
      job.seen -= seconds
      assert ended(queue, job).state == "stopped"
    assert job.reason.startswith(message)


def test_a_queue_that_is_full_or_closed_keeps_nothing(tmp_path, shell_job):
  with Queue(tmp_path, Limits(waiting=1)) as queue:
    running, waiting, refused = (shell_job("sleep 60") for _ in range(3))
    queue.add(running)
    queue.add(waiting)
    with pytest.raises(UserError, match="1 clips are waiting already"):
      queue.add(refused)
    assert not refused.folder.exists()
    wait_for(lambda: running.state == "running")
  assert [job.state for job in (running, waiting)] == ["stopped"] * 2
  assert list(tmp_path.iterdir()) == []


def test_what_is_old_is_deleted(tmp_path, shell_job):
  with Queue(tmp_path, Limits(kept=10)) as queue:
    runs, done = shell_job("sleep 60 & wait"), shell_job("true")
    ended(queue, done)
    queue.add(runs)
    (tmp_path / "new").mkdir()
    for path in (runs.folder, done.folder):
      os.utime(path, (0, 0))
    queue.sweep()
    assert {path.name for path in tmp_path.iterdir()} == {runs.folder.name, "new"}


def test_a_session_has_one_clip_and_one_job_and_takes_them_along(tmp_path, monkeypatch):
  path, root = tmp_path / "x.mp4", tmp_path / "root"
  encode(path, moving_waves(3))
  root.mkdir()
  chosen = {"weights": "shipped", "tile": "automatic", "deinterlace": False}
  monkeypatch.setattr(jobs, "_environment", lambda: {"PATH": "/nowhere"})
  monkeypatch.setattr(jobs.sys, "executable", "/bin/true")
  with Queue(root, Limits()) as queue:
    visits = Visits(queue, root, Limits(), {"fmanet": {"shipped": None}})
    key = ("session", "fmanet")
    with pytest.raises(UserError, match="no clip yet"):
      visits.start(key, chosen, 0, 1)
    visits.take(key, path)
    upload = visits.take(key, path)
    assert [p.name for p in root.iterdir()] == [upload.folder.name]
    job = visits.start(key, chosen, 0, 0.12)
    assert job.commands[0][3:] == [
      *("fmanet_jax.restore", "the uploaded file", "restored.mp4", "--max-pixels=2073600"),
      "--frames=0:3",
    ]
    wait_for(lambda: job.has_ended)
    second = visits.start(key, chosen, 0, 0.12)
    assert not job.folder.exists()
    with pytest.raises(UserError, match="no clip yet"):
      visits.start(("another", "fmanet"), chosen, 0, 1)
    visits.leave("another")
    assert upload.folder.exists()
    wait_for(lambda: second.has_ended)
    assert second.state == "done"
    visits.leave("session")
    assert list(root.iterdir()) == []
    assert visits.job(key) is None


def test_an_upload_that_was_deleted_is_missed_in_one_line(tmp_path):
  path, root = tmp_path / "x.mp4", tmp_path / "root"
  encode(path, moving_waves(1))
  root.mkdir()
  upload = take_upload(path, root, Limits())
  shutil.rmtree(upload.folder)
  with pytest.raises(UserError, match="give it again"):
    make_job("fmanet", upload, [], [], root)
  assert list(root.iterdir()) == []
