"""Checkpoints as folders: reading one, and writing params to be shipped.

A checkpoint is a folder with one item each: `params`, `ema`, `opt_state` and, of a stage with an
opponent, `variables` (arrays), `meta`
(`meta.json`: step, stage, the caller's own entries, and every array's name, dtype, shape and
checksum) and `data` (the position in the data, one for all hosts). A run keeps them in
WORKDIR/checkpoints/STEP, see `train/checkpoints.py`; an exported folder holds `params` and `meta`
only. Orbax writes a folder under another name and renames it when it is complete.
"""

from __future__ import annotations

import errno
import gc
import glob
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from vsr_jax import files, json_files, paths
from vsr_jax.checkpoint_damage import REMEDY, check_size, check_sums, checksums
from vsr_jax.errors import UserError, is_full
from vsr_jax.guards import check_finite
from vsr_jax.orbax_threads import drop_late_reports, let_end, quiet
from vsr_jax.trees import by_network, check_table, differences, table, template

ARRAYS = ("params", "ema", "opt_state", "variables")
_DONE = "commit_success.txt"  # what Orbax writes last, in a bucket
_META = json_files.fields(
  {"arrays": json_files.fields({"params": check_table}, dict.fromkeys(ARRAYS, check_table))},
  {
    "step": json_files.integer(0, 2**31 - 1),
    "stage": json_files.optional(json_files.text),
    "sums": json_files.mapping(
      json_files.text, json_files.mapping(json_files.text, json_files.integer(0, 2**32 - 1))
    ),
  },
  more=True,
)


class JsonItem:
  """A JSON value as an item of its own, in a file that people can read."""

  def __init__(self, file: str, value: Any = None, write: bool = True):
    self.file, self.value, self.write = file, value, write

  async def save(self, directory: Any) -> Any:
    """Encodes the value now and returns the coroutine that writes it."""
    # Encoded at once because the value may change while Orbax writes.
    text = json.dumps(self.value, indent=1, allow_nan=False)

    async def write():
      folder = await directory.await_creation()
      if self.write:
        (folder / self.file).write_text(text)

    return write()

  async def load(self, directory: Any) -> Any:
    """Returns the coroutine that reads the value."""

    async def read():
      self.value = json_files.read(directory / self.file, json_files.anything)

    return read()


def first_writes(file: str, value: Any) -> JsonItem:
  """An item that is the same in all processes, of which the first writes it."""
  return JsonItem(file, value, write=jax.process_index() == 0)


def meta_item(value: Any) -> JsonItem:
  """The item of a checkpoint's meta entries."""
  return first_writes("meta.json", value)


def find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
  """The checkpoint folder meant by a run's workdir, a checkpoint itself or an exported folder.

  Raises:
    UserError: there is no checkpoint.
  """
  path = paths.absolute(path)
  if not paths.is_folder(path):
    raise UserError(
      f"{path}: no such folder; give a run's folder, or what a convert command has written"
    )
  if paths.is_folder(path / "meta") or paths.is_folder(path / "params"):
    return path
  steps = _complete(path)
  if not steps:
    raise UserError(f"{path}: holds no checkpoint; give a run's folder or an exported checkpoint")
  return max(steps, key=lambda p: int(p.name))


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
  """Whether a run's folder has a checkpoint to go on from.

  Raises:
    UserError: its bucket cannot be used.
  """
  return bool(_complete(paths.absolute(workdir)))


def is_trained(workdir: str | pathlib.Path, steps: int) -> bool:
  """Whether a run's folder has the checkpoint of so many steps, a run's last."""
  return any(int(path.name) == steps for path in _complete(paths.absolute(workdir)))


def _complete(workdir: pathlib.Path) -> list[pathlib.Path]:
  """A run's checkpoints; in a bucket one that is being written has its final name already."""
  with paths.reaching(workdir):
    found = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    if paths.in_bucket(workdir):
      return [path for path in found if (path / _DONE).exists()]
  return [path for path in found if path.is_dir()]


def read_meta(path: str | pathlib.Path) -> dict[str, Any]:
  """The meta entries of a checkpoint (see `find_checkpoint` for what path may be).

  Raises:
    UserError: the checkpoint or its meta is missing or damaged.
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
    like: params (or their shapes) of the model's sub-networks to read, by sub-network, which those
      in the checkpoint must match; None reads all sub-networks unchecked.
    ema: take the moving average where the checkpoint has one.

  Returns:
    Params by sub-network, on the default device and not committed to it; what is stored as float16
    (see `export_params`) is float32.

  Raises:
    UserError: the checkpoint is missing or damaged, holds the params of another model, or numbers
      that are not finite.
  """
  folder = find_checkpoint(path)
  meta = read_meta(folder)
  tables = meta["arrays"]
  items = ("params", "ema") if ema and "ema" in tables else ("params",)
  if like is not None:
    held: dict[str, dict[str, str]] = {}  # by sub-network; the average takes the place of params
    for item in items:
      held |= by_network(tables[item])
    there = {name: _widened(x) for network in like for name, x in held.get(network, {}).items()}
    if wrong := differences(table(like), there):
      raise UserError(f"{folder}: not the weights of this model: {wrong}")
  templates = {item: template(tables[item]) for item in items}
  # A bucket's is copied: one that came from a file system lacks what Orbax asks for in buckets.
  with paths.nearby(folder) as near:
    check_size(near, [tables[item] for item in items])
    trees = load_items(near, templates)  # whole items: Orbax cannot read parts of one
    check_sums(near, trees, meta)
  params = trees["params"] | trees.get("ema", {})
  wanted = params if like is None else like
  check_finite(traverse_util.flatten_dict(params, sep="/"), str(folder))
  return jax.tree.map(_as_array, {name: params[name] for name in params if name in wanted})


