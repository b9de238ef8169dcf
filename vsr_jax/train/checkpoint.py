"""Checkpoints; the only file that knows Orbax.

A checkpoint is a folder with one item each: `params`, `ema` and `opt_state` (arrays), `meta`
(`meta.json`: step, stage, the caller's own entries, and every array's name, dtype, shape and
checksum) and
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
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from vsr_jax import files, json_files
from vsr_jax.errors import UserError, is_full
from vsr_jax.train.damage import REMEDY, check_size, check_sums, checksums
from vsr_jax.train.orbax_threads import drop_late_reports, let_end, not_by_orbax, quiet
from vsr_jax.train.state import TrainState
from vsr_jax.train.trees import by_network, check_table, differences, table, template
from vsr_jax.weights import check_finite

_ARRAYS = ("params", "ema", "opt_state")
_META = json_files.fields(
  {"arrays": json_files.fields({"params": check_table}, dict.fromkeys(_ARRAYS, check_table))},
  {
    "step": json_files.integer(0, 2**31 - 1),
    "processes": json_files.integer(1, 10**6),
    "stage": json_files.optional(json_files.text),
    "sums": json_files.mapping(
      json_files.text, json_files.mapping(json_files.text, json_files.integer(0, 2**32 - 1))
    ),
  },
  more=True,
)


class _Json:
  """A JSON value as an item of its own, in a file that people can read."""

  def __init__(self, file: str, value: Any = None, write: bool = True):
    self.file, self.value, self.write = file, value, write

  async def save(self, directory):
    # Now: the value may change while Orbax writes.
    text = json.dumps(self.value, indent=1, allow_nan=False)

    async def write():
      folder = await directory.await_creation()
      if self.write:
        (folder / self.file).write_text(text)

    return write()

  async def load(self, directory):
    async def read():
      self.value = json_files.read(directory / self.file, json_files.anything)

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
    logging.getLogger("absl").addFilter(not_by_orbax)
    return self

  def __exit__(self, kind, error, traceback) -> None:
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # It raises again what `wait` has told.
        self._orbax.close()
      logging.getLogger("absl").removeFilter(not_by_orbax)

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
    sums = {item: checksums(tree) for item, tree in arrays.items()}
    meta = {**meta, "step": step, "processes": jax.process_count(), "arrays": tables, "sums": sums}
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
    if meta.get("processes") != jax.process_count():
      raise UserError(
        f"{folder}: written by {meta.get('processes')} processes; go on with as many,"
        " or start another run from its params"
      )
    items = _load(folder, wanted | {"data": _data()})
    check_sums(folder, {item: items[item] for item in wanted}, meta)
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
    raise UserError(
      f"{path}: no such folder; give a run's folder, or what a convert command has written"
    )
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
    return json_files.read(folder / "meta" / "meta.json", _META)
  except (OSError, json_files.BadJson) as e:
    raise UserError(f"{folder}: damaged, its meta cannot be read; {REMEDY}") from e


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
    UserError: missing, damaged, not the params of that model, or not finite.
  """
  folder = find_checkpoint(path)
  meta = read_meta(folder)
  tables = meta["arrays"]
  items = ("params", "ema") if ema and "ema" in tables else ("params",)
  if like is not None:
    held: dict[str, dict[str, str]] = {}  # by sub-network, those of the average instead of others
    for item in items:
      held |= by_network(tables[item])
    there = {name: x for network in like for name, x in held.get(network, {}).items()}
    if wrong := differences(table(like), there):
      raise UserError(f"{folder}: not the weights of this model: {wrong}")
  check_size(folder, [tables[item] for item in items])
  templates = {item: template(tables[item]) for item in items}
  trees = _load(folder, templates)  # whole: Orbax reads no parts
  check_sums(folder, trees, meta)
  params = trees["params"] | trees.get("ema", {})
  wanted = params if like is None else like
  check_finite(traverse_util.flatten_dict(params, sep="/"), str(folder))
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
    OSError: they do not fit on the disk (ENOSPC); nothing was written.
  """
  path = pathlib.Path(path).absolute()
  check_export(path)
  params = jax.tree.map(np.asarray, dict(params))
  # Now: Orbax's writers, which are threads, go on after one has failed, and print tracebacks.
  there = next(folder for folder in path.parents if folder.exists())
  if shutil.disk_usage(there).free < sum(x.nbytes for x in jax.tree.leaves(params)):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  meta = {**meta, "arrays": {"params": table(params)}, "sums": {"params": checksums(params)}}
  part = pathlib.Path(files.part_name(path))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove_left(path.parent, path.name)
    with _context(), quiet():
      ocp.save_checkpointables(part, {"params": params, "meta": _meta(meta)})
    # Orbax names the folder it wrote in there, which is nobody's business in shipped weights.
    (part / "commit_success.txt").unlink(missing_ok=True)
    files.replace_folder(str(part), str(path))
  except Exception as e:  # Of many types, as in `Checkpoints.save`.
    raise _cannot_write(path, e) from e
  finally:
    let_end()
    for left in path.parent.glob(f"{glob.escape(part.name)}*"):  # Orbax writes beside it, too
      files.remove(str(left))


def _array_items(state: TrainState) -> dict[str, Any]:
  """The state's items that hold arrays; Orbax stores no empty tree."""
  items = {item: getattr(state, item) for item in _ARRAYS}
  return {item: tree for item, tree in items.items() if jax.tree.leaves(tree)}


def _load(folder: pathlib.Path, items: dict[str, Any]) -> dict[str, Any]:
  """Reads items into their templates."""
  loaded = {}
  with quiet():
    for item, template in items.items():  # One by one, to name the damaged one.
      try:
        loaded |= ocp.load_checkpointables(folder, {item: template})
      except Exception:  # Orbax and TensorStore raise a dozen types for a damaged folder.
        break
    else:
      return loaded
    gc.collect()  # While it is quiet: the abandoned reads report themselves when they are freed.
  drop_late_reports()
  raise UserError(f"{folder}: damaged, its {item} cannot be read; {REMEDY}")


def _context() -> ocp.Context:
  """Folders are made at once: where they cannot be, Orbax's writers would wait for minutes."""
  context = ocp.Context()
  context.asynchronous.create_directories_asynchronously = False
  return context


def _cannot_write(folder: pathlib.Path, error: Exception) -> UserError | OSError:
  """Clears what a failed save has left beside its folder, and says why it failed."""
  let_end()
  for part in folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
    shutil.rmtree(part, ignore_errors=True)
  if is_full(error):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
  reason = (str(error).splitlines() or [type(error).__name__])[0]
  return UserError(f"{folder}: a checkpoint cannot be written, mend that and run again: {reason}")
