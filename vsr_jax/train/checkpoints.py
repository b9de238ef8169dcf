"""The checkpoints of a run while it is trained; `vsr_jax.checkpoint` says what one consists of."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vsr_jax import paths
from vsr_jax.checkpoint import (
  ARRAYS,
  JsonItem,
  cannot_write,
  context,
  first_writes,
  load_items,
  meta_item,
  read_meta,
)
from vsr_jax.checkpoint_damage import check_sums, checksums
from vsr_jax.errors import UserError
from vsr_jax.orbax_threads import not_by_orbax
from vsr_jax.train.state import TrainState
from vsr_jax.trees import differences, table

_POSITION = "position.json"  # in the item "data"
_OLD_POSITION = "process_0.json"  # of checkpoints with one for each process, all of them equal


def make_folder(workdir: str | pathlib.Path) -> pathlib.Path:
  """Makes a run's folder, if it is missing, and gives that of its checkpoints.

  Raises:
    UserError: it cannot be made or written.
  """
  folder = paths.absolute(workdir) / "checkpoints"
  if paths.in_bucket(folder):
    paths.check_writable(folder)
    return folder
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{workdir}: cannot be made or used as a run's folder: {e.strerror}") from e
  if not os.access(folder, os.W_OK):
    raise UserError(f"{folder}: cannot be written; choose another workdir")
  return folder


class Checkpoints:
  """The checkpoints of one run; a context manager that waits for the last one to be written."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep: int = 2,
    best: str | None = None,
    lowest: bool = False,
  ):
    """Opens WORKDIR/checkpoints and clears what an interrupted save has left there.

    Args:
      workdir: the run's folder; made when it is missing.
      keep: how many of the latest checkpoints stay.
      best: name of the metric whose largest value keeps its checkpoint as well.
      lowest: its smallest value, instead.

    Raises:
      UserError: the folder cannot be made or written.
    """
    self.folder = make_folder(workdir)
    self._saving: tuple[pathlib.Path, Any] | None = None
    policies = ocp.training.preservation_policies
    rules = [policies.LatestN(keep)]
    if best is not None:
      rules.append(
        policies.BestN(
          # An earlier session may have measured less.
          get_metric_fn=lambda metrics: metrics.get(best, math.inf if lowest else -math.inf),
          reverse=lowest,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    with paths.reaching(self.folder, writing=True):
      for left in sorted(self.folder.glob("*.orbax-checkpoint-tmp*")):  # which Orbax removes now
        warnings.warn(f"{left}: removed, a save that did not end had left it", stacklevel=2)
      self._orbax = ocp.training.Checkpointer(
        self.folder,
        context=context(),
        preservation_policy=policies.AnyPreservationPolicy(rules),
        cleanup_tmp_directories=True,
      )

  def __enter__(self) -> Checkpoints:
    logging.getLogger("absl").addFilter(not_by_orbax)
    return self

  def __exit__(self, *error: object) -> None:
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # It raises again what `wait` has told.
        self._orbax.close()
      logging.getLogger("absl").removeFilter(not_by_orbax)

  @property
  def latest(self) -> pathlib.Path | None:
    """Folder of the latest complete checkpoint."""
    with paths.reaching(self.folder, writing=True):
      found = self._orbax.latest
    return None if found is None else self.folder / str(found.step)

  def save(
    self,
    state: TrainState,
    step: int,
    *,
    data: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Saves in the background, after copying the state to the host; waits for the save before.

    Args:
      state: the state after `step` steps.
      step: names the checkpoint.
      data: JSON position of the data iterator after the last batch used, the same on all hosts.
      meta: JSON entries to keep beside the arrays; "step", "arrays" and "sums" (their checksums)
        are added.
      metrics: scalars by which the best checkpoint is chosen.
    """
    arrays = _array_items(state)
    tables = {item: table(tree) for item, tree in arrays.items()}
    sums = {item: checksums(tree) for item, tree in arrays.items()}
    meta = {**meta, "step": step, "arrays": tables, "sums": sums}
    items = arrays | {"meta": meta_item(meta), "data": first_writes(_POSITION, data)}
    self.wait()
    folder = self.folder / str(step)
    try:
      response = self._orbax.save_checkpointables_async(step, items, force=True, metrics=metrics)
    except Exception as e:  # It has many types: a full disk, a lost mount.
      raise cannot_write(folder, e) from e
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
      raise cannot_write(folder, e) from e

  def restore(self, shapes: TrainState) -> tuple[TrainState, Any, dict[str, Any]]:
    """Reads the latest checkpoint into arrays with the shardings of `shapes` (`abstract_state`'s).

    The run may go on with another number of hosts and devices.

    Returns:
      The state, the data iterator's position and the meta entries.

    Raises:
      UserError: there is none, or it is damaged, or of another model or optimizer.
    """
    folder = self.latest
    if folder is None:
      raise UserError(f"{self.folder}: no complete checkpoint; start the run anew")
    wanted = _array_items(shapes)
    meta = read_meta(folder)
    for item in ARRAYS:
      wrong = differences(table(wanted.get(item, {})), meta["arrays"].get(item, {}))
      if wrong:
        raise UserError(
          f"{folder}: its {item} do not fit this stage and model: {wrong}; use another workdir"
        )
    position = _POSITION if (folder / "data" / _POSITION).exists() else _OLD_POSITION
    items = load_items(folder, wanted | {"data": JsonItem(position)})
    check_sums(folder, {item: items[item] for item in wanted}, meta)
    step = jax.device_put(np.int32(meta["step"]), shapes.step.sharding)
    # What has no arrays is not stored: an item or a sub-network whose shapes are all that it is.
    trees = {item: {**getattr(shapes, item), **items.get(item, {})} for item in ARRAYS}
    return TrainState(step=step, **trees), items["data"].value, meta


def _array_items(state: TrainState) -> dict[str, Any]:
  """The state's items and sub-networks that hold arrays; Orbax gives no empty tree back."""
  items = {item: getattr(state, item) for item in ARRAYS}
  items = {
    item: {name: net for name, net in trees.items() if jax.tree.leaves(net)}
    for item, trees in items.items()
  }
  return {item: trees for item, trees in items.items() if trees}
