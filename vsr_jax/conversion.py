"""The strict table converter: another framework's state dict to our parameters.

A table is a list of `Rule`s. Every source tensor must match exactly one of
them, every leaf must be filled exactly once and every shape must agree; any
deviation is one error that lists them all, so that a file of another model, or
a truncated one, never turns into a model that merely works badly.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vsr_jax.errors import UserError
from vsr_jax.guards import check_finite

Transform = Callable[[np.ndarray], np.ndarray]

_LISTED = 10  # problems named in an error; the rest are counted


def as_is(x: np.ndarray) -> np.ndarray:
  """Returns biases, scales and statistics unchanged: both layouts agree."""
  return x


def conv2d(x: np.ndarray) -> np.ndarray:
  """Transposes a kernel [out in h w] to [h w in out]; a depthwise one [c 1 h w] to [h w 1 c]."""
  return x.transpose(2, 3, 1, 0)


def conv3d(x: np.ndarray) -> np.ndarray:
  """Transposes a kernel [out in t h w] to [t h w in out]."""
  return x.transpose(2, 3, 4, 1, 0)


def depthwise(x: np.ndarray) -> np.ndarray:
  """Transposes a depthwise kernel [c 1 h w] to [h w c], as `ops.depthwise` takes it."""
  return x.squeeze(1).transpose(1, 2, 0)


def frame_conv(x: np.ndarray) -> np.ndarray:
  """Turns a 3-D kernel that spans one frame, [out in 1 h w], into the 2-D [h w in out]."""
  return x.squeeze(2).transpose(2, 3, 1, 0)


def dense(x: np.ndarray) -> np.ndarray:
  """Turns a matrix [out in], or a 1x1 kernel [out in 1 1], into [in out]."""
  return x.reshape(x.shape[:2]).T


class Rule(NamedTuple):
  r"""One line of a table.

  Attributes:
    pattern: a regular expression that the whole source key must match.
    path: the leaf that the tensor fills, names joined by "/"; it may refer to groups of the pattern
      as in `re.sub` (r"block_\1/kernel"). None: the tensor is known and is left out.
    transform: from the source's layout to ours.
  """

  pattern: str
  path: str | None
  transform: Transform = as_is


def with_bias(pattern: str, path: str, transform: Transform = conv2d) -> list[Rule]:
  """Rules for the kernel of a convolution or dense layer and, where there is one, its bias."""
  return [
    Rule(rf"{pattern}\.weight", f"{path}/kernel", transform),
    Rule(rf"{pattern}\.bias", f"{path}/bias"),
  ]


def norm(pattern: str, path: str) -> list[Rule]:
  """Rules for a norm's scale and, where there is one, its bias."""
  return [Rule(rf"{pattern}\.weight", f"{path}/scale"), Rule(rf"{pattern}\.bias", f"{path}/bias")]


def batch_norm(pattern: str, path: str) -> list[Rule]:
  """Rules for a `layers.FrozenBatchNorm`: scale, bias and the stored statistics."""
  return [
    *norm(pattern, path),
    Rule(rf"{pattern}\.running_mean", f"{path}/mean"),
    Rule(rf"{pattern}\.running_var", f"{path}/var"),
    Rule(rf"{pattern}\.num_batches_tracked", None),  # used in training only
  ]


@contextlib.contextmanager
def reading_shapes(source: str, model: str) -> Iterator[None]:
  """A context in which errors of reading an architecture from a state dict become `UserError`."""
  wrong = f"{source} does not hold {model}'s weights"
  try:
    yield
  except KeyError as e:
    raise UserError(f"{wrong}: missing {e.args[0]}") from None
  except (ValueError, IndexError, ZeroDivisionError):  # a tensor has another rank, or is empty
    raise UserError(f"{wrong}: misshapen tensors") from None
  except UserError as e:
    raise UserError(f"{wrong}: {e}") from None


