"""What hosts of one run tell of each other; test_loop.py starts two."""

from __future__ import annotations

import json

import jax
import pytest

from vsr_jax.errors import UserError
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


def test_processes_that_do_not_find_each_other_are_told_the_options(monkeypatch):
  def initialize(*_, **__):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  with pytest.raises(UserError, match=r"address should be defined\.; .* give --coordinator HOST"):
    hosts.join()


def test_texts_of_all_processes_come_in_their_order():
  assert hosts._gather("vm ü") == ["vm ü"]
