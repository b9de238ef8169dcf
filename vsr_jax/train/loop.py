"""The training loop: start or resume, run the steps, report, save, and stop on signals."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.stages import Compiled, Wrapped

from vsr_jax.checkpoint import read_meta
from vsr_jax.chips import find_chip
from vsr_jax.compiling import compiling
from vsr_jax.errors import SAME_SIGNAL, Terminated, UserError
from vsr_jax.flops import count_jaxpr
from vsr_jax.json_files import BadJson
from vsr_jax.locks import locked
from vsr_jax.memory import release_freed_memory
from vsr_jax.paths import in_bucket
from vsr_jax.sharding import make_mesh, place_batch, place_everywhere, replicated
from vsr_jax.train import hosts
from vsr_jax.train.checkpoints import Checkpoints, make_folder
from vsr_jax.train.goodput import Goodput, Work
from vsr_jax.train.profile import Profile, Window
from vsr_jax.train.report import Evaluate, Report
from vsr_jax.train.stage import Params, Stage
from vsr_jax.train.state import TrainState, init_state
from vsr_jax.train.step import build_step
from vsr_jax.train.summaries import RUNNING_SUMS, Recorder


class ResumableBatches(Protocol):
  """A stream of batches {name: array [b ...]} whose position can be kept, as Grain's are.

  Where there are several hosts each gets its rows of a batch (`sharding.host_rows`), and the
  position is the same on all of them, so that the run can go on with another number of hosts.
  """

  def __next__(self) -> Mapping[str, np.ndarray]: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None:
    """Raises `BadJson` for a damaged position, another ValueError for one of other batches."""


def fit(
  stage: Stage,
  init_params: Callable[[jax.Array], Params],  # key -> params of every sub-network, float32
  batches: ResumableBatches,  # this host's rows
  *,
  workdir: str | pathlib.Path,  # for checkpoints/, log.jsonl and TensorBoard's file
  steps: int,  # the whole run's
  seed: int = 0,  # for the initialisation and every stream of random numbers
  mesh: Mesh | None = None,  # from make_mesh; None: all devices
  init_from: Params | None = None,  # params of some or all sub-networks to start from
  auxiliary: Params | None = None,  # params of networks that only the loss uses; not saved
  log_every: int = 50,  # steps to a row of mean logs
  image_every: int | None = None,  # steps between image panels; there is one at the end anyway
  checkpoint_every: int = 1000,  # steps between checkpoints; there is one at the end anyway
  keep: int = 2,  # how many of the latest checkpoints stay
  best: str | None = None,  # metric whose largest value keeps that evaluation's checkpoint, too
  lowest: bool = False,  # its smallest value, instead
  accumulate: int = 1,  # micro-batches to a step
  ema_decay: float | None = None,  # for the params' moving average; None: no average
  clip_norm: float | None = None,  # largest global norm of the gradients; None: any
  fsdp_min_size: int | None = None,  # smallest array split over devices; None: all replicated
  evaluate: Evaluate | None = None,  # (params or their average if there is one, step) -> scalars
  evaluate_every: int | None = None,  # steps between evaluations; there is one at the end anyway
  meta: Mapping[str, Any] | None = None,  # JSON entries kept in checkpoints, such as the config
  dtype: str = "float32",  # of products, for the share of the chips' peak
  profile: Window | None = None,  # steps to trace
  began: float | None = None,  # when the session began, by `time.monotonic`; None: now
) -> TrainState:
  """Trains a stage to `steps` steps, going on from where an earlier call was interrupted.

  A resumed run equals an uninterrupted one bit for bit: params, optimizer, batches and logs.

  Returns:
    The state after the last step.

  Raises:
    ValueError: an option is out of its range.
    UserError: a batch, checkpoint or workdir that cannot be used, or a step that is not finite.
    Terminated, KeyboardInterrupt: SIGTERM or Ctrl-C came; the step it met is done and saved.
  """
  _check_options(steps, log_every, keep, accumulate, ema_decay, profile)
  _check_start({"config": [stage.name, steps, seed, meta], "training data": batches.get_state()})
  mesh = make_mesh() if mesh is None else mesh
  train_step, shapes = build_step(
    stage, init_params, mesh, accumulate, clip_norm, ema_decay, fsdp_min_size
  )
  init = functools.partial(init_state, stage, init_params, _key(mesh, seed, 0), shapes, init_from)
  every = {"panel": image_every, "evaluation": evaluate_every, "checkpoint": checkpoint_every}
  with _locked_workdir(workdir), jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    goodput = stack.enter_context(Goodput(workdir, began))
    checkpoints = stack.enter_context(Checkpoints(workdir, keep=keep, best=best, lowest=lowest))
    state, running_sums = _start(checkpoints, stage, shapes, batches, init)
    recorder = Recorder(workdir, int(state.step), log_every=log_every, running_sums=running_sums)
    report = Report(stage, mesh, steps, checkpoints, recorder, evaluate, meta or {}, goodput)
    stack.enter_context(report)
    tracing = stack.enter_context(Profile(workdir, profile, int(state.step)))
    inputs = _key(mesh, seed, 1), place_everywhere(mesh, auxiliary or {})
    compiled = functools.partial(_compiled, train_step, goodput, dtype)
    feed = _Feed(mesh, batches, goodput)
    return _run(compiled, state, inputs, feed, report, tracing, goodput, steps, every)


def _check_options(
  steps: int,
  log_every: int,
  keep: int,
  accumulate: int,
  ema_decay: float | None,
  profile: Window | None,
) -> None:
  counts = {"steps": steps, "log_every": log_every, "keep": keep, "accumulate": accumulate}
  for name, value in counts.items():
    if value < 1:  # with keep = 0 a run would end without a checkpoint
      raise ValueError(f"{name} {value}: must be at least 1")
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise ValueError(f"ema_decay {ema_decay}: must be at least 0 and below 1")
  if profile is not None and profile.last > steps:
    raise ValueError(f"profile {tuple(profile)}: ends after the run's {steps} steps")


def _check_start(told: Mapping[str, Any]) -> None:
  """Checks that checkpoints can keep what this run is of, and that all hosts say the same of it."""
  try:
    json.dumps(told, allow_nan=False)
  except ValueError as e:
    raise UserError("a value of the config is not finite, which no checkpoint can keep") from e
  hosts.check_equal(told)


@contextlib.contextmanager
def _locked_workdir(workdir: str | pathlib.Path) -> Iterator[None]:
  """Locks a run's folder, by the first of several processes; if that fails, all of them raise."""
  refusal = None
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      try:
        make_folder(workdir)
        # A bucket has no locks that end with their process: a host that is preempted would leave
        # one behind, and nobody could tell whether it still runs.
        if not in_bucket(workdir):
          stack.enter_context(locked(workdir))
      except UserError as e:
        refusal = e
    if multihost_utils.broadcast_one_to_all(np.bool_(refusal is not None)):
      raise refusal or UserError(f"{workdir}: the first process cannot use it and says why")
    yield


