"""Reads networks in ncnn's format: NAME.param, the layers as text, and NAME.bin, their weights.

The format is described in ncnn's wiki, "param and model file structure". Only the kinds of layers
that this project's networks have are known, with weights in float16 or float32. Neither file is
trusted: both are read up to a limit, and the sizes in the one must add up to that of the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vsr_jax import guards
from vsr_jax.errors import UserError

_MAGIC = "7767517"
_MAX_TEXT, _MAX_BYTES = 2**20, 2**26
_WITHOUT_WEIGHTS = ("BinaryOp", "Input", "Interp", "PixelShuffle", "Split")
_KINDS = ("Convolution", "PReLU", *_WITHOUT_WEIGHTS)
# How a layer's main weights are stored, by the first four bytes; other values mean quantised ones.
_STORED = {0x01306B47: "<f2", 0: "<f4"}


Option = float | tuple[float, ...]


class Layer(NamedTuple):
  """A layer of a network.

  Attributes:
    kind: ncnn's name for what it computes, such as "Convolution".
    name: its own.
    inputs: names of the arrays that it takes.
    outputs: names of those that it makes.
    options: by ncnn's number; of a convolution 0 is the number of outputs, 1 the kernel's side, 4
      the padding, 5 whether there is a bias, 6 how many numbers the kernel has.
    weights: a convolution's "weight" [out in h w] and, if it has one, "bias"; a PReLU's "weight".
      Others have none.
  """

  kind: str
  name: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  options: dict[int, Option]
  weights: dict[str, np.ndarray]


def load(path: str | Path) -> list[Layer]:
  """Reads a network.

  Args:
    path: either of its two files; the other one lies beside it.

  Returns:
    The layers in order, with their weights, which are read-only.

  Raises:
    UserError: a file is missing, damaged, too large or of another format, the two do not belong
      together, or there is a layer of an unknown kind.
  """
  param, weights = (Path(path).with_suffix(suffix) for suffix in (".param", ".bin"))
  example = "the .param and the .bin file of an ncnn network, which lie beside each other"
  with guards.reading(param, ".param file of ncnn", example):
    layers = _parse(guards.read_bytes(param, _MAX_TEXT).decode("ascii"), str(param))
  with guards.reading(weights, f".bin file to {param.name}", example):
    data = _Data(guards.read_bytes(weights, _MAX_BYTES))
    layers = [layer._replace(weights=_take_weights(layer, data)) for layer in layers]
    if data.left:
      raise ValueError(f"{data.left} bytes too many")
  return layers


def _parse(text: str, source: str) -> list[Layer]:
  magic, counts, *lines = text.strip().splitlines()
  if magic.strip() != _MAGIC:
    raise ValueError(f"its first line is {guards.shorten(magic)}, not {_MAGIC}")
  count = counts.split()[0]
  if int(count) != len(lines):
    raise ValueError(f"{len(lines)} layers of {guards.shorten(count)}")
  layers = [_parse_layer(line) for line in lines]
  if unknown := sorted({layer.kind for layer in layers} - set(_KINDS)):
    kinds = guards.shorten(", ".join(unknown))
    raise UserError(f"{source}: another network's, with layers of the kinds {kinds}; give its file")
  return layers


def _parse_layer(line: str) -> Layer:
  kind, name, inputs, outputs, *rest = line.split()
  first, last = int(inputs), int(inputs) + int(outputs)
  if not 0 <= first <= last <= len(rest):
    raise ValueError(f"{guards.shorten(line)} names fewer arrays than it says")
  options = dict(_parse_option(text) for text in rest[last:])
  return Layer(kind, name, tuple(rest[:first]), tuple(rest[first:last]), options, {})


def _parse_option(text: str) -> tuple[int, Option]:
  """NUMBER=VALUE, or -23300-NUMBER=LENGTH,VALUE,VALUE."""
  found = re.fullmatch(r"(-?\d{1,6})=([-+.,e\d]{1,200})", text, re.ASCII)
  if not found:
    raise ValueError(f"{guards.shorten(text)} is no option")
  number, values = int(found[1]), tuple(map(float, found[2].split(",")))
  if number < 0:
    return -23300 - number, values[1:]
  (value,) = values
  return number, value


class _Data:
  """The contents of a .bin file, taken from its start on."""

  def __init__(self, data: bytes):
    self._data, self._position = data, 0

  @property
  def left(self) -> int:
    return len(self._data) - self._position

  def take(self, count: int, dtype: str = "<f4") -> np.ndarray:
    """The next `count` numbers; what fills up their last four bytes is passed over."""
    size = -(-count * np.dtype(dtype).itemsize // 4) * 4
    if size > self.left:
      raise ValueError("too short")
    array = np.frombuffer(self._data, dtype, count, self._position)
    self._position += size
    return array


def _take_weights(layer: Layer, data: _Data) -> dict[str, np.ndarray]:
  if layer.kind == "PReLU":
    return {"weight": data.take(_whole(layer.options, 0))}
  if layer.kind != "Convolution":
    return {}
  outputs, side, count = (_whole(layer.options, number) for number in (0, 1, 6))
  if _whole(layer.options, 11, side) != side:
    raise ValueError(f"{guards.shorten(layer.name)} has a kernel that is not square")
  marked = int(data.take(1, "<u4")[0])
  if marked not in _STORED:
    raise ValueError(f"{guards.shorten(layer.name)} is stored as neither float16 nor float32")
  weights = {"weight": data.take(count, _STORED[marked]).reshape(outputs, -1, side, side)}
  if _whole(layer.options, 5, 0):
    weights["bias"] = data.take(outputs)
  return weights


def _whole(options: Mapping[int, Any], number: int, default: int | None = None) -> int:
  """An option that must be a whole number, 0 or more."""
  value = options.get(number, default)
  if not isinstance(value, int | float) or value != int(value) or value < 0:
    raise ValueError(f"option {number} is {value}")
  return int(value)
