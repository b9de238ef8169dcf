"""What a compiled program moves: collectives and memory traffic, read off its HLO text.

XLA's own analysis counts the body of a loop once, memory that is on the chip like memory that is
not, and arrays without the padding of their tiles. Here a loop's body counts as often as it runs,
of the arrays only those in the device's main memory, with their padding: a TPU keeps
float32[720,1280,3] with its 3 channels padded to 128.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*[a-z\d]*)\[(?P<dims>[\d,<=]*)\](?:\{(?P<layout>[^}]*)\})?")
_TILE = re.compile(r"T\((?P<tile>[\d,*]+)\)")
_INSTRUCTION = re.compile(
  r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<op>[a-z][a-z\-]*)\("
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_GROUPS = re.compile(
  r"replica_groups=(?:\{\{(?P<first>[\d,]+)\}|\[\d+,(?P<size>\d+)\]"
  r"|mesh\[(?P<sizes>[^\]]*)\] \{(?P<axes>[^}]*)\})"
)
_AXIS = re.compile(r"'([^']+)'")
_AXIS_SIZE = re.compile(r"'([^']+)'=(\d+)")
_PAIRS = re.compile(r"\{(\d+),(\d+)\}")
_PARTITIONS = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ELEMENT = re.compile(r"\bindex=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Move nothing, or are counted with what they begin.
_FREE = frozenset(
  (
    "after-all", "bitcast", "constant", "domain", "get-tuple-element", "iota", "opt-barrier",
    "parameter", "partition-id", "replica-id", "tuple",
  )
)  # fmt: skip
_SLICES = frozenset(("dynamic-slice", "gather", "slice"))


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of a kind.

  Attributes:
    count: how many run.
    bytes: of their results on one device, together.
    sent: bytes that each device sends for them, where each group of devices is a ring.
  """

  count: int
  bytes: int
  sent: float


@dataclasses.dataclass(frozen=True)
class Moved:
  """What a program moves on one device each time it runs.

  Attributes:
    collectives: by kind, see `COLLECTIVES`; those that run and go beyond a device.
    traffic: bytes read from and written to main memory.
  """

  collectives: dict[str, Collective]
  traffic: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  op: str
  arguments: str
  operands: tuple[str, ...]
  rest: str  # attributes
  root: bool


_Computation = dict[str, _Instruction]


def analyse(text: str) -> Moved:
  """Counts what a compiled program moves.

  Args:
    text: `jax.stages.Compiled.as_text()`, after all of XLA's passes.

  Raises:
    ValueError: it has no entry.
  """
  computations, entry = _parse(text)
  devices = math.prod(int(n) for n in _PARTITIONS.findall(text.partition("\n")[0]))
  collectives: dict[str, Collective] = {}
  traffic = 0
  for times, computation in _executed(computations, entry, 1):
    for x in computation.values():
      kind = x.op.removesuffix("-start")
      if kind in COLLECTIVES and (group := _group_size(x, devices)) > 1:
        had = collectives.get(kind, Collective(0, 0, 0.0))
        size = times * _result_bytes(x)
        sent = had.sent + _sent(kind, size, group)
        collectives[kind] = Collective(had.count + times, had.bytes + size, sent)
      traffic += times * _traffic(x, computation, computations)
  return Moved(dict(sorted(collectives.items())), traffic)