def _key(mesh: Mesh, seed: int, use: int) -> jax.Array:
  """A key on every device; made there, because keys cannot be put on other hosts' devices."""
  make = jax.jit(
    lambda: jax.random.fold_in(jax.random.key(seed), use), out_shardings=replicated(mesh)
  )
  return make()


def _start(
  checkpoints: Checkpoints,
  stage: Stage,
  shapes: TrainState,
  batches: ResumableBatches,
  init: Callable[[], TrainState],
) -> tuple[TrainState, dict[str, Any] | None]:
  """The state to start from and the log's running sums; sets the batches to the saved position."""
  # The order of starting points:
  # 1. the run's own latest checkpoint;
  # 2. the given params (`init_from`), for the sub-networks they hold;
  # 3. the initialisation, for the others. `init_state` does 2 and 3.
  folder = checkpoints.latest
  if folder is None:
    return init(), None
  name = read_meta(folder).get("stage")
  if name != stage.name:
    raise UserError(f"{folder}: of the stage {name!r}, not {stage.name!r}; use another workdir")
  state, position, meta = checkpoints.restore(shapes)
  try:
    batches.set_state(position)
  except BadJson as e:
    raise _damaged(folder, e) from e
  except (KeyError, TypeError, ValueError) as e:
    raise UserError(
      f"{folder}: of other training data or another batch size; use those again, or a new workdir "
      "with init_from"
    ) from e
  try:
    RUNNING_SUMS(meta.get("log"), "log")
  except BadJson as e:
    raise _damaged(folder, e) from e
  return state, meta["log"]


def _damaged(folder: pathlib.Path, e: BadJson) -> UserError:
  return UserError(f"{folder}: damaged, {e}; delete it to fall back to the one before it")


def _compiled(
  train_step: Wrapped,
  goodput: Goodput,
  dtype: str,
  state: TrainState,
  batch: Mapping[str, jax.Array],
  *inputs: Any,
) -> Compiled:
  """The program of a step; what compiling took is given back before it runs."""
  largest = max(batch.values(), key=len)  # every array has its samples on the first axis
  devices = largest.sharding.device_set
  device: jax.Device = next(iter(devices))
  with compiling("the training step"), goodput.of("compile"):
    traced = train_step.trace(state, batch, *inputs)
    flops = count_jaxpr(traced.jaxpr.jaxpr, device.platform)
    program = traced.lower().compile()
  goodput.take(Work(len(largest), flops, len(devices), find_chip(device), dtype))
  release_freed_memory()
  return program


