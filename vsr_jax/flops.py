"""Counts the floating-point operations of a program from its jaxpr, before it is compiled.

Every multiplication and every addition of a product or convolution counts, of elementwise
arithmetic one operation a number, and of a sum one a number that is added. XLA's analysis agrees
where there are no loops and one device; here all turns of loops and all devices' parts count, and
no backend is asked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

_ELEMENTWISE = frozenset(
  (
    *("abs", "add", "add_any", "atan2", "cbrt", "ceil", "clamp", "cos", "cosh", "div", "erf"),
    *("erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "log", "log1p"),
    *("logistic", "max", "min", "mul", "neg", "pow", "rem", "round", "rsqrt", "sign", "sin"),
    *("sinh", "sqrt", "square", "sub", "tan", "tanh"),
  )
)
_REDUCING = frozenset(
  (
    *("argmax", "argmin", "cummax", "cummin", "cumprod", "cumsum", "reduce_max", "reduce_min"),
    *("reduce_prod", "reduce_sum", "scatter-add"),
  )
)


def count_flops(function: Callable[..., Any], *args: Any, platform: str | None = None) -> float:
  """The floating-point operations of a function; see `count_jaxpr`.

  Args:
    function: what `jax.jit` would take.
    args: its arguments, trees of arrays or `jax.ShapeDtypeStruct`.
    platform: where it would run, such as "tpu"; None: on JAX's default backend.
  """
  return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, platform)


def count_jaxpr(jaxpr: Jaxpr, platform: str | None = None) -> float:
  """The floating-point operations of a jaxpr on all devices together.

  Where branches depend on values, the most costly one counts; a loop whose number of turns depends
  on values counts one turn.

  Args:
    jaxpr: the program's.
    platform: whose branch counts where they differ by platform; None: JAX's default backend's.
  """
  return _count(jaxpr, platform or jax.default_backend(), [True] * len(jaxpr.outvars))


def _count(jaxpr: Jaxpr, platform: str, used: Sequence[bool]) -> float:
  """Counts what the used ones of a jaxpr's outputs need; compilers leave the rest out, too."""
  needed = {id(x) for x, is_used in zip(jaxpr.outvars, used, strict=True) if is_used}
  total = 0.0
  for equation in reversed(jaxpr.eqns):
    outputs = [id(x) in needed for x in equation.outvars]
    if any(outputs) or equation.effects:
      needed |= {id(x) for x in equation.invars}
      total += _count_equation(equation, platform, outputs)
  return total


def _count_equation(equation: JaxprEqn, platform: str, used: Sequence[bool]) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "cond":
    return _count_branches(params, platform, used)
  inner = list(_inner_jaxprs(params))
  if inner:
    # What leaves a turn of a loop may be needed in the next one.
    known = len(inner) == 1 and len(inner[0].outvars) == len(used) and name != "scan"
    counts = (_count(x, platform, used if known else [True] * len(x.outvars)) for x in inner)
    return _turns(name, params) * sum(counts)
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = _shape(equation.invars[0])
    return 2.0 * math.prod(shape[axis] for axis in contracted) * _size(equation.outvars[0])
  if name == "conv_general_dilated":
    return _count_convolution(equation)
  if name in _ELEMENTWISE and _is_floating(equation.outvars[0]):
    return float(_size(equation.outvars[0]))
  if name in _REDUCING and _is_floating(equation.invars[0]):
    return float(_size(equation.invars[-1 if name == "scatter-add" else 0]))
  return 0.0


def _count_branches(params: dict[str, Any], platform: str, used: Sequence[bool]) -> float:
  counts = [_count(branch.jaxpr, platform, used) for branch in params["branches"]]
  platforms = params.get("branches_platforms")
  if platforms:
    named = (i for i, names in enumerate(platforms) if names is None or platform in names)
    return counts[next(named)]
  return max(counts)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
  """The jaxprs that an equation runs; of a loop's condition, which is small, there are two."""
  for x in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
    if _is_jaxpr(x):
      yield x.jaxpr if isinstance(x, ClosedJaxpr) else x


def _is_jaxpr(x: Any) -> bool:
  return isinstance(x, (Jaxpr, ClosedJaxpr))


def _turns(name: str, params: dict[str, Any]) -> int:
  """How often an equation's inner jaxprs run, on all devices together."""
  if name == "scan":
    return params["length"]
  if name == "shard_map":
    return params["mesh"].size
  return 1


def _count_convolution(equation: JaxprEqn) -> float:
  """Multiplications and additions of numbers that are there, not of padding or of dilation."""
  params, numbers = equation.params, equation.params["dimension_numbers"]
  x, kernel, y = (_shape(variable) for variable in (*equation.invars, *equation.outvars))
  sides = zip(
    [x[axis] for axis in numbers.lhs_spec[2:]],
    [kernel[axis] for axis in numbers.rhs_spec[2:]],
    [y[axis] for axis in numbers.out_spec[2:]],
    params["window_strides"],
    [low for low, _ in params["padding"]],
    params["lhs_dilation"],
    params["rhs_dilation"],
    strict=True,
  )
  meetings = math.prod(_meetings(*side) for side in sides)
  batch, channels = (y[axis] for axis in numbers.out_spec[:2])
  return 2.0 * meetings * batch * channels * kernel[numbers.rhs_spec[1]]


@functools.lru_cache(maxsize=4096)
def _meetings(
  inputs: int, taps: int, outputs: int, stride: int, pad: int, spread: int, dilation: int
) -> int:
  """How many pairs of an output and a tap read an input along one axis.

  `spread` is the distance between inputs, of which the others are zeros; `dilation` that of taps.
  """
  at = np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation - pad
  return int(((at >= 0) & (at <= (inputs - 1) * spread) & (at % spread == 0)).sum())


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


def _size(variable: Any) -> int:
  return math.prod(_shape(variable))


def _is_floating(variable: Any) -> bool:
  return jax.numpy.issubdtype(variable.aval.dtype, np.floating)
