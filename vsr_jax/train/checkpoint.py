"""Checkpoints; the only file that knows Orbax.

A checkpoint is a folder with one item each: `params`, `ema` and `opt_state` (arrays), `meta`
(`meta.json`: step, stage, the caller's own entries, and every array's name, dtype and shape) and
`data` (the position of each process's data iterator). A run keeps them in
WORKDIR/checkpoints/STEP; an exported folder holds `params` and `meta` only. Orbax writes a folder
under another name and renames it when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import glob
import json
import logging
import os
import pathlib
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from vsr_jax import files
from vsr_jax.errors import UserError, is_full
from vsr_jax.train.state import TrainState
from vsr_jax.train.trees import differences, table

_ARRAYS = ("params", "ema", "opt_state")
_PATIENCE = 60  # seconds for what Orbax still writes of a save that failed
_REMEDY = "delete it to fall back to the checkpoint before it, or copy or make it again"


class _Json:
  """A JSON value as an item of its own, in a file that people can read."""

  def __init__(self, file: str, value: Any = None, write: bool = True):
    self.file, self.value, self.write = file, value, write

  async def save(self, directory):
    text = json.dumps(self.value, indent=1)  # Now: the value may change while Orbax writes.

    async def write():
      folder = await directory.await_creation()
      if self.write:
        (folder / self.file).write_text(text)

    return write()

  async def load(self, directory):
    async def read():
      self.value = json.loads((directory / self.file).read_text())

    return read()


def _meta(value: Any = None) -> _Json:
  return _Json("meta.json", value, write=jax.process_index() == 0)


def _data(value: Any = None) -> _Json:
  return _Json(f"process_{jax.process_index()}.json", value)


def make_folder(workdir: str | pathlib.Path) -> pathlib.Path:
  """Makes a run's folder, if it is missing, and gives that of its checkpoints.

  Raises:
    UserError: it cannot be made or written.
  """
  folder = pathlib.Path(workdir).absolute() / "checkpoints"
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{workdir}: cannot be made or used as a run's folder: {e.strerror}") from e
  if not os.access(folder, os.W_OK):
    raise UserError(f"{folder}: cannot be written; choose another workdir")
  return folder


class Checkpoints:
  """The checkpoints of one run; a context manager that waits for the last one to be written."""

  def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, best: str | None = None):
    """Opens WORKDIR/checkpoints and clears what an interrupted save has left there.

    Args:
      workdir: the run's folder; made when it is missing.
      keep: how many of the latest checkpoints stay.
      best: name of the metric whose largest value keeps its checkpoint as well.

    Raises:
      UserError: the folder cannot be made or written.
    """
    self.folder = make_folder(workdir)
    self._saving = None
    policies = ocp.training.preservation_policies
    rules = [policies.LatestN(keep)]
    if best is not None:
      rules.append(
        policies.BestN(
          get_metric_fn=lambda metrics: metrics[best], n=1, keep_checkpoints_without_metrics=False
        )
      )
    for left in sorted(self.folder.glob("*.orbax-checkpoint-tmp*")):  # which Orbax removes now
      warnings.warn(f"{left}: removed, a save that did not end had left it", stacklevel=2)
    self._orbax = ocp.training.Checkpointer(
      self.folder,
      context=_context(),
      preservation_policy=policies.AnyPreservationPolicy(rules),
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> Checkpoints:
    logging.getLogger("absl").addFilter(_not_by_orbax)
    return self

  def __exit__(self, kind, error, traceback) -> None:
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # It raises again what `wait` has told.
        self._orbax.close()
      logging.getLogger("absl").removeFilter(_not_by_orbax)

  @property
  def latest(self) -> pathlib.Path | None:
    """Folder of the latest complete checkpoint."""
    found = self._orbax.latest
    return None if found is None else self.folder / str(found.step)

  def save(
    self, state: TrainState, step: int, *, data: Any, meta: Mapping[str, Any], metrics=None
  ) -> None:
    """Saves in the background, after copying the state to the host; waits for the save before.

    Args:
      state: the state after `step` steps.
      step: names the checkpoint.
      data: JSON position of this process's data iterator after the last batch used.
      meta: JSON entries to keep beside the arrays; "step", "processes" and "arrays" are added.
      metrics: scalars by which the best checkpoint is told.
    """
    arrays = _array_items(state)
    tables = {item: table(tree) for item, tree in arrays.items()}
    meta = {**meta, "step": step, "processes": jax.process_count(), "arrays": tables}
    items = arrays | {"meta": _meta(meta), "data": _data(data)}
    self.wait()
    folder = self.folder / str(step)
    try:
      response = self._orbax.save_checkpointables_async(step, items, force=True, metrics=metrics)
    except Exception as e:  # Of many types, for a full disk or a lost mount.
      raise _cannot_write(folder, e) from e
    self._saving = folder, response

  def wait(self) -> None:
    """Returns when the checkpoint being saved is complete.

    Raises:
      UserError: it could not be written.
    """
    if self._saving is None:
      return
    folder, response = self._saving
    self._saving = None
    try:
      response.result()
    except Exception as e:  # As in `save`.
      raise _cannot_write(folder, e) from e

  def restore(self, shapes: TrainState) -> tuple[TrainState, Any, dict[str, Any]]:
    """Reads the latest checkpoint to where `shapes` (from `abstract_state`) says.

    Returns:
      The state, the data iterator's position and the meta entries.

    Raises:
      UserError: it is damaged, or of another model or optimizer.
    """
    folder = self.latest
    wanted = _array_items(shapes)
    meta = read_meta(folder)
    for item in _ARRAYS:
      wrong = differences(table(wanted.get(item, {})), meta["arrays"].get(item, {}))
      if wrong:
        raise UserError(
          f"{folder}: its {item} do not fit this stage and model: {wrong}; use another workdir"
        )
    if meta["processes"] != jax.process_count():
      raise UserError(
        f"{folder}: written by {meta['processes']} processes; go on with as many,"
        " or start another run from its params"
      )
    items = _load(folder, wanted | {"data": _data()})
    step = jax.device_put(np.int32(meta["step"]), shapes.step.sharding)
    # An item without arrays is not stored; its shapes are the item.
    trees = {item: items.get(item, getattr(shapes, item)) for item in _ARRAYS}
    return TrainState(step=step, **trees), items["data"].value, meta


def find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
  """The checkpoint folder meant by a run's workdir, a checkpoint itself or an exported folder.

  Raises:
    UserError: there is none.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise UserError(f"{path}: no such folder; give a run's folder or an exported checkpoint")
  if (path / "meta").is_dir() or (path / "params").is_dir():
    return path
  steps = [p for p in (path / "checkpoints").glob("*") if p.name.isdecimal() and p.is_dir()]
  if not steps:
    raise UserError(f"{path}: holds no checkpoint; give a run's folder or an exported checkpoint")
  return max(steps, key=lambda p: int(p.name))


