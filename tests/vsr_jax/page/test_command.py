"""How the page's command begins: what is missing, taken or wrong is told in one line."""

from __future__ import annotations

import importlib.util
import shutil
import socket

import pytest

from vsr_jax.errors import UserError
from vsr_jax.page import __main__ as command


@pytest.fixture
def gradio(monkeypatch):
  """As if gradio were installed; it is not imported."""
  find = importlib.util.find_spec
  found = {"gradio": object()}
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name) or find(name))


def test_without_gradio_the_extra_is_named(monkeypatch, run_main):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert 'install the extra: pip install -e ".[page]"' in run_main(command.main, code=2).err


def test_a_port_that_is_taken_is_told(gradio, run_main):
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    (line,) = run_main(command.main, "--port", port, code=2).err.splitlines()
  assert line.startswith(f"error: 127.0.0.1:{port}: nothing can be served here")
  assert "another --port" in line


@pytest.mark.parametrize(
  ("options", "told"),
  [
    (["--port", "0"], "--port 0: must be 1 to 65535"),
    (["--weights", "/weights"], "'/weights' is not of the form fmanet=DIR or keep=DIR"),
    (["--weights", "fmanet="], "is not of the form"),
    (["--max-seconds", "-1"], "'-1' is not a number above 0"),
    (["--max-megabytes", "nan"], "'nan' is not a number above 0"),
    (["--host", "no.such.host.invalid"], "nothing can be served here"),
  ],
)
def test_wrong_options_are_told(gradio, run_main, options, told):
  (line,) = run_main(command.main, *options, code=2).err.splitlines()
  assert told in line


def test_weights_are_offered_with_what_they_are_for(tmp_path):
  mine = tmp_path / "mine"
  shutil.copytree(command._packaged("keep", "demo_weights"), mine)
  offered = command._offered_weights("keep", [("fmanet", "elsewhere"), ("keep", str(mine))])
  assert offered == {
    "demonstration weights (faces of 128x128)": None,
    "mine (faces of 128x128)": str(mine),
  }
  assert list(command._offered_weights("fmanet", [])) == ["demonstration weights (enlarges x4)"]
  (mine / "meta" / "meta.json").write_text("{}")
  with pytest.raises(UserError, match="no checkpoint that can be read"):
    command._offered_weights("keep", [("keep", str(mine))])


@pytest.mark.parametrize("system", ["fmanet", "keep"])
def test_the_examples_ship(system):
  assert command._packaged(system, "demo_clip/input.mp4").is_file()