def _run(
  compiled: Callable[..., Compiled],
  state: TrainState,
  inputs: tuple[jax.Array, Params],
  feed: _Feed,
  report: Report,
  tracing: Profile,
  goodput: Goodput,
  steps: int,
  every: Mapping[str, int | None],
) -> TrainState:
  """The steps that are left; `compiled` makes the program of a step for its arguments.

  `inputs` are what every step gets beside its batch: the root key and the auxiliary params; `every`
  says how often a panel, evaluation or checkpoint is due.
  """

  def due(what: str) -> bool:
    interval = every[what]
    return step == steps or bool(interval and step % interval == 0)

  with _Interrupt() as interrupt:
    if int(state.step) < steps:
      feed.fetch()
      goodput.begin(int(state.step))
    program: Compiled | None = None
    for step in range(int(state.step) + 1, steps + 1):
      batch = feed.take()
      with jax.transfer_guard("disallow"):
        if program is None:
          program = compiled(state, batch, *inputs)
        with tracing.step(step, state):
          state, logs = program(state, batch, *inputs)
      goodput.started(logs)
      if step < steps:
        try:
          feed.fetch()  # The next batch is made and copied while this step runs.
        except UserError:
          report.add(step, logs)
          report.save(step, state, feed.position, None)
          raise
      report.add(step, logs)
      tracing.after(step, logs)
      if due("panel"):
        report.panel(step, state, batch, inputs[1])
      metrics = report.evaluation(step, state) if due("evaluation") else None
      stop = interrupt.arrived(step)
      if stop or due("checkpoint"):
        report.save(step, state, feed.position, metrics)
      if stop:
        report.stopped(step)
        raise stop
  report.end()
  return state


class _Feed:
  """Batches on the mesh, one fetched ahead, with the iterator's position after the one in use."""

  def __init__(self, mesh: Mesh, batches: ResumableBatches, goodput: Goodput):
    self._mesh, self._batches, self._goodput = mesh, batches, goodput
    self._ahead: tuple[dict[str, jax.Array], str] | None = None
    self._position = "null"

  @property
  def position(self) -> Any:
    """The iterator's state after the batch that `take` gave last."""
    return json.loads(self._position)

  def fetch(self) -> None:
    """Makes the next batch and starts its copy to the devices."""
    with self._goodput.making_batch():
      try:
        batch = next(self._batches)
      except StopIteration:
        raise UserError("the training data ended before the last step; repeat it") from None
      # As text, because an iterator may go on to change the state it gave.
      self._ahead = place_batch(self._mesh, batch), json.dumps(self._batches.get_state())

  def take(self) -> dict[str, jax.Array]:
    """The next batch."""
    if self._ahead is None:
      self.fetch()
    assert self._ahead is not None
    batch, self._position = self._ahead
    self._ahead = None
    return batch


class _Interrupt:
  """Defers SIGTERM and Ctrl-C until the running step is saved; a second Ctrl-C acts at once.

  One Ctrl-C or kill may arrive twice, sent to the process and to its group: a repetition within
  `SAME_SIGNAL` seconds does not count as a second one.
  """

  def __init__(self):
    self._caught: int | None = None
    self._since = 0.0
    self._old: dict[int, Any] = {}

  def __enter__(self) -> _Interrupt:
    # Several processes stop together, by jax's preemption service, which catches SIGTERM itself.
    # Python lets only the main thread handle signals.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._old[number] = signal.signal(number, self._catch)
    return self

  def __exit__(self, *error: object) -> None:
    for number in list(self._old):
      self._release(number)

  def _catch(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    now = time.monotonic()
    if self._caught is None:
      self._caught, self._since = number, now
    elif number == signal.SIGINT and now - self._since > SAME_SIGNAL:
      self._release(signal.SIGINT)
      signal.raise_signal(signal.SIGINT)

  def _release(self, number: int) -> None:
    signal.signal(number, self._old.pop(number))

  def arrived(self, step: int) -> BaseException | None:
    """What to raise once this step is saved, if a signal has come."""
    if jax.process_count() > 1:
      return Terminated() if multihost_utils.reached_preemption_sync_point(step) else None
    if self._caught is None:
      return None
    return KeyboardInterrupt() if self._caught == signal.SIGINT else Terminated()
