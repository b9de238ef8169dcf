"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from vsr_jax.files import write_whole


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
