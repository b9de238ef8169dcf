"""Settings of the whole suite: stricter than the code's users, eight devices, quick compiling.

What is set in the environment holds for the suite's workers and the commands that tests start, too;
where the caller's environment says something, that holds.
"""

import atexit
import errno
import gc
import importlib.util
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most programs here run once, on small arrays: they compile five times as fast without LLVM's
# optimisations and without emitters that go through MLIR (which jaxlib 0.12 always uses; an unknown
# extra option is passed over, an unknown flag ends the process), and in one piece instead of 32,
# which other threads would compile. `make test-full` leaves all that as it is.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
  " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
# Programs that several tests, workers or commands compile: one folder a session, none of the user.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _cache = tempfile.mkdtemp(prefix="vsr_jax_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Blocks of 16 MB and more go back to the system when they are freed, also after a test has called a
# command's main function, which would otherwise choose for the whole process.
os.environ.setdefault(
  "GLIBC_TUNABLES", f"glibc.malloc.mmap_threshold={2**24}:glibc.malloc.trim_threshold={2**24}"
)

import hypothesis
import jax
import pytest

from vsr_jax import cli, memory, video

if TYPE_CHECKING:
  from tests.support import gcs

# TensorBoard reads events by TensorFlow where that is installed: seconds to import, and 0.4 GB.
sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")

jax.config.update("jax_num_cpu_devices", 8)
# Again, since a plugin of pytest may have imported JAX before this file.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A shell's background jobs ignore Ctrl-C; the tests of what it does would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are the same in every run, and a loaded machine is no failure.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

# Bytes of a worker above which compiled programs and caches of the tests are dropped after a test
# file; were they always dropped, every file would compile its small operations anew.
MAX_RESIDENT = 1.5e9

# The files that take longest, in that order. They begin first, so that in the end no process works
# on one while the others have nothing left to do.
LONGEST = (
  "tests/keep_jax/test_train.py",
  "tests/fmanet_jax/test_parity.py",
  "tests/fmanet_jax/test_train.py",
  "tests/keep_jax/test_variants.py",
  "tests/keep_jax/test_restore.py",
  "tests/fmanet_jax/test_streaming.py",
  "tests/fmanet_jax/test_model.py",
  "tests/keep_jax/test_streaming.py",
  "tests/vsr_jax/flow/test_raft.py",
  "tests/fmanet_jax/test_demo.py",
  "tests/keep_jax/test_parity.py",
  "tests/keep_jax/test_convert.py",
  "tests/fmanet_jax/test_restore.py",
  "tests/vsr_jax/flow/test_gmflow.py",
)
# Those that import TensorFlow end, so that a worker does not hold its 0.4 GB all the time.
LAST = (
  "tests/data_prep/test_array_record.py",
  "tests/data_prep/test_build.py",
  "tests/data_prep/test_builders.py",
)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts the longest files first, and those with TensorFlow last."""
  place = {path: i - len(LONGEST) for i, path in enumerate(LONGEST)} | dict.fromkeys(LAST, 1)
  items.sort(key=lambda item: place.get(item.location[0], 0))


def pytest_collection_finish() -> None:
  """Takes what is imported out of garbage collection, which tracing would set off all the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of large test material beside the checkout; its tests skip without it."""
  if not SHARED.is_dir():
    pytest.skip("needs the test material in ../shared, which is not part of the repository")
  return SHARED


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
  """Frees what a file's tests compiled and keep, where that is much."""
  yield
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  if pages * os.sysconf("SC_PAGE_SIZE") > MAX_RESIDENT:
    for name in [name for name in sys.modules if name.startswith("tests.")]:
      for value in vars(sys.modules[name]).values():
        if hasattr(value, "cache_clear"):  # `functools.cache` of models, fixtures, programs
          value.cache_clear()
    jax.clear_caches()
    gc.collect()
    memory.release_freed_memory()


@pytest.fixture(scope="session")
def emulator() -> "Iterator[gcs.Emulator]":
  """The bucket gs://runs of an emulator of Google Cloud Storage, for this process and its own."""
  why = "needs pip install gcsfs gcp-storage-emulator"
  server = pytest.importorskip("gcp_storage_emulator.server", reason=why)
  # Found, not imported: what `paths` sets in the environment has to come before.
  if importlib.util.find_spec("gcsfs") is None:
    pytest.skip(why)
  from tests.support.gcs import Emulator  # which imports Orbax

  with pytest.MonkeyPatch.context() as patch:
    started = Emulator(patch, server)
    yield started
    started.server.stop()


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
