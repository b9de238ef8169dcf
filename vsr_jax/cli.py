"""How a command begins, reads its arguments, and ends.

A command prints one line and exits with 2 for a `UserError`, a file that cannot
be used, a full disk or SIGTERM, with 130 for Ctrl-C; any other exception is a
bug and keeps its traceback. A second Ctrl-C ends it at once. Where nobody reads
what it prints, that is lost, but the command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from vsr_jax import completion, console, streams
from vsr_jax.errors import SAME_SIGNAL, Terminated, UserError, is_full

_INTERRUPTED, _TERMINATED = "interrupted", "terminated by SIGTERM"


class Parser(argparse.ArgumentParser):
  """Parses a command's arguments; wrong ones raise `UserError`, like all bad input."""

  def __init__(self, command: str, doc: str, **options: Any):
    """Takes the command's module, as `python -m` does, and its docstring, for `--help`.

    The help names the command as the user called it, see `console`.
    """
    doc = doc.partition("\n")[0].removeprefix("Command: ")
    description = doc[:1].upper() + doc[1:]
    prog = " ".join(console.words(command))
    super().__init__(prog=prog, description=description, **options)

  def parse_args(self, *args: Any, **options: Any) -> Any:
    """As argparse's; answers a shell that asks for completions, see `completion`."""
    completion.answer(self)
    return super().parse_args(*args, **options)

  def error(self, message: str) -> NoReturn:
    """Raises `UserError`."""
    raise UserError(f"{message}; --help tells what is possible")


def begin() -> None:
  """Lets Ctrl-C and SIGTERM end a command with one line while it imports, and silences XLA's log.

  For the first lines of a module that runs as a command, under `if __name__ == "__main__":` and
  before the imports that take seconds; after them `run` takes over. XLA would log that it compiles
  very slowly; its log level is read when it is loaded, so it is set here. Nothing is lost: errors
  come as exceptions, and `vsr_jax.compiling` reports slow compilation.
  """
  streams.open_missing()
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, _exit_on_signal)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA logs slow compilation as an error


def _exit_on_signal(number: int, frame: Any) -> NoReturn:
  del frame
  interrupted = number == signal.SIGINT
  os._exit(_print_failure(_INTERRUPTED, 130) if interrupted else _print_failure(_TERMINATED, 2))


def _raise_terminated(number: int, frame: Any) -> NoReturn:
  del frame
  # The signal may come twice, to a process and to its group; the second would disturb the cleanup.
  signal.signal(number, signal.SIG_IGN)
  raise Terminated


def _raise_interrupted(number: int, frame: Any) -> NoReturn:
  del frame
  signal.signal(number, functools.partial(_end_at_once, time.monotonic()))
  raise KeyboardInterrupt


def _end_at_once(first: float, number: int, frame: Any) -> None:
  """Ends the process without cleanup, for which the user will not wait; the next run does it."""
  del number, frame
  if time.monotonic() - first > SAME_SIGNAL:
    with contextlib.suppress(OSError):
      os.write(2, f"\n{_INTERRUPTED}\n".encode())  # a `print` may be what was interrupted
    os._exit(130)


@contextlib.contextmanager
def _raising_signals() -> Iterator[None]:
  """A context in which SIGTERM and Ctrl-C are raised as exceptions; an ignored Ctrl-C stays so."""
  handlers = {signal.SIGTERM: _raise_terminated, signal.SIGINT: _raise_interrupted}
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    del handlers[signal.SIGINT]
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  hook, sys.unraisablehook = sys.unraisablehook, _raise_again
  try:
    yield
  finally:
    sys.unraisablehook = hook
    for number, handler in before.items():
      if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def _raise_again(unraisable: Any) -> None:
  """Sends a signal again whose exception was lost, raised where none can be, as in a callback."""
  for error, number, handler in (
    (Terminated, signal.SIGTERM, _raise_terminated),
    (KeyboardInterrupt, signal.SIGINT, _raise_interrupted),
  ):
    if issubclass(unraisable.exc_type, error):
      signal.signal(number, handler)
      # After a moment, because an exception raised in here would be lost again.
      threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
      return
  sys.__unraisablehook__(unraisable)


def run(main: Callable[[], None]) -> None:
  """Runs a command's main function and exits with the documented code.

  Args:
    main: the command, without arguments; it raises `UserError` for bad input.

  Raises:
    SystemExit: code 0, 2 (`UserError`, a file that cannot be used, no space left, SIGTERM) or 130
      (Ctrl-C), or one that the command itself exits with.
  """
  streams.open_missing()
  streams.outlive_readers()
  # Whether the process runs this command only, as it does where `begin` was called.
  alone = signal.getsignal(signal.SIGTERM) is _exit_on_signal
  with _raising_signals():
    sys.exit(_run_to_exit_code(main, alone))


def _exit_without_freeing(code: int) -> NoReturn:
  """Ends without freeing objects: JAX may crash or hang then if a signal stopped a compilation."""
  if "multiprocessing.util" in sys.modules:  # its files in /dev/shm have to be removed
    sys.modules["multiprocessing.util"]._exit_function()
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os._exit(code)


def _run_to_exit_code(main: Callable[[], None], alone: bool) -> int:
  """Runs a command and returns its exit code; after a signal it ends the process if `alone`."""
  try:
    with warnings.catch_warnings():
      warnings.showwarning = show_warning
      main()
  except UserError as e:
    return _print_failure(f"error: {e}", 2)
  except (KeyboardInterrupt, Terminated) as e:
    interrupted = isinstance(e, KeyboardInterrupt)
    code = _print_failure(_INTERRUPTED, 130) if interrupted else _print_failure(_TERMINATED, 2)
    if alone:
      _exit_without_freeing(code)
    return code
  except OSError as e:
    if is_full(e):
      where = f" while writing {e.filename}" if e.filename else ""
      return _print_failure(f"error: no space left on the disk{where}; free some and run again", 2)
    if not e.filename:
      raise
    reason = e.strerror or type(e).__name__
    return _print_failure(f"error: {e.filename}: {reason}; mend that or name another path", 2)
  return 0


@contextlib.contextmanager
def memory_errors(path: str, remedy: str) -> Iterator[None]:
  """A context in which a device that runs out of memory raises `UserError`."""
  try:
    yield
  except RuntimeError as e:  # what XLA raises is one
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise UserError(f"{path}: the device's memory is too small for this; {remedy}") from e


def show_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
  """Shows a warning in one line, above a progress bar if there is one; for `warnings`."""
  from tqdm import tqdm  # not before signals are caught

  tqdm.write(f"warning: {message}", file=sys.stderr)


def _print_failure(line: str, code: int) -> int:
  sys.stdout.flush()
  print(" ".join(line.split()), file=sys.stderr, flush=True)
  return code
