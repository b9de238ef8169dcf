"""Reads pickles as data, without running code.

A pickle is a program for a machine with a stack. Python's own machine can call anything and asks
for as much memory as the program wants; this one knows the few operations that weight files need,
builds only plain values and what a kind of file admits, and limits the number of operations.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any, ClassVar

from vsr_jax.guards import shorten

# KEEP's 1,500 tensors take 60,000 operations and 0.3 MB; with the optimizer's three times as many.
_MAX_OPERATIONS = 500_000
_MAX_NAME = 300  # characters of a dict's key

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ARGUMENTS = {
  *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


class CodeError(ValueError):
  """The pickle names something that is neither an array nor a plain container."""


class Name:
  """A class or function that the pickle names: nothing that Python could call."""

  def __init__(self, name: str):
    self.name = name


class Machine:
  """Runs one pickle after the other; a kind of file derives its own.

  Attributes:
    admitted: the classes and functions that a pickle may name, (module, name).
    stack: the values so far.
  """

  admitted: ClassVar[set[tuple[str, str]]] = {("collections", "OrderedDict")}

  def __init__(self):
    self.stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    self._spent = 0

  def run(self, stream: io.BytesIO) -> Any:
    """Reads the pickle at the stream's position, and leaves the position after it.

    Args:
      stream: the pickle, whose bytes the caller has limited, and whatever follows it.

    Returns:
      The value, made of dicts, lists, tuples, numbers, strings, bytes and what the kind of file
      adds, in which containers can even contain themselves.

    Raises:
      CodeError: the pickle names something that is not admitted; the text is that name.
      ValueError, or any other exception that meaningless bytes lead to: the pickle is damaged, or
        asks for more than a weight file needs.
    """
    for opcode, argument, _ in pickletools.genops(stream):
      self.spend(1)
      self._do(opcode.name, argument)
    return self.stack.pop()

  def spend(self, operations: int) -> None:
    """Counts operations, and raises ValueError when they are too many."""
    self._spent += operations
    if self._spent > _MAX_OPERATIONS:
      raise ValueError(f"more than {_MAX_OPERATIONS} operations")

  def call(self, name: str, arguments: tuple) -> Any:
    """What a call of an admitted class or function returns."""
    if name != "OrderedDict":
      raise ValueError(f"{name} is called")
    made: dict[Any, Any] = {}
    pairs = checked_type(arguments[0], list) if arguments else []  # Python 2 gives them here
    self.spend(len(pairs))
    for key, value in pairs:
      _put(made, key, value)
    return made

  def refer(self, reference: tuple) -> Any:
    """What stands for something outside the pickle."""
    del reference
    raise ValueError("unknown reference")

  def set_state(self, target: Any, state: Any) -> None:
    """Gives an object its attributes: an OrderedDict's, such as module versions, are left out."""
    del state
    checked_type(target, dict)

  def _do(self, operation: str, argument: Any) -> None:
    stack = self.stack
    if operation in _ARGUMENTS:
      stack.append(argument)
    elif operation in _CONSTANTS:
      stack.append(_CONSTANTS[operation])
    else:
      match operation:
        case "BINPUT" | "LONG_BINPUT":
          self._memo[argument] = stack[-1]
        case "MEMOIZE":
          self._memo[len(self._memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET":
          stack.append(self._memo[argument])
        case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2; pickletools decodes them as Latin-1
          stack.append(argument.encode("latin-1").decode())
        case "MARK":
          self._marks.append(len(stack))
        case "TUPLE":
          stack.append(tuple(self._since_mark()))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
          count = int(operation[-1])
          stack[-count:] = [tuple(stack[-count:])]
        case "EMPTY_LIST":
          stack.append([])
        case "EMPTY_DICT":
          stack.append({})
        case "APPEND" | "APPENDS":
          values = self._since_mark() if operation == "APPENDS" else [stack.pop()]
          checked_type(stack[-1], list).extend(values)
        case "SETITEM" | "SETITEMS":
          if operation == "SETITEM":
            self._marks.append(len(stack) - 2)
          values = self._since_mark()
          for key, value in zip(values[::2], values[1::2], strict=True):
            _put(checked_type(stack[-1], dict), key, value)
        case "BUILD":
          state = stack.pop()
          self.set_state(stack[-1], state)
        case "GLOBAL":
          stack.append(self._named(*argument.split(" ", 1)))
        case "STACK_GLOBAL":
          name, module = stack.pop(), stack.pop()
          stack.append(self._named(checked_type(module, str), checked_type(name, str)))
        case "REDUCE":
          arguments = checked_type(stack.pop(), tuple)
          stack.append(self.call(checked_type(stack.pop(), Name).name, arguments))
        case "BINPERSID":
          stack.append(self.refer(checked_type(stack.pop(), tuple)))
        case "PROTO" | "FRAME" | "STOP":
          pass
        case _:
          raise ValueError(f"operation {operation}")

  def _named(self, module: str, name: str) -> Name:
    if (module, name) not in self.admitted:
      raise CodeError(shorten(f"{module}.{name}"))
    return Name(name)

  def _since_mark(self) -> list[Any]:
    start = self._marks.pop()
    values = self.stack[start:]
    del self.stack[start:]
    return values


def checked_type(value: Any, wanted: type) -> Any:
  """The value, if it is exactly of the type; otherwise raises ValueError."""
  if type(value) is not wanted:
    raise ValueError(f"{type(value).__name__} in the place of {wanted.__name__}")
  return value


def checked_size(value: Any) -> int:
  """A size, an offset or a stride, if it is an integer from 0 to 2^48 - 1; else ValueError."""
  if not 0 <= checked_type(value, int) < 2**48:
    raise ValueError("a size that cannot be")
  return value


def _put(target: dict, key: Any, value: Any) -> None:
  if type(key) is str:
    if len(key) > _MAX_NAME or not key.isprintable():
      raise ValueError(f"the name {shorten(key)}")
  elif type(key) is not int or not -(2**63) <= key < 2**63:  # others could be made to have one hash
    raise ValueError(f"a {type(key).__name__} as a name")
  if key in target:
    raise ValueError(f"{key} twice")
  target[key] = value
