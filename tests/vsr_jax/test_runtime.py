"""Settings of a process: who makes them, what they do with memory and compiled programs."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys

import jax
import pytest

import fmanet_jax.demo
import fmanet_jax.evaluate
import fmanet_jax.restore
import fmanet_jax.streaming
import keep_jax.demo
import keep_jax.restore
import keep_jax.streaming
from tests.keep_jax import tiny
from tests.vsr_jax.settings import settings
from vsr_jax import runtime

FAULTS = """
import ctypes, resource, sys
from vsr_jax import memory, runtime

for setting in sys.argv[1].split("+"):
  if setting == "keep":
    runtime.keep_freed_memory()
  if setting == "return":
    runtime.return_freed_memory()
libc, size = ctypes.CDLL(None), int(sys.argv[2])
libc.malloc.restype = ctypes.c_void_p
for i in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = ctypes.c_void_p(libc.malloc(size))
  ctypes.memset(block, 1, size)
  libc.free(block)
  if sys.argv[1] == "release":
    memory.release_freed_memory()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt and malloc_trim are of glibc")
def test_kept_memory_is_used_again_and_memory_given_back_is_not():
  def faults(how, size=2**26):
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    run = subprocess.run(
      [sys.executable, "-c", FAULTS, how, str(size)],
      env=env,
      capture_output=True,
      text=True,
      check=True,
    )
    return int(run.stdout)

  # 64 MB are 16,384 pages of 4 KB, or 32 of 2 MB. The last setting holds, whatever was before.
  assert faults("return+keep") < 16
  assert faults("release") >= 32
  # From 32 MB on it is given back anyway.
  assert faults("nothing", 2**24) < 8
  assert faults("keep+return", 2**24) >= 8
  assert faults("keep+return", 2**22) < 8


CACHE = """
import jax
from vsr_jax.runtime import enable_compilation_cache
enable_compilation_cache()
print(jax.config.jax_compilation_cache_dir)
"""


def cache_folder(**environment):
  chosen = ("XDG_CACHE_HOME", "HOME", "JAX_COMPILATION_CACHE_DIR")
  kept = {k: v for k, v in os.environ.items() if k not in chosen}
  result = subprocess.run(
    [sys.executable, "-c", CACHE],
    env={**kept, "JAX_PLATFORMS": "cpu", **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  return result.stdout.strip()


def test_the_compilation_cache_does_without_a_home_that_can_be_written(tmp_path):
  blocked = tmp_path / "file"
  blocked.write_text("a file, so that nothing can be made below")
  assert cache_folder(HOME=str(blocked)) == "None"
  assert cache_folder(HOME=str(tmp_path)) == str(tmp_path / ".cache/vsr_jax")
  assert cache_folder(XDG_CACHE_HOME=str(tmp_path / "x")) == str(tmp_path / "x/vsr_jax")


@pytest.mark.parametrize("order", [1, -1])
def test_both_systems_load_and_set_nothing(tmp_path, monkeypatch, order):
  class Library:
    def __getattr__(self, name):
      assert name != "mallopt"
      return lambda *_: 0

  tiny.save(tmp_path / "keep")
  before = settings()
  monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
  keep = functools.partial(keep_jax.streaming.load, tmp_path / "keep")
  for load in (fmanet_jax.streaming.load, keep)[::order]:
    _, params = load()
    assert jax.tree.leaves(params)
  assert settings() == before


IMPORTED = """
import sys
from tests.vsr_jax.settings import settings
sys.argv[0] = "-m"  # what Python has there while it imports a command's package
before = settings()
import fmanet_jax.streaming, keep_jax.streaming, vsr_jax.cli, vsr_jax.runtime
from vsr_jax import configs, data_prep
assert settings() == before
"""


def test_importing_sets_nothing():
  subprocess.run([sys.executable, "-c", IMPORTED], check=True)


CLIP = str(fmanet_jax.demo.CLIP / "input.mp4")


class Loaded(Exception):
  """A command has come to loading its model."""


@pytest.mark.parametrize(
  ("command", "arguments", "package", "memory"),
  [
    (fmanet_jax.restore.main, [CLIP, "out.mp4"], fmanet_jax.streaming, "return_freed_memory"),
    (fmanet_jax.demo.main, ["--out", "DIR"], fmanet_jax.streaming, "return_freed_memory"),
    (fmanet_jax.evaluate.main, ["DIR"], fmanet_jax.streaming, "return_freed_memory"),
    (keep_jax.restore.main, [CLIP, "out.mp4"], keep_jax.streaming, "keep_freed_memory"),
    (keep_jax.demo.main, ["--out", "DIR"], keep_jax.streaming, "keep_freed_memory"),
  ],
)
def test_a_command_makes_its_settings_before_it_loads(
  tmp_path, monkeypatch, command, arguments, package, memory
):
  def load(*_):
    raise Loaded

  made = set()
  for name in ("enable_compilation_cache", "return_freed_memory", "keep_freed_memory"):
    monkeypatch.setattr(runtime, name, functools.partial(made.add, name))
  monkeypatch.setattr(package, "load", load)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["command", *arguments])
  with pytest.raises(Loaded):
    command()
  assert made == {"enable_compilation_cache", memory}