def read_meta(path: str | pathlib.Path) -> dict[str, Any]:
  """The meta entries of a checkpoint (see `find_checkpoint` for what path may be).

  Raises:
    UserError: missing or damaged.
  """
  folder = find_checkpoint(path)
  try:
    meta = json.loads((folder / "meta" / "meta.json").read_text())
    meta["arrays"]["params"]
  except (OSError, ValueError, TypeError, KeyError) as e:
    raise UserError(f"{folder}: damaged, its meta cannot be read; {_REMEDY}") from e
  return meta


def restore_params(
  path: str | pathlib.Path, like: Mapping[str, Any] | None = None, *, ema: bool = True
) -> dict[str, Any]:
  """Reads only the params of a checkpoint: for inference, or for the next stage to start from.

  Args:
    path: a run's workdir (its latest checkpoint), a checkpoint or an exported folder.
    like: params (or their shapes) of the model's sub-networks to read, to check them against;
      None for all there are.
    ema: take the moving average where the checkpoint has one.

  Returns:
    Params by sub-network, on the default device, uncommitted.

  Raises:
    UserError: missing, damaged, or not the params of that model.
  """
  folder = find_checkpoint(path)
  tables = read_meta(folder)["arrays"]
  if like is not None:
    there = {name: x for name, x in tables["params"].items() if name.partition("/")[0] in like}
    if wrong := differences(table(like), there):
      raise UserError(f"{folder}: not the weights of this model: {wrong}")
  items = ("params", "ema") if ema and "ema" in tables else ("params",)
  templates = {item: _template(tables[item]) for item in items}
  trees = _load(folder, templates)  # whole: Orbax reads no parts
  params = trees["params"] | trees.get("ema", {})
  wanted = params if like is None else like
  return jax.tree.map(jnp.asarray, {name: params[name] for name in params if name in wanted})


def check_export(path: str | pathlib.Path) -> None:
  """Checks, before any work is done, that `export_params` can write a folder.

  Raises:
    UserError: it is something else than an exported folder, or cannot be written.
  """
  path = pathlib.Path(path).absolute()
  if path.exists() and not (path / "params").is_dir():
    raise UserError(f"{path}: exists and is no exported checkpoint; choose another folder")
  (files.check_place if path.exists() else files.check_folder)(path)


