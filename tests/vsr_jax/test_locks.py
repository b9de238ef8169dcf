"""One run at a time writes to a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from vsr_jax import locks
from vsr_jax.errors import UserError
from vsr_jax.locks import locked
from vsr_jax.processes import Process


def write_lock(folder, **changes):
  """The lock of a run that is not there any more, or elsewhere."""
  process = dataclasses.replace(Process.current(), **changes)
  (folder / locks.NAME).write_text(json.dumps(locks._describe(process)))


def flock_is_missing(*_):
  raise OSError(95, "Operation not supported")


def test_a_second_run_is_refused_in_one_line_that_names_the_first(tmp_path):
  with locked(tmp_path / "new"):
    pattern = rf"new: another run is writing there \(process {os.getpid()} on \w+, since 2"
    with pytest.raises(UserError, match=pattern) as error, locked(tmp_path / "new"):
      pass
  assert "\n" not in str(error.value)
  with locked(tmp_path / "new"):  # and it is free again
    pass


def test_a_killed_run_s_lock_is_stale(tmp_path):
  program = (
    "import os, signal, sys; from vsr_jax import files, locks\n"
    "with locks.locked(sys.argv[1]):\n"
    "  open(files.part_name(sys.argv[1] + '/a'), 'w').close()\n"
    "  os.kill(os.getpid(), signal.SIGKILL)"
  )
  done = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
  assert done.returncode == -signal.SIGKILL
  assert len(os.listdir(tmp_path)) == 2
  with pytest.warns(UserWarning, match="a run that was killed had left it"), locked(tmp_path):
    assert os.listdir(tmp_path) == [locks.NAME]


def test_a_machine_that_the_kernel_s_lock_does_not_reach_counts(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, "_file_system", lambda folder: "nfs4")
  write_lock(tmp_path, host="far_away", pid=7)
  remedy = f"wait for it to end; if it ended, remove {re.escape(str(tmp_path))}/.lock"
  with pytest.raises(UserError, match=f"process 7 on far_away, .*{remedy}$"), locked(tmp_path):
    pass
  monkeypatch.setattr(locks, "_file_system", lambda folder: "ext4")  # a container that was renamed
  with locked(tmp_path):
    pass


def test_without_the_kernel_s_lock_a_living_process_counts(tmp_path, monkeypatch):
  monkeypatch.setattr(locks.fcntl, "flock", flock_is_missing)
  with locked(tmp_path), pytest.raises(UserError, match="another run"), locked(tmp_path):
    pass
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  write_lock(tmp_path, pid=ended.pid)
  with locked(tmp_path):
    pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": {"host": 1}}'])
def test_a_lock_that_says_nothing_is_free(tmp_path, text):
  (tmp_path / locks.NAME).write_text(text)
  with locked(tmp_path):
    pass


def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path, monkeypatch):
  mounts = tmp_path / "mounts"
  monkeypatch.setattr(locks, "_MOUNTS", mounts)
  space = str(tmp_path / "a b").replace(" ", r"\040")
  mounts.write_text(
    "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
    f"2 1 0:5 / {space} rw - nfs4 server:/data rw\n"
    f"3 1 0:6 / {tmp_path}/ab rw - xfs /dev/sdb rw\n"
  )
  found = [locks._file_system(tmp_path / name) for name in ("a b/c", "ab", "abc", ".")]
  assert found == ["nfs4", "xfs", "ext4", "ext4"]
  mounts.unlink()
  assert locks._file_system(tmp_path) == ""


def test_a_lock_that_cannot_be_written_names_its_file(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(locks, "_write", full)
  with pytest.raises(OSError, match=f"{re.escape(str(tmp_path))}/.lock"), locked(tmp_path):
    pass