def _as_array(x: np.ndarray) -> jax.Array:
  return jnp.asarray(x, jnp.float32 if x.dtype == np.float16 else x.dtype)


def _widened(spec: str) -> str:
  """A table's entry of what a stored array becomes: float32 where float16 is stored."""
  return spec.replace("float16[", "float32[") if spec.startswith("float16[") else spec


def check_export(path: str | pathlib.Path) -> None:
  """Checks, before any work is done, that `export_params` can write a folder.

  Raises:
    UserError: the path is something else than an exported folder, or cannot be written.
  """
  path = paths.absolute(path)
  with paths.reaching(path):
    if path.exists() and not (path / "params").is_dir():
      raise UserError(f"{path}: exists and is no exported checkpoint; choose another folder")
  if paths.in_bucket(path):
    paths.check_writable(path)
    return
  (files.check_place if path.exists() else files.check_folder)(path)


def export_params(
  path: str | pathlib.Path,
  params: Mapping[str, Any],
  meta: Mapping,
  *,
  half: bool = False,
) -> None:
  """Writes params and their meta entries (the model's config, say) for shipping.

  Args:
    path: folder to be written; an older export there is replaced.
    params: params of every sub-network.
    meta: JSON entries.
    half: store float32 as float16, in half the space; `restore_params` gives float32 again.

  Raises:
    UserError: the path is something else than an exported folder, or cannot be written; or a
      number is too large for float16.
    OSError: the params do not fit on the disk (ENOSPC); nothing was written.
  """
  path = paths.absolute(path)
  check_export(path)
  if paths.in_bucket(path):
    with tempfile.TemporaryDirectory() as near:
      export_params(pathlib.Path(near, "export"), params, meta, half=half)
      paths.copy_to(pathlib.Path(near, "export"), path, last="meta")
    return
  params = jax.tree.map(np.asarray, dict(params))
  if half:
    params = _as_half(params, path)
  # Checked beforehand: Orbax's writer threads go on after one has failed, and print tracebacks.
  there = next(folder for folder in path.parents if folder.exists())
  if shutil.disk_usage(there).free < sum(x.nbytes for x in jax.tree.leaves(params)):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
  meta = {**meta, "arrays": {"params": table(params)}, "sums": {"params": checksums(params)}}
  part = pathlib.Path(files.part_name(path))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove_left(path.parent, path.name)
    with context(), quiet():
      ocp.save_checkpointables(part, {"params": params, "meta": meta_item(meta)})
    # This file of Orbax's names the local folder, which is private and no part of shipped weights.
    (part / _DONE).unlink(missing_ok=True)
    files.replace_folder(str(part), str(path))
  except Exception as e:  # Orbax raises many types, as in `Checkpoints.save`.
    raise cannot_write(path, e) from e
  finally:
    let_end()
    for left in path.parent.glob(f"{glob.escape(part.name)}*"):  # Orbax writes beside it, too
      files.remove(str(left))


def _as_half(params: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """float32 arrays as float16; `UserError` where that is too small for a number."""
  with np.errstate(over="ignore"):  # told below
    half = jax.tree.map(lambda x: x.astype(np.float16) if x.dtype == np.float32 else x, params)
  flat = traverse_util.flatten_dict(half, sep="/")
  if large := [name for name, x in flat.items() if not np.isfinite(x).all()]:
    raise UserError(
      f"{path}: float16 is too small for numbers in {', '.join(large[:3])}; store them as float32"
    )
  return half


def load_items(folder: pathlib.Path, items: dict[str, Any]) -> dict[str, Any]:
  """Reads items: `items` gives the template of each by name; the result has their trees."""
  loaded = {}
  with quiet():
    for item, template in items.items():  # One by one, to name the damaged one.
      try:
        loaded |= ocp.load_checkpointables(folder, {item: template})
      except Exception as e:  # Orbax and TensorStore raise a dozen types for a damaged folder.
        failure = e
        break
    else:
      return loaded
    gc.collect()  # While it is quiet: the abandoned reads report themselves when they are freed.
  drop_late_reports()
  if paths.in_bucket(folder):  # where an outage is as likely
    raise paths.no_use(folder, failure)
  raise UserError(f"{folder}: damaged, its {item} cannot be read; {REMEDY}")


def context() -> ocp.Context:
  """Orbax's settings."""
  context = ocp.Context()
  # At once, for writers wait minutes for a folder that cannot be made.
  context.asynchronous.create_directories_asynchronously = False
  # Devices with the same array write a part of it each, which takes seconds for many small ones.
  context.array_options.saving.min_slice_bytes_for_replica_parallel = 2**20
  return context


def cannot_write(folder: pathlib.Path, error: Exception) -> UserError | OSError:
  """Removes what a failed save left beside its folder, and returns the error that says why."""
  let_end()
  if paths.in_bucket(folder):  # where the next session removes what is not complete
    return paths.no_use(folder, error)
  for part in folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
    shutil.rmtree(part, ignore_errors=True)
  if is_full(error):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
  reason = (str(error).splitlines() or [type(error).__name__])[0]
  return UserError(f"{folder}: a checkpoint cannot be written, mend that and run again: {reason}")
