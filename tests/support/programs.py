"""Programs and numbers: compiled for one run, random parameters, how far results are apart."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vsr_jax import hlo
from vsr_jax.sharding import make_mesh
from vsr_jax.train.compile_only import Plan
from vsr_jax.train.state import abstract_state


def jit(function: Callable, **options: Any) -> Callable:
  """`jax.jit` without LLVM's optimisations: half the time to compile, to run a program once.

  `make test` compiles all programs so, `make test-full` these.
  """
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def scopes(jaxpr: Any) -> set[str]:
  """Names of all scopes (`jax.named_scope`, Linen's modules) that a jaxpr's operations are in."""
  found = set()
  for equation in jaxpr.eqns:
    found |= set(re.split(r"[/()]", str(equation.source_info.name_stack)))
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(inner):
        found |= scopes(inner)
  return found


def _is_jaxpr(x: Any) -> bool:
  return hasattr(x, "eqns")


@contextlib.contextmanager
def recording_steps() -> Iterator[list[str]]:
  """A context whose value gets the text of every training step that is compiled within."""
  texts: list[str] = []
  compile_lowered = jax.stages.Lowered.compile

  def compile_and_record(*args: Any, **options: Any) -> jax.stages.Compiled:
    program = compile_lowered(*args, **options)
    if (text := program.as_text() or "").startswith("HloModule jit_train_step"):
      texts.append(text)
    return program

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.stages.Lowered, "compile", compile_and_record)
    yield texts


def assert_gradients_alone_are_exchanged(text: str, plan: Plan) -> None:
  """Fails unless devices only sum gradients, once or, an opponent's, for real and for fake.

  Beyond them there is room for logs, statistics of batches, and sums in two parts or in every turn
  of a short loop: less than activations take.
  """
  found = hlo.analyse(text).collectives
  assert found.keys() == {"all-reduce"}
  params = abstract_state(plan.stage, plan.init_params, make_mesh()).params
  sizes = {
    name: sum(4 * x.size for x in jax.tree.leaves(params[name]))
    for name in plan.stage.all_optimizers
  }
  once = sum(sizes.values())
  own = sum(size for name, size in sizes.items() if name in plan.stage.optimizers)
  assert once <= found["all-reduce"].bytes <= 1.15 * (2 * once - own)


def random_params(shapes: Any | Callable[[jax.Array], Any]) -> Any:
  """Parameters in which nothing is zero, with outputs of about the size of the inputs.

  By NumPy: initialisers take far longer to compile than a small model to run. A leaf's values
  follow from its name and shape, so that the same one is the same in every architecture.

  Args:
    shapes: nested dicts of `jax.ShapeDtypeStruct`, or the function of a key that makes parameters,
      which is only asked for their shapes.
  """
  if callable(shapes):
    shapes = jax.eval_shape(shapes, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(_random_leaf, shapes)


def _random_leaf(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  name = "/".join(str(entry.key) for entry in path)
  noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(leaf.shape)
  if leaf.ndim > 1:
    noise /= np.sqrt(np.prod(leaf.shape[:-1]))
  else:
    noise = 0.1 * noise + name.endswith("scale")
  return jnp.asarray(noise, leaf.dtype)


def relative_error(x: np.ndarray | jax.Array, reference: np.ndarray) -> float:
  """Norm of the difference over norm of the reference."""
  x = np.asarray(x, np.float64)
  assert x.shape == reference.shape
  return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))
