"""Sweeps: what is planned and shared, done and resumed, by a trainer that only pretends to."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import sys

import pytest

from vsr_jax import sweep
from vsr_jax.errors import Terminated
from vsr_jax.locks import locked
from vsr_jax.sweeps import checks, record, table, work

TABLES = {name: f"configs/{name}/ablations.py" for name in ("fmanet", "keep")}
DATA = {"path": "data", "clips": 2, "frames": 14, "fingerprint": 5}


class Fake:
  """A trainer or evaluation that is done when it is looked at; it logs its steps."""

  calls: list[list[str]]
  fail: dict[str, str]  # by a part of its command, what it says at its end
  slow: bool
  at_once: int

  def __init__(self):
    self.calls, self.fail, self.slow, self.at_once, self.running = [], {}, False, 0, 0
    self.environments, self.stopped = [], []

  def __call__(self, command, environment, out):
    self.calls.append(list(command))
    self.environments.append(environment)
    self.running += 1
    self.at_once = max(self.at_once, self.running)
    return FakeProcess(self, command, out)


class FakeProcess:
  def __init__(self, fake, command, out):
    self.fake, self.command, self.out, self.looks = fake, list(command), out, 0

  def poll(self):
    self.looks += 1
    if self.looks < 3 or self.fake.slow:
      return None
    self.fake.running -= 1
    for part, said in self.fake.fail.items():
      if part in " ".join(self.command):
        self.out.write(f"\r 10%|#  |\nerror: {said}\n".encode())
        self.out.flush()
        return 2
    if "--workdir" in self.command:
      run = pathlib.Path(self.command[self.command.index("--workdir") + 1])
      (run / "checkpoints" / str(steps_of(self.command))).mkdir(parents=True)
      (run / "log.jsonl").write_text('{"step": 4, "seconds": 1}\n')
    else:
      folder = pathlib.Path(self.command[self.command.index("--out") + 1])
      folder.mkdir(parents=True, exist_ok=True)
      (folder / "metrics.json").write_text('{"complete": true}')
    return 0

  def wait(self):
    self.fake.running -= 1
    return 2

  def send_signal(self, number):
    self.fake.stopped.append(number)


def steps_of(command):
  file, _, variant = command[command.index("--config") + 1].partition(":")
  return table.load(file).make(variant).steps


@pytest.fixture
def fake(monkeypatch):
  made = Fake()
  monkeypatch.setattr(work, "launch", made)
  monkeypatch.setattr(work, "PAUSE", 0)
  monkeypatch.setattr(checks, "check_all", lambda *_: checks.Found({}, DATA, DATA))
  return made


@pytest.fixture
def run(run_main, tmp_path, fake):
  """Runs a sweep of FMA-Net at smoke size in "out"."""

  def run(rows="fma_net,sft", *arguments, system="fmanet", code=0, data="data"):
    given = ["--config", TABLES[system], "--rows", rows, "--budget", "smoke"]
    given += ["--out", tmp_path / "out", *(["--config.data.validation", data] if data else [])]
    return run_main(sweep.main, *given, *arguments, code=code)

  return run


def row(tmp_path, path):
  return json.loads((tmp_path / "out" / path / "row.json").read_text())


def test_a_sweep_trains_and_scores_by_ordinary_commands(run, fake, tmp_path):
  said = run("fma_net,sft,end_to_end", "--seeds", "0", "--evaluate-options", "--frames 3").out
  out = tmp_path / "out"
  modules = [call[1:3] for call in fake.calls]
  assert modules.count(["-m", "fmanet_jax.train"]) == 4
  assert modules.count(["-m", "fmanet_jax.evaluate"]) == 3
  assert fake.calls[0] == [
    sys.executable,
    "-m",
    "fmanet_jax.train",
    "--config",
    "configs/fmanet/ablations.py:fma_net,degradation,smoke",
    "--workdir",
    f"{out}/fma_net/0/degradation",
    "--config.data.validation=data",
    "--config.seed=0",
  ]
  scored = next(call for call in fake.calls if f"{out}/sft/0/joint" in call and "data" in call)
  assert scored[3:] == [
    *("data", "--checkpoint", f"{out}/sft/0/joint", "--frames", "3"),
    *("--out", f"{out}/sft/0/evaluation"),
  ]
  told = row(tmp_path, "sft/0")
  assert told["state"] == "done"
  assert told["runs"] == {"degradation": "fma_net/0/degradation", "joint": "sft/0/joint"}
  assert told["seconds"].keys() == told["commands"].keys() == {"degradation", "joint", "evaluation"}
  assert "3 of 3 rows and seeds are done" in said
  made = json.loads((out / "sweep.json").read_text())
  assert made["rows"]["end_to_end"] == {"stage": "end_to_end"}
  assert (made["base"], made["seeds"], made["data"]["training"]) == ("fma_net", [0], DATA)
  assert (out / "sft/0/joint.txt").read_text().startswith("$ ")


def test_hosts_do_their_parts_in_one_folder(run, fake, tmp_path):
  for part in ("1/3", "2/3"):
    run("fma_net,sft,n1", "--part", part)
  assert len(fake.calls) == 2 + 3 + 3
  assert all(row(tmp_path, f"{name}/0")["state"] == "done" for name in ("fma_net", "sft", "n1"))
  assert "part 3 of 3: nothing to do" in run("fma_net,sft,n1", "--part", "3/3").out
  assert len(json.loads((tmp_path / "out/sweep.json").read_text())["rows"]) == 3


def test_a_check_lists_the_commands_and_trains_nothing(run, fake, tmp_path):
  said = run("n1", "--check").out.splitlines()
  assert [line.split()[2] for line in said[1:]] == ["fmanet_jax.train"] * 2 + [
    "fmanet_jax.evaluate"
  ]
  assert fake.calls == []
  assert not (tmp_path / "out").exists()


def test_what_is_there_is_kept_and_rows_and_seeds_are_added(run, fake, tmp_path):
  run("sft")
  assert len(fake.calls) == 3
  run("sft")
  assert len(fake.calls) == 3
  run("fma_net", "--seeds", "0,1")  # whose stage 1 is there for seed 0
  assert len(fake.calls) == 3 + 2 + 3
  made = json.loads((tmp_path / "out/sweep.json").read_text())
  assert list(made["rows"]) == ["fma_net", "sft"]
  assert made["seeds"] == [0, 1]


def test_a_row_that_fails_does_not_end_the_others_and_is_tried_again(run, fake, tmp_path):
  fake.fail = {"sft,joint": "the step is not finite; lower the rate"}
  failed = run(code=2)
  assert re.search(r"sft/0 failed, for the reasons above", failed.err)
  told = row(tmp_path, "sft/0")
  assert (told["state"], told["stage"]) == ("failed", "joint")
  assert told["reason"].startswith("the step is not finite; lower the rate (see ")
  assert row(tmp_path, "fma_net/0")["state"] == "done"
  before, fake.fail = len(fake.calls), {}
  run()
  assert len(fake.calls) == before + 2
  assert row(tmp_path, "sft/0") | {"state": "done", "reason": None} == row(tmp_path, "sft/0")


def test_all_rows_that_share_a_run_fail_with_it(run, fake, tmp_path):
  fake.fail = {"fma_net,degradation": "no space left on the disk"}
  run("fma_net,sft,n1", code=2)
  states = {name: row(tmp_path, f"{name}/0") for name in ("fma_net", "sft", "n1")}
  assert [told["state"] for told in states.values()] == ["failed", "failed", "done"]
  assert states["sft"]["stage"] == "degradation"
  assert "no space left" in states["sft"]["reason"]


def test_a_row_that_cannot_be_trained_is_told_before_anything_is_trained(
  run, fake, tmp_path, monkeypatch
):
  wrong = {"n1/0/joint": "model.flows = 1: does not fit"}
  monkeypatch.setattr(checks, "check_all", lambda *_: checks.Found(wrong, DATA, DATA))
  assert "n1/0: cannot be trained: model.flows = 1" in run("n1,sft", code=2).err
  assert not [call for call in fake.calls if any("n1," in word for word in call)]
  assert row(tmp_path, "n1/0")["reason"] == "model.flows = 1: does not fit"
  assert row(tmp_path, "sft/0")["state"] == "done"
  fake.calls.clear()
  said = run("n1", code=2)
  assert fake.calls == []
  assert said.err == "error: no row can be trained: model.flows = 1: does not fit\n"


def test_an_interrupted_sweep_lets_its_trainers_save_and_goes_on_later(
  run, fake, tmp_path, monkeypatch
):
  fake.slow = True
  looks = iter([None, None])

  def sleep(_):
    if next(looks, "end") == "end":
      raise Terminated

  monkeypatch.setattr(work.time, "sleep", sleep)
  run("fma_net,n1", "--parallel", "2", code=2)
  assert fake.stopped == [signal.SIGTERM] * 2
  assert row(tmp_path, "fma_net/0")["state"] == "waiting"
  monkeypatch.undo()


def test_processes_at_a_time_get_devices_in_turn(run, fake):
  run("fma_net,n1,n5,k10", "--parallel", "3", "--devices", "4,6")
  assert fake.at_once == 3
  seen = [environment["CUDA_VISIBLE_DEVICES"] for environment in fake.environments[:3]]
  assert seen == ["4", "6", "4"]
  assert fake.environments[0]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
  assert work.environment_of(1, 2, ["0", "1"]).get("XLA_PYTHON_CLIENT_MEM_FRACTION") is None
  assert work.environment_of(0, 4, []) == {}


def test_the_time_left_is_told_once_something_is_known(tmp_path):
  tasks = {
    path: work.Task(path, ["x"], 4, need)
    for path, need in (("a/0/degradation", None), ("a/0/joint", "a/0/degradation"))
  }
  worker = work.Worker(tmp_path, [], tasks, 1, [], Fake())
  assert worker._seconds_left({}) is None
  tasks["a/0/degradation"].state, tasks["a/0/degradation"].seconds = record.DONE, 40.0
  assert worker._seconds_left({}) == 40
  assert worker._seconds_left({"a/0/joint": 3}) == 10
  assert [work.as_time(x) for x in (42, 1000, 19_000)] == ["42 s", "17 min", "5 h 17 min"]


def test_why_a_process_ended(tmp_path):
  log = tmp_path / "log.txt"
  log.write_bytes(b"$ python\n50%|##\rerror: a.png: damaged; remove it\n")
  assert work.why(log, 2) == "a.png: damaged; remove it"
  assert work.why(log, -9) == "ended by SIGKILL, for want of memory perhaps"
  log.write_text("$ python\nTraceback\nValueError: \x1b[1mno\n")
  assert work.why(log, 1) == "ValueError: [1mno"
  assert work.why(tmp_path / "missing", 3) == "ended with code 3"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--rows", "n2"], "--rows 'n2': there is none; name some of fma_net, n1,"),
    (["--seeds", "0,-1"], "give whole numbers, such as 0,1,2"),
    (["--seeds", "0,x"], "'0,x': give whole numbers"),
    (["--seeds", "4294967296"], "none above 4294967295"),
    (["--stages", "fusion"], "--stages 'fusion': there is none; name some of degradation, joint"),
    (["--stages", "degradation"], "row 'end_to_end' goes through end_to_end; add one of them"),
    (["--rows", "n1", "--stages", "joint"], "starts from a run of 'degradation'; add that to"),
    (["--budget", "small"], "--budget small: must be one of paper, demo, smoke"),
    (["--part", "3/2"], "give a host's number and how many"),
    (["--parallel", "0"], "give a number from 1 to"),
    (["--length", "nan"], "'nan': give a number above 0, such as 0.25"),
    (["--out", "a,b"], "'a,b': runs start from there, name it without , and ="),
    (["--devices", "gpu"], "give numbers of accelerators"),
    (["--config.model.flws", "1"], "--config.model.flws: a recipe has no such field; the nearest"),
    (["--config.steps", "many"], "--config.steps 'many': must be like 4"),
    (["--config.seed", "3"], "--config.seed: the sweep sets it; give --seeds"),
    (["--n2.steps", "3"], "--n2.steps: must begin with one of --config., --degradation., "),
    (["--config.steps"], "--config.steps: give a value after it"),
    (["stray"], "'stray' belongs to no option"),
    (["--config", "nowhere.py"], "--config nowhere.py: no such table"),
    (["--config", "configs/fmanet/joint.py"], "is no table of ablations, it has no SYSTEM"),
    (["--out", ""], "'': a sweep is kept in a folder"),
    (["--out", "gs://bucket/x"], "a sweep is kept in a folder of a file system"),
  ],
)
def test_bad_arguments_are_told_in_one_line(run, fake, tmp_path, arguments, message):
  said = run("all", *arguments, code=2)
  assert message in said.err
  assert len(said.err.splitlines()) == 1
  assert fake.calls == []
  assert not (tmp_path / "out").exists()


def test_the_split_that_is_scored_is_the_one_that_is_checked(run, monkeypatch):
  asked = []

  def check_all(system, jobs, scored):
    asked.append(scored)
    return checks.Found({}, DATA, DATA)

  monkeypatch.setattr(checks, "check_all", check_all)
  run("n1", "--check")
  run("n1", "--check", "--evaluate-options", "--split val --save-frames x")
  assert asked == [("data", "test"), ("data", "val")]


def test_a_sweep_without_data_to_score_on_is_refused(run, fake):
  assert "give --evaluate DATA" in run(data=None, code=2).err
  assert fake.calls == []


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    (["--joint.steps", "9"], r"recipes joint \d+, not \d+"),
    (["--config.loss.flow", "0"], r"overrides loss.flow None, not 0"),
    (["--stages", "joint", "--config.init_from", "x"], r"with stages \[.*\], not \['joint'\]"),
    (["--evaluate-options", "--frames 2"], r"with evaluation arguments \['--by-m.*, not \['--fr"),
    (["--length", "2"], "with length 1.0, not 2.0"),
    (["--budget", "demo"], "with budget 'smoke', not 'demo'"),
    (["--config", TABLES["keep"], "--rows", "keep"], "with system 'fmanet', not 'keep'"),
  ],
)
def test_a_folder_of_another_sweep_is_refused(run, fake, tmp_path, changed, message):
  run("n1")
  before = (tmp_path / "out/sweep.json").read_bytes()
  calls = len(fake.calls)
  said = run("n1", *changed, code=2)
  assert re.search(rf"error: \S+out: holds a sweep {'.*' * 1}{message}", said.err), said.err
  assert "name another folder with --out" in said.err
  assert (tmp_path / "out/sweep.json").read_bytes() == before
  assert len(fake.calls) == calls


def test_other_data_are_refused(run, tmp_path, monkeypatch):
  run("n1")
  run("n1", "--config.data.root", "moved")  # where they lie does not count
  other = DATA | {"fingerprint": 6}
  monkeypatch.setattr(checks, "check_all", lambda *_: checks.Found({}, DATA, other))
  assert "fingerprints evaluation 5, not 6" in run("n1", code=2).err


def test_a_folder_of_something_else_or_a_damaged_one_is_refused(run, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "thesis.tex").touch()
  assert "out: holds thesis.tex and no sweep.json; name a new" in run("n1", code=2).err
  (out / "thesis.tex").unlink()
  (out / "sweep.json").write_text('{"version": 1, "ro')
  assert "sweep.json: damaged (not JSON" in run("n1", code=2).err
  (out / "sweep.json").unlink()
  with locked(out / "n1/0"):
    (out / "sweep.json").write_text("{}")
    assert "sweep.json: damaged" in run("n1", code=2).err


def test_what_was_left_half_written_is_done_again(run, fake, tmp_path):
  run("n1")
  out = tmp_path / "out/n1/0"
  (out / "joint.json").write_text('{"comm')  # only when and how it was made is lost
  (out / "evaluation/metrics.json").write_text('{"complete": false}')
  (out / "row.json").write_text("")
  assert "joint.json: damaged" in run("n1").err
  assert [call[2] for call in fake.calls] == ["fmanet_jax.train"] * 2 + ["fmanet_jax.evaluate"] * 2
  assert row(tmp_path, "n1/0")["state"] == "done"
  (out / "evaluation/metrics.json").write_text('{"comp')
  assert "metrics.json: damaged (not JSON" in run("n1", code=2).err


def test_a_row_that_another_call_works_on_is_refused(run, fake, tmp_path):
  run("n1")
  with locked(tmp_path / "out/n1/0"):
    assert "n1/0: another run is writing there" in run("n1,n5", code=2).err
