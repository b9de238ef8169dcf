"""Where and when XLA computes: on each device's part of a batch, by platform, after what else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec


def by_device(
  function: Callable[..., jax.Array], first: jax.Array, *others: jax.Array | None
) -> jax.Array:
  """Applies a function to each device's part of a batch, under a mesh set with `jax.set_mesh`.

  For functions that loop over the images of a batch: left to the partitioner, every turn of such
  a loop would gather the batch on every device.

  Args:
    function: arrays [b ...] -> array [b' ...], where what belongs to an image depends on that
      image alone, or b' = 1 and the results of parts are to be added up.
    first: [b ...], the batch split over the mesh's "data" axis.
    others: likewise; they may be None.

  Returns:
    The results, concatenated along their first axis. Without a mesh, or where the batch does not
    divide among the devices, `function(first, *others)`.
  """
  if parts_of(len(first)) == 1:
    return function(first, *others)
  split = PartitionSpec("data")
  # Nothing is shared between parts, so that there is nothing for the check to find; it knows no
  # loops that start from constants.
  sharded = jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)
  return sharded(first, *others)


def parts_of(batch: int) -> int:
  """Into how many parts the devices of the mesh in use split a batch; 1 if it does not divide."""
  parts = jax.sharding.get_abstract_mesh().shape.get("data", 1)
  return 1 if batch % parts else parts


def with_cpu_form(cpu: Callable[..., Any], definition: Callable[..., Any]) -> Callable[..., Any]:
  """A function that equals `definition` and runs `cpu` on CPU, where it is not differentiated.

  Args:
    cpu: a form of the definition for XLA's CPU backend.
    definition: what is computed elsewhere, and what is differentiated.

  Returns:
    The function of the same arguments, which it may not close over.
  """

  @jax.custom_jvp
  def function(*args):
    return lax.platform_dependent(*args, cpu=cpu, default=definition)

  function.defjvp(lambda primals, tangents: jax.jvp(definition, primals, tangents))
  return function


def computed_once(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """`function(*arrays)`, on CPU computed before anything reads it.

  XLA otherwise repeats a cheap sum within each of its readers: of a chain of residual sums it holds
  all terms, and adds all of them up again in every link. Where it is differentiated, the function
  is as it stands, and so it is on a mesh of several devices: there, to wait for all parts of an
  array, the devices would have to wait for each other.

  Args:
    function: of these arrays alone; it may close over no others.
    arrays: at least one.
  """
  if _on_several_devices():
    return function(*arrays)

  def always(*arrays):
    result = jax.eval_shape(function, *arrays)
    never = jnp.zeros(result.shape, result.dtype)
    return lax.cond(true_after(arrays[0]), function, lambda *_: never, *arrays)

  return with_cpu_form(always, function)(*arrays)


def after(x: Any, y: jax.Array) -> Any:
  """x as it is, on CPU not before y is computed; on a mesh of several devices at any time.

  What depends on few of a program's inputs could be computed at its start, and XLA's CPU backend
  does so and holds all of it.
  """
  if _on_several_devices():
    return x

  def wait(x, y):
    always = true_after(y)
    return jax.tree.map(lambda x: jnp.where(always, x, jnp.zeros((), x.dtype)), x)

  return lax.platform_dependent(x, y, cpu=wait, default=lambda x, _: x)


def _on_several_devices() -> bool:
  return jax.sharding.get_abstract_mesh().size > 1


def true_after(x: jax.Array) -> jax.Array:
  """True [], which XLA learns only once x is computed.

  What depends on it is not computed earlier, and a branch on it is not joined to what reads it.
  `lax.optimization_barrier` does neither here: it is gone when the CPU's schedule is made.
  """
  sample = lax.stop_gradient(x[(0,) * x.ndim])
  return (sample == sample) | jnp.isnan(sample)
