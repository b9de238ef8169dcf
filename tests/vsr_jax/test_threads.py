"""Ctrl-C while a read waits for a pipe or a disk that does not answer."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from fractions import Fraction

import pytest

from tests.vsr_jax.clips import encode, grey_levels
from vsr_jax import threads, video
from vsr_jax.video import decode


@pytest.fixture
def interrupted_soon():
  """Ctrl-C, as the kernel sends it, half a second from now; the test may take 5 seconds."""
  main = threading.main_thread().ident
  timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
  began = time.monotonic()
  timer.start()
  yield
  timer.cancel()
  assert time.monotonic() - began < 5


@pytest.mark.parametrize("opened", [False, True])
def test_a_pipe_that_never_writes_is_interrupted(tmp_path, opened, monkeypatch, interrupted_soon):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  os.mkfifo(tmp_path / "pipe")
  if opened:  # by somebody who then writes nothing
    other_end = os.open(tmp_path / "pipe", os.O_RDWR)
  with pytest.raises(KeyboardInterrupt):
    video.probe(str(tmp_path / "pipe"))
  if opened:
    os.close(other_end)
  assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("where", ["open", "read", "prefetch"])
def test_a_disk_that_does_not_answer_is_interrupted(tmp_path, monkeypatch, where, interrupted_soon):
  encode(tmp_path / "a.mp4", grey_levels(8))
  answered = threading.Event()  # waited for by a thread, as deaf to signals as a read in FFmpeg
  opened, bridged = decode.open_container, decode.bridged

  def slow_open(*args):
    answered.wait()
    return opened(*args)

  def slow_packets(container):
    for n, packet in enumerate(bridged(container)):
      if n == 6:
        answered.wait()
      yield packet

  name, slow = ("open_container", slow_open) if where == "open" else ("bridged", slow_packets)
  monkeypatch.setattr(decode, name, slow)

  def go_through():
    with video.open_reader(str(tmp_path / "a.mp4")) as reader:
      for _ in video.prefetch(reader) if where == "prefetch" else reader:
        pass

  try:
    with pytest.raises(KeyboardInterrupt):
      go_through()
  finally:
    answered.set()


def test_a_sink_that_does_not_answer_is_left_alone(interrupted_soon):
  answered = threading.Event()

  class SlowSink:
    aborted = False

    def write(self, image, time, duration):
      answered.wait()

    def abort(self):
      self.aborted = True

  sink = SlowSink()
  writer = video.Writer(sink, "a.mp4", 48, 64, Fraction(25))

  def write_all():
    for image in grey_levels(9):  # more than wait in line
      writer.write(image)

  try:
    with pytest.raises(KeyboardInterrupt):
      write_all()
    writer.abort()
    assert not sink.aborted  # another thread is still in it
  finally:
    answered.set()


def test_what_is_called_elsewhere_returns_and_raises_as_here():
  assert threads.interruptible(divmod, 7, 2) == (3, 1)
  with pytest.raises(ZeroDivisionError):
    threads.interruptible(divmod, 7, 0)
  with pytest.raises(StopIteration):
    threads.interruptible(next, iter(()))
