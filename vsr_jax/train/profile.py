"""A trace of some steps of a run, in the workdir where TensorBoard's profile plugin looks."""

from __future__ import annotations

import contextlib
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from vsr_jax import files, guards, paths
from vsr_jax.errors import UserError


class Window(NamedTuple):
  """The steps to trace: the number of the first one, from 1, and how many."""

  first: int
  steps: int

  @property
  def last(self) -> int:
    return self.first + self.steps - 1


def parse_window(text: str) -> Window:
  """Reads START:STEPS, such as "1000:5"; a ValueError for anything else."""
  found = re.fullmatch(r"0*([1-9]\d{0,9}):0*([1-9]\d{0,9})", text, re.ASCII)
  if not found:
    raise ValueError(f"{text!r} is not START:STEPS, such as 1000:5")
  return Window(int(found[1]), int(found[2]))


class Profile:
  """Traces a window of steps; a context manager that writes what it has if the run ends early.

  The trace of each process, HOST.xplane.pb, and its copy for Perfetto appear whole, in
  WORKDIR/plugins/profile/steps_FIRST-LAST. A trace that cannot be written, on a full disk say, is
  a warning, once, and the run goes on.
  """

  def __init__(self, workdir: str | pathlib.Path, window: Window | None, done: int = 0):
    """Checks the window.

    Args:
      workdir: the run's folder.
      window: the steps to trace; None: none.
      done: steps that earlier sessions have finished.

    Warns:
      UserWarning: the whole window is done, so that there is nothing to trace.
    """
    self._workdir, self._window = paths.place(workdir), window
    self._first: int | None = None  # the first step of a trace that goes on
    self._last = 0
    self._folder = contextlib.ExitStack()  # deletes the trace's temporary folder
    if window and window.last <= done:
      steps = f"steps {window.first} to {window.last}"
      warnings.warn(f"{workdir}: {steps} are done already and are not traced", stacklevel=2)

  def __enter__(self) -> Profile:
    return self

  def __exit__(self, *error: object) -> None:
    if self._first is not None:
      self._stop()

  @contextlib.contextmanager
  def step(self, number: int, before: Any) -> Iterator[None]:
    """A context in which a step is started; `before` are arrays that the step before makes."""
    window = self._window
    if window and window.first <= number <= window.last and self._first is None:
      jax.block_until_ready(before)
      self._start(number)
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield
    self._last = number

  def after(self, number: int, made: Any) -> None:
    """Ends the trace with the window's last step; `made` are arrays that this step makes."""
    if self._first is not None and self._window and number == self._window.last:
      jax.block_until_ready(made)
      self._stop()

  def _start(self, number: int) -> None:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's calls would be most of the trace
    with self._losing_the_trace():
      self._place = self._folder.enter_context(tempfile.TemporaryDirectory(prefix="profile_"))
      jax.profiler.start_trace(self._place, profiler_options=options)
      self._first = number

  def _stop(self) -> None:
    name, self._first = f"steps_{self._first}-{self._last}", None
    with self._losing_the_trace(), self._folder:
      jax.profiler.stop_trace()
      folder = self._workdir / "plugins" / "profile" / name
      files.make_folder(folder)
      several = f"{jax.process_index()}_" if jax.process_count() > 1 else ""
      for file in sorted(pathlib.Path(self._place).glob("plugins/profile/*/*")):
        files.write_whole(folder / f"{several}{file.name}", file.read_bytes())

  @contextlib.contextmanager
  def _losing_the_trace(self) -> Iterator[None]:
    """A context whose failure is a warning; after it nothing is traced."""
    try:
      yield
    except (OSError, RuntimeError, UserError) as e:  # the profiler's errors are RuntimeErrors
      self._window = None
      with contextlib.suppress(OSError):
        self._folder.close()
      folder, temporary = self._workdir / "plugins" / "profile", tempfile.tempdir or "TMPDIR"
      warnings.warn(
        f"{folder}: the trace cannot be written ({guards.shorten(str(e), 200)}) and the run goes "
        f"on without it; make room there and in {temporary}",
        stacklevel=5,
      )
