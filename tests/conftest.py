"""Settings of the whole suite: stricter than the code's users, and eight devices."""

import errno
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

from vsr_jax import cli, video

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A shell's background jobs ignore Ctrl-C; the tests of what it does would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are the same in every run, and a loaded machine is no failure.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of large test material beside the checkout; its tests skip without it."""
  if not SHARED.is_dir():
    pytest.skip("needs the test material in ../shared, which is not part of the repository")
  return SHARED


@pytest.fixture
def full_disk(monkeypatch) -> None:
  """No frame of a video can be written."""

  def write(self, image, *_):
    raise OSError(errno.ENOSPC, "No space left on device", "out.mp4")

  monkeypatch.setattr(video.Writer, "write", write)


@pytest.fixture
def run_main(monkeypatch, capsys) -> Iterator[Callable]:
  """Runs a command's main function in this process: (main, *arguments, code=0) -> what it said."""
  handler = signal.getsignal(signal.SIGTERM)

  def run(main, *arguments, code=0):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
      cli.run(main)
    said = capsys.readouterr()
    assert end.value.code == code, said.err
    return said

  yield run
  signal.signal(signal.SIGTERM, handler)