def array_bytes(shape: str, *, padded: bool = False, everywhere: bool = True) -> int:
  """The bytes of an array, or of a tuple's arrays, in HLO's notation.

  Args:
    shape: such as "(f32[8,3]{1,0:T(8,128)}, s32[])".
    padded: whether to count the padding to whole tiles.
    everywhere: whether to count arrays outside the main memory, such as a TPU's vector memory.
  """
  total = 0
  for found in _ARRAY.finditer(shape):
    layout = found["layout"] or ""
    if not everywhere and "S(" in layout:
      continue
    dims = [int(n.strip("<=")) for n in found["dims"].split(",") if n]
    if padded:
      dims = _pad(dims, layout)
    total += -(-math.prod(dims) * _bits(found["dtype"]) // 8)
  return total


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  digits = re.search(r"\d+", dtype)
  return int(digits.group()) if digits else 0


def _pad(dims: list[int], layout: str) -> list[int]:
  """Sizes from the major to the minor axis, those of the first tile rounded up to whole ones."""
  order = layout.partition(":")[0]
  axes = [int(axis) for axis in order.split(",") if axis]
  if not axes:  # a scalar, or no layout is told
    return dims
  physical = [dims[axis] for axis in reversed(axes)]
  tile = _TILE.search(layout)
  if tile:
    sizes = [int(n) for n in tile["tile"].split(",") if n != "*"]
    for i, size in enumerate(reversed(sizes[-len(physical) :]), start=1):
      physical[-i] = -(-physical[-i] // size) * size
  return physical


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
  """All computations by name, and the entry's name."""
  computations: dict[str, _Computation] = {}
  entry, current = "", None
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      current = computations.setdefault(found["name"], {})
      entry = found["name"] if found["entry"] else entry
    elif current is not None and (made := _INSTRUCTION.match(line)):
      inside, rest = _arguments(line[made.end() :])
      operands = tuple(_OPERAND.findall(inside))
      name, shape, op, root = made["name"], made["shape"], made["op"], bool(made["root"])
      current[name] = _Instruction(name, shape, op, inside, operands, rest, root)
  if not entry:
    raise ValueError("the text has no ENTRY computation")
  return computations, entry


def _arguments(text: str) -> tuple[str, str]:
  """What is between an opened parenthesis and the one that closes it, and what follows."""
  depth = 1
  for i, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if not depth:
      return text[:i], text[i + 1 :]
  return text, ""


def _executed(
  computations: Mapping[str, _Computation], name: str, times: int
) -> Iterator[tuple[int, _Computation]]:
  """The computations that run, with how often; of a conditional's branches the one that moves most.

  A loop whose length XLA does not know counts once.
  """
  computation = computations[name]
  yield times, computation
  for x in computation.values():
    if x.op == "while":
      turns = _turns(x, computation, computations)
      for part in ("body", "condition"):
        inner = _called(x.rest, part)
        yield from _executed(computations, inner[0], times * turns)
    elif x.op == "conditional":
      branches = _called(x.rest, "branch_computations") or [
        name for part in ("true", "false") for name in _called(x.rest, f"{part}_computation")
      ]
      heaviest = max(branches, key=lambda name: _total(computations, name))
      yield from _executed(computations, heaviest, times)
    elif x.op in ("call", "async-start"):
      for inner_name in _called(x.rest, "to_apply") or _called(x.rest, "calls"):
        yield from _executed(computations, inner_name, times)


def _turns(loop: _Instruction, own: _Computation, computations: Mapping[str, _Computation]) -> int:
  """How often a loop's body runs: as XLA states it, or as a counter with constant ends tells."""
  if stated := _TRIPS.search(loop.rest):
    return int(stated[1])
  parts = [computations[_called(loop.rest, part)[0]] for part in ("condition", "body")]
  test, result = (next(x for x in part.values() if x.root) for part in parts)
  start = own.get(loop.operands[0])
  if test.op != "compare" or "direction=LT" not in test.rest or start is None:
    return 1
  counter, end = (parts[0][name] for name in test.operands)
  place = _ELEMENT.search(counter.rest)
  if place is None or start.op != "tuple" or result.op != "tuple":
    return 1
  index = int(place[1])
  step = parts[1][result.operands[index]]
  ends = [_constant(own.get(start.operands[index]), own), _constant(end, parts[0])]
  added = [_constant(parts[1][name], parts[1]) for name in step.operands]
  known = [n for n in (*ends, *added) if n is not None]
  if step.op != "add" or None in ends or len(known) != 3:
    return 1
  first, last, by = known
  return max(0, -(-(last - first) // by)) if by > 0 else 1


def _constant(x: _Instruction | None, own: _Computation) -> int | None:
  """An integer that an instruction gives, itself or as a copy."""
  while x is not None and x.op in ("copy", "bitcast"):
    x = own.get(x.operands[0])
  if x is None or x.op != "constant" or not re.fullmatch(r"-?\d+", x.arguments):
    return None
  return int(x.arguments)


def _called(rest: str, attribute: str) -> list[str]:
  """Names of the computations in an attribute, such as body=%region_1."""
  found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", rest)
  return re.findall(r"%?([\w.\-]+)", found[1]) if found else []


def _total(computations: Mapping[str, _Computation], name: str) -> int:
  """The traffic of a computation with all that it calls."""
  return sum(
    times * sum(_traffic(x, computation, computations) for x in computation.values())
    for times, computation in _executed(computations, name, 1)
  )


def _in_memory(shape: str) -> int:
  return array_bytes(shape, padded=True, everywhere=False)


def _result_bytes(x: _Instruction) -> int:
  """The result of a collective; one that starts has its operands before its results."""
  if not x.op.endswith("-start") or not x.shape.startswith("("):
    return array_bytes(x.shape)
  parts = _elements(x.shape)
  if x.op == "all-reduce-start":
    return array_bytes(x.shape)
  return array_bytes(parts[1]) if len(parts) > 1 else array_bytes(x.shape)


def _group_size(x: _Instruction, devices: int) -> int:
  """How many devices a collective joins; 1 where each only sends to itself."""
  if x.op.startswith("collective-permute"):
    pairs = re.search(r"source_target_pairs=\{([^=]*)\}", x.rest)
    moving = any(a != b for a, b in _PAIRS.findall(pairs[1] if pairs else ""))
    return 2 if moving else 1
  found = _GROUPS.search(x.rest)
  if found is None:  # one group of all
    return devices
  if found["first"]:
    return len(found["first"].split(","))
  if found["size"]:
    return int(found["size"])
  sizes = dict(_AXIS_SIZE.findall(found["sizes"]))
  return math.prod(int(sizes[axis]) for axis in _AXIS.findall(found["axes"]))


def _sent(kind: str, size: int, group: int) -> float:
  """Bytes that each device of a ring sends for a collective with a result of `size` bytes."""
  others = (group - 1) / group
  if kind == "all-reduce":  # parts are summed, then gathered
    return 2 * others * size
  if kind == "reduce-scatter":  # the result is one device's part
    return (group - 1) * size
  return size if kind == "collective-permute" else others * size


def _elements(shape: str) -> list[str]:
  """The elements of a tuple's shape."""
  parts, depth, begin = [], 0, 1
  for i, character in enumerate(shape):
    depth += (character in "([{") - (character in ")]}")
    if (character == "," and depth == 1) or (character == ")" and depth == 0):
      parts.append(shape[begin:i].strip())
      begin = i + 1
  return parts


def _traffic(x: _Instruction, own: _Computation, computations: Mapping[str, _Computation]) -> int:
  """Bytes that an instruction reads and writes itself."""
  if x.op in _FREE or x.op.endswith("-done") or x.op in ("while", "conditional", "call"):
    return 0
  if x.op == "async-start":  # its computation is counted
    return 0
  if x.op == "copy-start":
    target, source, *_ = _elements(x.shape)
    return _in_memory(target) + _in_memory(source)
  if x.op == "slice-start":
    source, target, *_ = _elements(x.shape)
    read = array_bytes(target, padded=True) if _in_memory(source) else 0
    return read + _in_memory(target)
  if x.op == "fusion":
    (name,) = _called(x.rest, "calls")
    return _fusion_traffic(x, own, computations[name])
  sizes = [_in_memory(own[name].shape) for name in x.operands if name in own]
  if x.op in _SLICES:
    return 2 * _in_memory(x.shape)
  if x.op == "dynamic-update-slice":
    return 2 * sizes[1]
  if x.op == "scatter":
    return 3 * sizes[-1]
  written = x.shape
  if 'custom_call_target="__cu' in x.rest and x.shape.startswith("("):
    # The last result of cuBLAS's and cuDNN's functions is their scratch memory.
    written = ", ".join(_elements(x.shape)[:-1])
  return _in_memory(written) + sum(sizes)


def _fusion_traffic(x: _Instruction, own: _Computation, inner: _Computation) -> int:
  """A fusion's results and operands; the parts of arrays that it slices or changes in part."""
  uses: dict[str, list[_Instruction]] = {}
  for y in inner.values():
    for name in dict.fromkeys(y.operands):
      uses.setdefault(name, []).append(y)
  read = 0
  for y in inner.values():
    if y.op != "parameter" or int(y.arguments) >= len(x.operands):
      continue
    whole = _in_memory(own[x.operands[int(y.arguments)]].shape)
    read += min(whole, sum(_read(y, use, whole) for use in uses.get(y.name, ())))
  changed = [y for y in inner.values() if y.op == "dynamic-update-slice"]
  in_place = sum(array_bytes(y.shape) for y in changed if y.operands[0] in inner)
  written = max(0, _in_memory(x.shape) - in_place)
  return read + written + sum(array_bytes(inner[y.operands[1]].shape) for y in changed)


def _read(array: _Instruction, use: _Instruction, whole: int) -> int:
  """Bytes of an array that an instruction reads which takes it as an operand."""
  if use.operands[0] != array.name:
    return whole
  if use.op in _SLICES:
    return array_bytes(use.shape, padded=True)
  return 0 if use.op == "dynamic-update-slice" else whole
