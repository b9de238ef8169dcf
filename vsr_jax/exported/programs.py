"""Functions as `jax.export` artefacts: StableHLO for one platform or several, without weights."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export

from vsr_jax.errors import UserError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# A custom call runs code of the process, by its name, with arguments of the file's choice: such as
# a callback at an address. Our programs hold none but checks of symbolic sizes.
_ALLOWED_CALLS = {"shape_assertion"}
_CALL = re.compile(r"custom_call(?: @(\w+)\()?")


def by_name(params: Any) -> dict[str, Any]:
  """The leaves of a tree by their paths, such as "encoder/conv/kernel", in the tree's order."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def lower(
  function: Callable[..., tuple[Any, ...]],
  params: Any,
  arguments: Sequence[Any],
  platforms: Sequence[str],
) -> export.Exported:
  """Lowers a function; what `vsr_jax.ops` chooses by platform is there for each of them.

  Args:
    function: `(params, *arguments)` -> a tuple of trees.
    params: a tree of arrays, or of their shapes and dtypes.
    arguments: trees of `jax.ShapeDtypeStruct`, whose sizes may be symbolic.
    platforms: some of `PLATFORMS`.

  Returns:
    A program of plain form: it takes the params `by_name` and, for each argument, the tuple of its
    leaves; it returns, for each tree of the result, the tuple of its leaves.

  Raises:
    UserError: the package flatbuffers, by which artefacts are written, is missing.
  """
  check_installed()
  structure, forms = jax.tree.structure(params), [jax.tree.structure(x) for x in arguments]
  shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in by_name(params).items()}

  def program(weights: dict[str, jax.Array], *given: tuple[jax.Array, ...]) -> Any:
    whole = jax.tree.unflatten(structure, [weights[name] for name in shapes])
    results = function(whole, *map(jax.tree.unflatten, forms, given))
    return tuple(tuple(jax.tree.leaves(x)) for x in results)

  leaves = (tuple(jax.tree.leaves(x)) for x in arguments)
  with _without_paths():
    return export.export(jax.jit(program), platforms=tuple(platforms))(shapes, *leaves)


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
  """A context in which lowered programs do not hold where on this machine their sources lie."""
  name = "jax_traceback_in_locations_limit"
  limit = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, limit)


def check_installed() -> None:
  """Raises `UserError` without flatbuffers, which `jax.export` needs to write and read files."""
  if importlib.util.find_spec("flatbuffers") is None:
    raise UserError("the package flatbuffers is missing: pip install flatbuffers")


def read(data: bytes) -> export.Exported:
  """Reads a serialised program, which is not trusted.

  Raises:
    ValueError: it calls code of the process.
    Exception: of any type; the bytes are damaged, or of a version that this JAX does not read.
  """
  program = export.deserialize(bytearray(data))
  called = {match[1] for match in _CALL.finditer(program.mlir_module())}
  if wrong := called - _ALLOWED_CALLS:
    raise ValueError(f"a program calls foreign code: {', '.join(sorted(map(str, wrong)))[:60]}")
  return program