def convert(
  state: Mapping[str, np.ndarray],
  rules: Sequence[Rule],
  template: Mapping[str, Any],
  source: str = "state dict",
) -> dict[str, Any]:
  """Converts a state dict to parameters by a table of rules.

  Args:
    state: tensor by source key.
    rules: the table.
    template: nested dicts of abstract leaves (shape and dtype), from `jax.eval_shape`.
    source: the file the state came from, for the error.

  Returns:
    Nested dicts like the template, filled with numpy arrays of its dtypes.

  Raises:
    UserError: state and template do not fit by the table, with every problem counted and the first
      ten named; or a tensor holds NaN or infinite numbers.
  """
  wanted = traverse_util.flatten_dict(template, sep="/")
  filled: dict[str, np.ndarray] = {}
  origin: dict[str, str] = {}
  problems = []
  for key, value in state.items():
    match = _match(key, rules, problems)
    if match is None:
      continue
    transform, path = match
    if path not in wanted:
      problems.append(f"unexpected {key} (there is no {path})")
    elif path in origin:
      problems.append(f"{key} and {origin[path]} both fill {path}")
    else:
      origin[path] = key
      _fit(filled, path, key, value, transform, wanted[path], problems)
  problems += [f"missing {path}" for path in wanted if path not in origin]
  if problems:
    raise UserError(_report(source, problems))
  with np.errstate(over="ignore"):  # numbers too large for the leaf become infinite
    for path, array in filled.items():  # only now: what does not fit is not copied
      filled[path] = np.array(array, wanted[path].dtype, order="C")
  check_finite({origin[path]: array for path, array in filled.items()}, source)
  return traverse_util.unflatten_dict(filled, sep="/")


def to_state_dict(
  params: Mapping[str, Any],
  rules: Sequence[Rule],
  shapes: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
  """Converts parameters to the source's layout, by the same table backwards.

  A transform only moves values, so its inverse follows from the places to which
  it moves the numbers 0, 1, 2, ...

  Args:
    params: nested dicts of arrays, as `convert` returns them.
    rules: the table.
    shapes: the shape of each of the source's tensors by key; keys that the table leaves out are
      left out of the result.

  Returns:
    Tensor by source key.

  Raises:
    UserError: a key matches no rule or several, or its leaf is absent or of another shape.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  state = {}
  problems = []
  for key, shape in shapes.items():
    match = _match(key, rules, problems)
    if match is None:
      continue
    transform, path = match
    places = transform(np.arange(np.prod(shape, dtype=int)).reshape(shape))
    if path not in leaves or leaves[path].shape != places.shape:
      problems.append(f"no {path} of shape {places.shape} for {key}")
      continue
    flat = np.empty(places.size, leaves[path].dtype)
    flat[places.ravel()] = np.asarray(leaves[path]).ravel()
    state[key] = flat.reshape(shape)
  if problems:
    raise UserError(_report("parameters", problems))
  return state


def _match(key: str, rules: Sequence[Rule], problems: list[str]) -> tuple[Transform, str] | None:
  """The transform and the path of the one rule for a key; None where the key fills nothing."""
  found = [(rule, m) for rule in rules if (m := re.fullmatch(rule.pattern, key))]
  if len(found) != 1:
    problems.append(f"{key} matches several rules" if found else f"unexpected {key}")
    return None
  rule, match = found[0]
  return None if rule.path is None else (rule.transform, match.expand(rule.path))


def _fit(
  filled: dict[str, np.ndarray],
  path: str,
  key: str,
  value: np.ndarray,
  transform: Transform,
  leaf: Any,
  problems: list[str],
) -> None:
  """Puts one transformed tensor at its path, or notes why it does not belong there."""
  if not jnp.issubdtype(value.dtype, jnp.floating):
    problems.append(f"{key} holds {value.dtype}, not floating-point numbers")
    return
  try:
    array = transform(value)
  except (ValueError, IndexError):  # the transform expects other axes
    array = None
  if array is None or array.shape != tuple(leaf.shape):
    problems.append(f"{key} of shape {value.shape} does not fit {path} {tuple(leaf.shape)}")
    return
  filled[path] = array


def _report(source: str, problems: list[str]) -> str:
  more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
  listed = "; ".join(problems[:_LISTED])
  return f"{source} does not hold this model's weights, give the matching file: {listed}{more}"
