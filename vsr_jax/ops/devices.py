"""Control over XLA: computing per device of a mesh, per platform, and in a given order."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

_kernels = contextvars.ContextVar("kernels", default=True)  # see `without_kernels`


def by_device(
  function: Callable[..., jax.Array], first: jax.Array, *others: jax.Array | None
) -> jax.Array:
  """Applies a function to each device's part of a batch, under a mesh set with `jax.set_mesh`.

  For functions that loop over the images of a batch: left to the partitioner, every turn of such
  a loop would gather the batch on every device.

  Args:
    function: arrays [b ...] -> array [b' ...]. Either b' = b, and each image's result depends on
      that image alone; or b' = 1, and the caller sums the results of the parts.
    first: [b ...], the batch split over the mesh's "data" axis.
    others: likewise; they may be None.

  Returns:
    The results, concatenated along their first axis. Without a mesh, or where the batch does not
    divide among the devices, `function(first, *others)`.
  """
  if parts_of(first.shape[0]) == 1:  # not len, which a symbolic size does not have
    return function(first, *others)
  split = PartitionSpec("data")
  # check_vma is off because it rejects loops whose initial carry is a constant. It would find
  # nothing here: the parts share no values.
  sharded = jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)
  return sharded(first, *others)


def parts_of(batch: int) -> int:
  """Into how many parts the devices of the mesh in use split a batch; 1 if it does not divide."""
  parts = jax.sharding.get_abstract_mesh().shape.get("data", 1)
  return 1 if batch % parts else parts


def kernels_may_run() -> bool:
  """Whether a kernel written for one device may stand here: XLA cannot divide it among several.

  True without a mesh, and within `by_device` where the batch does divide; see `without_kernels`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return _kernels.get() and (mesh.size <= 1 or mesh.are_all_axes_manual)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
  """A context whose programs hold no kernels, traced in it for the first time.

  For programs of several platforms, in which JAX lowers no kernel, and for files that others read,
  who do not run foreign ones.
  """
  token = _kernels.set(False)
  try:
    yield
  finally:
    _kernels.reset(token)


def with_cpu_form(cpu: Callable[..., Any], definition: Callable[..., Any]) -> Callable[..., Any]:
  """A function that runs `cpu` on CPU, `definition` elsewhere and for its derivatives.

  Args:
    cpu: a function equal to `definition`, written for XLA's CPU backend.
    definition: the function that it equals.

  Returns:
    A function of the same arguments. Neither given function may close over traced arrays.
  """

  @jax.custom_jvp
  def function(*args):
    return lax.platform_dependent(*args, cpu=cpu, default=definition)

  function.defjvp(lambda primals, tangents: jax.jvp(definition, primals, tangents))
  return function


def materialise(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """`function(*arrays)`, on CPU materialised once instead of being fused into its consumers.

  XLA's CPU backend otherwise recomputes a cheap sum within each consumer: of a chain of residual
  sums it holds all terms and adds them all again at every step. Under differentiation, and on a
  mesh of several devices, this is the plain function: on a mesh the devices would have to wait for
  each other.

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


def delay_until(x: Any, y: jax.Array) -> Any:
  """Returns x, but on CPU and TPU what is computed from the result waits until y is computed.

  XLA may otherwise schedule what depends on few inputs at a program's start, and hold its results
  until they are needed. No effect on other platforms and on meshes of several devices.
  """
  if _on_several_devices():
    return x

  def wait(x, y):
    always = true_after(y)
    return jax.tree.map(lambda x: jnp.where(always, x, jnp.zeros((), x.dtype)), x)

  return lax.platform_dependent(x, y, cpu=wait, tpu=_wait_on_tpu, default=lambda x, _: x)


def one_by_one(
  function: Callable[..., jax.Array], *sequences: Sequence[jax.Array]
) -> list[jax.Array]:
  """Applies a function to the first arrays of all sequences, to the second ones, and so on.

  On TPU each call waits for the result of the one before, so that what a call needs is held once;
  XLA's CPU backend runs them in this order by itself.

  Args:
    function: arrays -> an array.
    sequences: of equal length.

  Returns:
    The results.
  """
  results: list[jax.Array] = []
  for arrays in zip(*sequences, strict=True):
    if results:
      arrays = lax.platform_dependent(arrays, results[-1], tpu=_wait_on_tpu, default=lambda x, _: x)
    results.append(function(*arrays))
  return results


def _wait_on_tpu(x: Any, y: jax.Array) -> Any:
  return lax.optimization_barrier((x, y))[0]


def _on_several_devices() -> bool:
  return jax.sharding.get_abstract_mesh().size > 1


def true_after(x: jax.Array) -> jax.Array:
  """A scalar that is always True, which XLA cannot know before x is computed.

  What depends on it is not scheduled earlier, and a branch on it is not fused into its consumers.
  `lax.optimization_barrier` achieves neither: XLA's CPU backend removes it before scheduling.
  """
  sample = lax.stop_gradient(x[(0,) * x.ndim])
  return (sample == sample) | jnp.isnan(sample)
