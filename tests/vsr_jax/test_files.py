"""Files and folders appear whole or not at all, whoever else writes them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from vsr_jax import files
from vsr_jax.errors import UserError
from vsr_jax.files import (
  check_folder,
  check_place,
  part_name,
  remove_left,
  replace_folder,
  write_whole,
)


def test_what_was_there_is_replaced(tmp_path):
  path = tmp_path / "a.txt"
  write_whole(path, "old")
  write_whole(path, "ne\u0301w\n")
  assert path.read_text(encoding="utf-8") == "ne\u0301w\n"
  write_whole(path, b"\0\1")
  assert path.read_bytes() == b"\0\1"
  assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
  path = tmp_path / "a.txt"
  write_whole(path, "old")

  def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="No space left") as error:
    write_whole(path, "new")
  assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]


def in_threads(*targets) -> None:
  threads = [threading.Thread(target=target) for target in targets]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()


def test_two_that_write_one_file_leave_one_of_the_two(tmp_path):
  contents = [bytes([i]) * 1_000_000 for i in range(2)]
  failures = []

  def write(content):
    try:
      for _ in range(20):
        write_whole(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() in contents
    except BaseException as e:
      failures.append(e)

  in_threads(*[lambda content=content: write(content) for content in contents])
  assert not failures
  assert os.listdir(tmp_path) == ["a"]


def make_folder(path, names) -> str:
  os.mkdir(path)
  for name in names:
    open(os.path.join(path, name), "w").close()
  return str(path)


def test_two_that_replace_one_folder_leave_one_of_the_two(tmp_path):
  folder = str(tmp_path / "out")
  failures = []

  def write(name):
    try:
      for _ in range(100):
        part = make_folder(part_name(folder), [f"{name}{i}" for i in range(3)])
        replace_folder(part, folder)
    except BaseException as e:
      failures.append(e)

  in_threads(*[lambda name=name: write(name) for name in "ab"])
  assert not failures
  assert sorted(os.listdir(folder)) in (["a0", "a1", "a2"], ["b0", "b1", "b2"])
  assert os.listdir(tmp_path) == ["out"]


def test_an_older_folder_comes_back_when_it_cannot_be_replaced(tmp_path):
  folder = make_folder(tmp_path / "out", ["old"])
  with pytest.raises(FileNotFoundError):
    replace_folder(str(tmp_path / "nothing"), folder)
  assert os.listdir(folder) == ["old"]
  assert os.listdir(tmp_path) == ["out"]


@pytest.fixture
def parts_of_a_killed_run(monkeypatch):
  """A function that gives names as a process had them that has ended meanwhile."""
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  name = files.part_name

  def of_ended(path, kind=""):
    return name(path, kind).replace(f"-{os.getpid()}-", f"-{ended.pid}-")

  return of_ended


def test_parts_of_a_killed_run_are_removed_and_named(tmp_path, parts_of_a_killed_run):
  long = "é" * 110
  kept = [part_name(tmp_path / "out"), parts_of_a_killed_run(tmp_path / "other")]
  kept += [parts_of_a_killed_run(tmp_path / "out").replace("/out.", "/out.far_")]  # of elsewhere
  gone = [parts_of_a_killed_run(tmp_path / "out"), parts_of_a_killed_run(tmp_path / "out", ".old")]
  gone += [parts_of_a_killed_run(tmp_path / "out") + ".orbax-checkpoint-tmp"]
  for path in [*kept, *gone, tmp_path / "out", parts_of_a_killed_run(tmp_path / long)]:
    make_folder(path, ["a"])
  with pytest.warns(
    UserWarning, match=r"out\.\S*part\S* and 2 more: removed, a run that was killed"
  ):
    remove_left(tmp_path, "out")
  assert all(map(os.path.exists, kept))
  assert not any(map(os.path.exists, gone))
  with pytest.warns(UserWarning, match="é.*: removed"):
    remove_left(tmp_path, long)
  with pytest.warns(UserWarning, match="other"):
    remove_left(tmp_path)
  assert len(os.listdir(tmp_path)) == 3
  remove_left(tmp_path / "nowhere")


def test_a_part_of_a_living_process_with_a_dead_one_s_number_is_left_over(tmp_path):
  part = part_name(tmp_path / "out")
  start = files.Process.current().start
  if not start:
    pytest.skip("needs /proc")
  make_folder(part.replace(f"-{start}-", f"-{start - 1}-"), [])
  with pytest.warns(UserWarning, match="removed"):
    remove_left(tmp_path)
  assert os.listdir(tmp_path) == []


def test_an_older_folder_that_a_killed_run_moved_aside_comes_back(tmp_path, parts_of_a_killed_run):
  make_folder(parts_of_a_killed_run(tmp_path / "out", ".old"), ["old"])
  with pytest.warns(UserWarning, match="out: put back"):
    remove_left(tmp_path, "out")
  assert os.listdir(tmp_path / "out") == ["old"]


def test_somebody_else_s_file_in_a_shared_folder_is_refused(tmp_path, monkeypatch):
  (tmp_path / "out.mp4").touch()
  check_place(tmp_path / "out.mp4")
  os.chmod(tmp_path, 0o1777)
  check_place(tmp_path / "out.mp4")
  monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
  check_place(tmp_path / "new.mp4")
  with pytest.raises(UserError, match="out.mp4: is somebody else's and cannot be replaced"):
    check_place(tmp_path / "out.mp4")
  os.chmod(tmp_path, 0o777)
  check_place(tmp_path / "out.mp4")


@pytest.mark.parametrize("check", [check_place, check_folder])
def test_an_empty_path_is_refused(check):
  with pytest.raises(UserError, match="^'' names neither a file nor a folder"):
    check("")


def test_folders_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  check_folder(tmp_path / "new/folder")
  with pytest.raises(UserError, match="file: is a file; name a folder"):
    check_folder(tmp_path / "file")
  with pytest.raises(UserError, match="file/a/b: cannot be written, .*file is a file"):
    check_folder(tmp_path / "file/a/b")
  access = os.access
  monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path) and access(path, mode))
  with pytest.raises(UserError, match=r"new/folder: the folder \S+ cannot be written"):
    check_folder(tmp_path / "new/folder")
  with pytest.raises(UserError, match="cannot be written; choose another one"):
    check_place(tmp_path / "new")
  assert os.listdir(tmp_path) == ["file"]
