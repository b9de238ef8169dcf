"""Commands of an installation do what `python -m` of their modules does; shells complete them."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
import tomllib
import types

import pytest

from fmanet_jax import restore, train
from tests.test_house import ROOT, house_files
from vsr_jax import cli, completion, console, progress

# These make what ships; whoever uses it needs none of them.
MAKERS = {
  "fmanet_jax.demo_weights",
  "keep_jax.borders",
  "keep_jax.demo_weights",
  "vsr_jax.data_prep.demo_face_clip",
  "vsr_jax.data_prep.demo_faces",
}


@pytest.fixture
def call(monkeypatch, capsys):
  """Calls a script: (name, *arguments, code=0) -> what happened in order, what it said."""
  handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

  def run(name, *arguments, code=0):
    happened = []
    monkeypatch.setattr(cli, "begin", lambda: happened.append("begin"))

    def import_module(module):
      happened.append(module)
      return sys.modules.get(module) or importlib.__import__(module, fromlist=["main"])

    monkeypatch.setattr(console, "importlib", types.SimpleNamespace(import_module=import_module))
    monkeypatch.setattr(sys, "argv", [f"/environment/bin/{name}", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
      console.main()
    said = capsys.readouterr()
    assert end.value.code == code, said.err
    return happened, said

  yield run
  for number, handler in handlers.items():
    signal.signal(number, handler)


def test_there_is_a_script_for_every_command():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  scripts = {console.script_name(module) for module in console.COMMANDS}
  assert len(scripts) == len(console.COMMANDS)
  assert project["scripts"] == dict.fromkeys(scripts, "vsr_jax.console:main")


def test_no_command_is_forgotten():
  runs = [path for path, text in house_files("*.py").items() if "\n  cli.run(main)" in text]
  modules = {path.removesuffix(".py").replace("/", ".") for path in runs}
  modules = {f"vsr_jax.{name}" if name.startswith("data_prep.") else name for name in modules}
  modules = {name for name in modules if name.split(".")[0] not in ("tests", "benchmarks")}
  assert modules - MAKERS == set(console.COMMANDS)
  assert modules > MAKERS


def test_a_script_begins_before_it_imports_and_is_called_by_its_name(call):
  happened, said = call("fmanet-restore", "--help")
  assert happened == ["begin", "fmanet_jax.restore"]
  assert said.out.startswith("usage: fmanet-restore [-h] ")
  assert call("fmanet-train", "--help")[1].out.startswith("usage: fmanet-train --config FILE")
  happened, said = call("vsr-plot", "missing", "--out", "x.png", code=2)
  assert happened == ["begin", "vsr_jax.train.plot"]
  assert said.err.startswith("error: missing/log.jsonl: ")


def test_another_name_is_refused(call):
  _, said = call("restore-it", code=2)
  (line,) = said.err.splitlines()
  assert line.startswith("error: /environment/bin/restore-it: no such command; call it by one of")
  assert "vsr-run-exported" in line


def test_the_next_command_is_told_as_the_user_calls_commands(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["/environment/bin/keep-train"])
  progress.tell_next("keep_jax.restore", "INPUT")
  progress.tell_next("keep_jax.demo_weights", "DIR")
  monkeypatch.setattr(sys, "argv", ["/source/keep_jax/train.py"])
  progress.tell_next("keep_jax.restore", "INPUT")
  assert capsys.readouterr().out.splitlines() == [
    "next: keep-restore INPUT",
    "next: python -m keep_jax.demo_weights DIR",
    "next: python -m keep_jax.restore INPUT",
  ]


@pytest.mark.parametrize(
  ("main", "option"), [(restore.main, "--tile"), (train.main, "--config.data.root")]
)
def test_a_shell_that_asks_gets_options_and_nothing_runs(run_main, monkeypatch, main, option):
  options = []

  def autocomplete(parser):
    options.extend(parser._option_string_actions)
    sys.exit(7)

  monkeypatch.setenv("_ARGCOMPLETE", "1")
  monkeypatch.setitem(sys.modules, "argcomplete", types.SimpleNamespace(autocomplete=autocomplete))
  run_main(main, code=7)
  assert option in options
  monkeypatch.setitem(sys.modules, "argcomplete", None)  # importing it fails
  assert run_main(main, code=1).err == ""


def test_without_a_shell_that_asks_argcomplete_is_not_imported(monkeypatch):
  monkeypatch.delenv("_ARGCOMPLETE", raising=False)
  monkeypatch.setitem(sys.modules, "argcomplete", None)
  completion.answer(cli.Parser("some.command", "Does this."))


def test_argcomplete_completes(tmp_path):
  pytest.importorskip("argcomplete", reason="needs the extra [completion]")
  line = "fmanet-train --config.data.w"
  asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
  asked |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found")}
  program = "import sys; sys.argv = ['fmanet-train']; from vsr_jax import console; console.main()"
  environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), **asked}
  subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
  assert (tmp_path / "found").read_text().strip() == "--config.data.workers"
  # By this mark in the file that a script leads to, argcomplete's global completion knows it.
  assert "PYTHON_ARGCOMPLETE_OK" in (ROOT / "vsr_jax/console.py").read_text()[:1024]
