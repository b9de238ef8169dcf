"""What hosts of one run tell of each other; test_loop.py starts two."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import jax
import pytest

from vsr_jax.errors import Terminated, UserError
from vsr_jax.train import hosts


@pytest.fixture
def three(monkeypatch):
  """Three processes, of which this one is "here"; the third one's config differs."""

  def gather(text):
    _, sums = json.loads(text)
    return [json.dumps(["here", sums]), json.dumps(["b", sums]), json.dumps(["c", other(sums)])]

  def other(sums):
    return sums | {name: sums[name] + 1 for name in sums if name == "config"}

  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(hosts, "_gather", gather)


def test_a_host_with_another_value_is_named(three):
  with pytest.raises(UserError, match=r"^c \(process 2\): another config than here \(process 0\)"):
    hosts.check_equal({"training data": {"a": 1}, "config": None})
  hosts.check_equal({"training data": {"a": 1}})


def test_one_host_has_nobody_to_agree_with_and_to_watch():
  hosts.check_equal({"config": 1})
  with hosts.watched():
    pass


@pytest.mark.parametrize(
  ("error", "word"),
  [
    (None, b"done"),
    (Terminated(), b"done"),
    (UserError("x"), b"failed"),
    (OSError("full"), b"failed"),
    (RuntimeError("x"), b""),
    (KeyboardInterrupt(), b""),
  ],
  ids=repr,
)
def test_a_process_says_how_it_leaves(monkeypatch, error, word):
  ours, theirs = socket.socketpair()

  @contextlib.contextmanager
  def connected():
    with ours:
      yield {ours: "b (process 1)"}

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(hosts, "_connected", connected)
  monkeypatch.setattr(hosts, "_watch", lambda *_: None)
  expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
  with theirs:
    with expected, hosts.watched():
      if error:
        raise error
    assert theirs.recv(99) == word


@pytest.mark.parametrize(
  ("word", "code", "line", "passed_on"),
  [
    (b"", hosts.LOST, "b (process 1) is gone; the run goes on from its last", b"b (process 1) is"),
    (b"failed", 2, "b (process 1) ended with an error, which it says", b"failed"),
    (b"c (process 2) is gone", hosts.LOST, "c (process 2) is gone", b"c (process 2) is gone"),
    (b"done", None, "", b""),
  ],
)
def test_who_is_gone_is_told_and_passed_on(monkeypatch, capfd, word, code, line, passed_on):
  class Ended(Exception):
    pass

  def end(with_code):
    codes.append(with_code)
    raise Ended

  codes = []
  monkeypatch.setattr(hosts.os, "_exit", end)
  monkeypatch.setattr(hosts, "_PATIENCE", 0)
  (b, far_b), (c, far_c) = socket.socketpair(), socket.socketpair()
  with b, far_b, c, far_c:
    far_b.sendall(word)
    far_b.shutdown(socket.SHUT_WR)
    links = {b: "b (process 1)"} if word == b"done" else {b: "b (process 1)", c: "c (process 2)"}
    with contextlib.suppress(Ended):
      hosts._watch(links, threading.Event())
    c.close()
    assert far_c.recv(99).startswith(passed_on)
  assert codes == ([] if code is None else [code])
  assert line in capfd.readouterr().err


def test_processes_that_do_not_find_each_other_are_told_the_options(monkeypatch):
  def initialize(*_, **__):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  with pytest.raises(UserError, match=r"address should be defined\.; .* give --coordinator HOST"):
    hosts.join()


def test_texts_of_all_processes_come_in_their_order():
  assert hosts._gather("vm ü") == ["vm ü"]
