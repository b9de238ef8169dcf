"""The device mesh, how params and batches are laid out on it, and placing batches there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vsr_jax.errors import UserError


def make_mesh(model_parallel: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes a mesh with the axes ("data", "model").

  `AxisType.Auto` is spelt out: jax.make_mesh's own default, Explicit, refuses ordinary video code
  such as a zeros scan carry or a pixel shuffle.

  Args:
    model_parallel: devices along the model axis.
    devices: by default all devices of all hosts.

  Raises:
    UserError: the devices do not divide into groups of `model_parallel`.
  """
  count = jax.device_count() if devices is None else len(devices)
  if model_parallel < 1 or count % model_parallel:
    raise UserError(f"model_parallel {model_parallel} does not divide the {count} devices")
  shape = (count // model_parallel, model_parallel)
  return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that keeps the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding that splits an array's first (batch) axis over the mesh's data axis."""
  return NamedSharding(mesh, PartitionSpec("data"))


def param_sharding(
  mesh: Mesh, shape: tuple[int, ...], fsdp_min_size: int | None = None
) -> NamedSharding:
  """The sharding of an array of the training state; it depends on the shape only.

  So the optimizer's moments are laid out like their params.

  Args:
    mesh: from `make_mesh`.
    shape: the array's shape.
    fsdp_min_size: arrays with at least this many elements are split over the data axis along
      their largest divisible axis (fully sharded data parallelism); None: all are replicated.
  """
  if fsdp_min_size is None or np.prod(shape, dtype=np.int64) < fsdp_min_size:
    return replicated(mesh)
  parts = mesh.shape["data"]
  fits = [axis for axis, size in enumerate(shape) if size % parts == 0]
  if not fits:
    return replicated(mesh)
  axis = max(fits, key=lambda axis: shape[axis])
  return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def place_everywhere(mesh: Mesh, tree: Any) -> Any:
  """Puts whole arrays on every device of the mesh; every host gives the same ones."""
  everywhere = replicated(mesh)

  def place(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding == everywhere:
      return x
    return jax.make_array_from_callback(x.shape, everywhere, np.asarray(x).__getitem__)

  return jax.tree.map(place, tree)


def host_rows(mesh: Mesh, size: int) -> tuple[int, ...]:
  """The rows of a global batch that this host's devices hold, in ascending order.

  They need not be consecutive: a mesh follows the wires between chips, not the order of hosts.

  Args:
    mesh: from `make_mesh`.
    size: samples of the global batch.

  Raises:
    UserError: the devices along the data axis do not divide the batch.
  """
  parts = mesh.shape["data"]
  if size % parts:
    raise UserError(
      f"a batch of {size} does not divide among {parts} devices; change the batch size or the "
      "number of devices"
    )
  held = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
  return tuple(sorted({row for index in held if index for row in range(size)[index[0]]}))


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """Puts this host's part of a batch on its devices.

  Args:
    mesh: from `make_mesh`.
    batch: arrays [b ...] by name, this host's rows (`host_rows`) of the global batch.

  Returns:
    Global arrays by name, split over the data axis.

  Raises:
    UserError: the devices along the data axis do not divide the global batch.
  """
  sharding = batch_sharding(mesh)

  def place(x: np.ndarray) -> jax.Array:
    size = len(x) * jax.process_count()
    at = {row: i for i, row in enumerate(host_rows(mesh, size))}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None  # of a device that holds nothing
      rows = range(size)[index[0]]  # consecutive ones, since a device's rows are
      return x[at[rows[0]] : at[rows[-1]] + 1][(slice(None), *index[1:])]

    return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

  return {name: place(np.asarray(x)) for name, x in batch.items()}
