"""Programs compiled ahead of their first run, one for each shape of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vsr_jax.compiling import compiling


class CompiledByShape:
  """Calls a jitted function of params and arrays; compiles it per shape, within `compiling`."""

  def __init__(self, jitted: jax.stages.Wrapped, name: Callable[..., str]):
    """Takes the function; nothing is compiled yet.

    Args:
      jitted: from `jax.jit`; its first argument, the params, has the same shapes in every call;
        no argument is static.
      name: a function of the other arguments that names what is compiled; see `compiling`.
    """
    self._jitted, self._name = jitted, name
    self._programs: dict[Any, jax.stages.Compiled] = {}

  def __call__(self, params: Any, *args: Any) -> Any:
    leaves, structure = jax.tree.flatten(args)
    key = structure, *((x.shape, x.dtype) for x in leaves)
    if key not in self._programs:
      with compiling(self._name(*args)):
        self._programs[key] = self._jitted.lower(params, *args).compile()
    return self._programs[key](params, *args)