def export_params(path: str | pathlib.Path, params: Mapping[str, Any], meta: Mapping) -> None:
  """Writes params and their meta entries (the model's config, say) for shipping.

  Args:
    path: folder to be written; an older export there is replaced.
    params: params of every sub-network.
    meta: JSON entries.

  Raises:
    UserError: the path is something else than an exported folder, or cannot be written.
  """
  path = pathlib.Path(path).absolute()
  check_export(path)
  params = jax.tree.map(np.asarray, dict(params))
  meta = {**meta, "arrays": {"params": table(params)}}
  part = pathlib.Path(files.part_name(path))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove_left(path.parent, path.name)
    with _context(), _quiet():
      ocp.save_checkpointables(part, {"params": params, "meta": _meta(meta)})
    # Orbax names the folder it wrote in there, which is nobody's business in shipped weights.
    (part / "commit_success.txt").unlink(missing_ok=True)
    files.replace_folder(str(part), str(path))
  except Exception as e:  # Of many types, as in `Checkpoints.save`.
    raise _cannot_write(path, e) from e
  finally:
    _let_end()
    for left in path.parent.glob(f"{glob.escape(part.name)}*"):  # Orbax writes beside it, too
      files.remove(str(left))


def _array_items(state: TrainState) -> dict[str, Any]:
  """The state's items that hold arrays; Orbax stores no empty tree."""
  items = {item: getattr(state, item) for item in _ARRAYS}
  return {item: tree for item, tree in items.items() if jax.tree.leaves(tree)}


def _template(names: Mapping[str, str]) -> dict[str, Any]:
  """Nested dicts of unfilled arrays from a params table."""
  tree: dict[str, Any] = {}
  for name, spec in names.items():
    *path, leaf = name.split("/")
    branch = tree
    for key in path:
      branch = branch.setdefault(key, {})
    dtype, shape = spec.rstrip("]").split("[")
    branch[leaf] = np.empty([int(n) for n in shape.split(",") if n], jnp.dtype(dtype))
  return tree


def _load(folder: pathlib.Path, items: dict[str, Any]) -> dict[str, Any]:
  """Reads items into their templates."""
  loaded = {}
  with _quiet():
    for item, template in items.items():  # One by one, to name the damaged one.
      try:
        loaded |= ocp.load_checkpointables(folder, {item: template})
      except Exception:  # Orbax and TensorStore raise a dozen types for a damaged folder.
        break
    else:
      return loaded
    gc.collect()  # While it is quiet: the abandoned reads report themselves when they are freed.
  raise UserError(f"{folder}: damaged, its {item} cannot be read; {_REMEDY}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps to itself what Orbax's abandoned reads would print: pages for each array."""
  log, hook = logging.getLogger("asyncio"), sys.unraisablehook
  disabled, absl = log.disabled, logging.getLogger("absl")
  quiet = _not_by_orbax in absl.filters
  log.disabled = True
  sys.unraisablehook = lambda told: isinstance(told.exc_value, Exception) or hook(told)
  absl.addFilter(_not_by_orbax)
  try:
    yield
  finally:
    log.disabled, sys.unraisablehook = disabled, hook
    if not quiet:
      absl.removeFilter(_not_by_orbax)


def _context() -> ocp.Context:
  """Folders are made at once: where they cannot be, Orbax's writers would wait for minutes."""
  context = ocp.Context()
  context.asynchronous.create_directories_asynchronously = False
  return context


def _not_by_orbax(record: logging.LogRecord) -> bool:
  """Keeps out Orbax's own logs: it prints a traceback for each array when a disk is full."""
  return "orbax" not in pathlib.Path(record.pathname).parts


def _let_end() -> None:
  """Waits for Orbax's writers, which go on after one has failed: they make its folder again."""
  with _quiet():
    for thread in threading.enumerate():
      if type(thread).__module__.startswith("orbax."):
        threading.Thread.join(thread, _PATIENCE)  # Orbax's own would raise what has failed


def _cannot_write(folder: pathlib.Path, error: Exception) -> UserError | OSError:
  """Clears what a failed save has left beside its folder, and says why it failed."""
  _let_end()
  for part in folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
    shutil.rmtree(part, ignore_errors=True)
  if is_full(error):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
  reason = (str(error).splitlines() or [type(error).__name__])[0]
  return UserError(f"{folder}: a checkpoint cannot be written, mend that and run again: {reason}")
