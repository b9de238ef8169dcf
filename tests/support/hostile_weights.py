"""Weight files that were made to do harm, and damaged ones from a seed.

The first are small programs for a pickle's machine, and zip files that lie; the damaged ones are
copies of a good file with something changed, inside the pickle too, whose checksum is then right.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

HUGE = 2**27  # entries of a memo, or elements
MANY = 300_000  # operations


def attacks() -> dict[str, Callable[[], bytes]]:
  """By name, what makes the bytes of a file that must be refused as a state dict."""
  return _programs() | _views() | _names() | _archives() | _others()


def _programs() -> dict[str, Callable[[], bytes]]:
  """Pickles that ask for much time or memory."""
  return {
    "nested": lambda: _zip(_one(b"]" * MANY + b"a" * (MANY - 1))),
    "nested a little": lambda: _zip(_one(b"]" * 2000 + b"a" * 1999)),
    "cyclic": lambda: _zip(_one(b"]q\x00h\x00a")),
    "shared lists": lambda: _zip(_one(b"](]q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"e")),
    "far memo": lambda: _zip(_one(b"]r" + struct.pack("<I", HUGE) + b"j" + b"\xff" * 4 + b"a")),
    "empty dicts": lambda: _zip(_one(b"](" + b"}" * 2 * MANY + b"e")),
    "pairs again": lambda: _zip(_one(_repeated_pairs(100_000))),
    "long string": lambda: _zip(_one(b"X" + struct.pack("<I", 2**32 - 1) + b"abc")),
    "longer string": lambda: _zip(b"\x80\x04}\x8d" + struct.pack("<Q", 2**63 - 1) + b"abc."),
    "frame": lambda: _zip(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}."),
    "nothing": lambda: _zip(b"\x80\x02."),
    "a list": lambda: _zip(b"\x80\x02]."),
    "a function": lambda: _zip(_one(b"ccollections\nOrderedDict\n")),
    "a storage": lambda: _zip(_one(_storage()), {"0": bytes(4)}),
    "long code": lambda: _zip(b"\x80\x02c" + b"x" * MANY + b"\ny\n."),
  }


def _views() -> dict[str, Callable[[], bytes]]:
  """Tensors that are no views of their storages."""
  two_types = _text("a") + _tensor() + _text("b") + _tensor(kind="HalfStorage")
  return {
    "zero strides": lambda: _zip(_tensors(50, (HUGE, 27), (0, 0)), {"0": bytes(4)}),
    "expanded": lambda: _zip(_tensors(50, (2, 3), (0, 1), length=5), {"0": bytes(20)}),
    "one storage": lambda: _zip(_tensors(300, (2**18,), length=2**18), {"0": bytes(2**20)}),
    "negative stride": lambda: _zip(_tensors(1, (2,), (-1,), 1, length=2), {"0": bytes(8)}),
    "negative shape": lambda: _zip(_tensors(1, (-2, -2), (1, 1), length=4), {"0": bytes(16)}),
    "large shape": lambda: _zip(_tensors(1, (10**300, 0), (1, 1), length=4), {"0": bytes(16)}),
    "dimensions": lambda: _zip(_tensors(1, (1,) * 5000), {"0": bytes(4)}),
    "beyond": lambda: _zip(_tensors(1, (4,), (2,), length=4), {"0": bytes(16)}),
    "offset": lambda: _zip(_tensors(1, (1,), offset=2**63, length=1), {"0": bytes(4)}),
    "long storage": lambda: _zip(_tensors(1, (2**40,), length=2**40), {"0": bytes(4)}),
    "no storage": lambda: _zip(_tensors(1, (1,))),
    "no number": lambda: _zip(_one(_tensor(_value(float("nan")) + b"\x85"))),
    "two types": lambda: _zip(b"\x80\x02}(" + two_types + b"u.", {"0": bytes(4)}),
  }


def _names() -> dict[str, Callable[[], bytes]]:
  """Dicts with keys that are no names of tensors."""
  return {
    "list for a name": lambda: _zip(b"\x80\x02}]K\x01s."),
    "number for a name": lambda: _zip(b"\x80\x02}K\x01K\x01s."),
    "nested name": lambda: _zip(b"\x80\x02}" + b"K\x01" + b"\x85" * 1000 + b"K\x01s."),
    "long name": lambda: _zip(b"\x80\x02}" + _text("x" * MANY) + b"K\x01s."),
    "control characters": lambda: _zip(b"\x80\x02}" + _text("\x1b[2J\n") + b"K\x01s."),
    "half a character": lambda: _zip(b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80K\x01s."),
    "a name twice": lambda: _zip(b"\x80\x02}(" + 2 * (_text("a") + b"K\x01") + b"u."),
  }


def _archives() -> dict[str, Callable[[], bytes]]:
  """Zip files that are larger than they look, or ambiguous."""
  one = _tensors(1, (1,))
  return {
    "deflated": lambda: _zip(_tensors(1, (2**22,), length=2**22), {"0": bytes(2**24)}, True),
    "deflated a little": lambda: _zip(one, {"0": bytes(4), "1": bytes(9)}, True),
    "deflated pickle": lambda: _zip(_one(b"(" + b"N" * 2**26 + b"t"), deflated=True),
    "two pickles": lambda: _zip(_one(b"N"), {"../../b/data.pkl": _one(b"N")}),
    "a pickle twice": lambda: _zip(_one(b"N"), {"./../data.pkl": _one(b"N")}),
    "a storage twice": lambda: _zip(one, {"0": bytes(4), "./../data/0": bytes(4)}),
    "long contents": lambda: b"PK\x03\x04" + bytes(5 * 2**20) + _end(0, 5 * 2**20, 4),
    "entries that share": lambda: _overlapping(_zip(one, {"0": bytes(2**16)})),
    "encrypted": lambda: _flagged(_zip(one, {"0": bytes(4)})),
    "another zip": lambda: _plain_zip({"word/document.xml": b"<xml/>"}),
    "empty zip": lambda: _plain_zip({}),
  }


def _others() -> dict[str, Callable[[], bytes]]:
  """The older format, and files that are something else."""
  one, long = _tensors(1, (1,)), _tensors(1, (2**40,), length=2**40)
  return {
    "legacy length": lambda: legacy(one, struct.pack("<Q", 2**62) + bytes(4)),
    "legacy storage": lambda: legacy(long, struct.pack("<Q", 2**40) + bytes(4)),
    "legacy keys": lambda: legacy(one, struct.pack("<Q", 1) + bytes(4), 2),
    "legacy machine": lambda: legacy(_one(b"N"), machine=b"\x80\x02]."),
    "text": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
    "page": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": lambda: bytes(100_000),
    "nothing at all": lambda: b"",
  }


def mutants(good: bytes, seed: int, count: int) -> Iterator[bytes]:
  """Copies of a weight file, of either format, each damaged in another way."""
  random = np.random.default_rng(seed)
  entries = None
  if good.startswith(b"PK"):
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
      entries = {name: archive.read(name) for name in archive.namelist()}
  for _ in range(count):
    if entries is None or random.random() < 0.3:
      yield damaged(good, random)
    else:
      names = list(entries)
      name = next(n for n in names if n.endswith("data.pkl"))
      if random.random() < 0.2:
        name = names[random.integers(len(names))]
      yield _plain_zip({**entries, name: damaged(entries[name], random)})


def damaged(data: bytes, random: np.random.Generator) -> bytes:
  """The data with a few bytes flipped, replaced, left out, put in twice or cut off."""
  data = bytearray(data)
  for _ in range(random.integers(1, 4)):
    at = int(random.integers(len(data) + 1))
    length = int(random.integers(1, 9))
    match random.integers(7):
      case 0:
        data[at : at + 1] = random.bytes(1)
      case 1:
        data[at : at + length] = random.bytes(length)
      case 2:
        del data[at : at + length]
      case 3:
        data[at:at] = data[at : at + 10 * length]
      case 4:  # sizes and indexes that are too large
        data[at : at + length] = b"\xff" * length
      case 5:  # an operation instead of another
        operations = b"()]}aehjqrtsuRQbcKMJGXU.\x85\x86\x87\x88\x89\x8a"
        data[at : at + 1] = operations[(k := int(random.integers(len(operations)))) : k + 1]
      case 6:
        if random.random() < 0.3:
          del data[at:]
  return bytes(data)


def legacy(
  stream: bytes, storages: bytes = b"", keys: int = 1, machine: bytes | None = None
) -> bytes:
  """A file of the older format; all its storages have the key "0"."""
  magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
  machine = machine or pickle.dumps({"little_endian": True}, 2)
  return magic + machine + stream + pickle.dumps(["0"] * keys, 2) + storages


def _zip(stream: bytes, storages: dict[str, bytes] | None = None, deflated: bool = False) -> bytes:
  entries = {"archive/data.pkl": stream, "archive/byteorder": b"little"}
  for key, data in (storages or {}).items():
    entries[_joined(f"archive/data/{key}")] = data
    if key.startswith("."):  # the same name again
      return _plain_zip(entries, deflated, [(_joined(f"archive/data/{key}"), data)])
  return _plain_zip(entries, deflated)


def _joined(name: str) -> str:
  parts: list[str] = []
  for part in name.split("/"):
    if part == "..":
      parts.pop()
    elif part != ".":
      parts.append(part)
  return "/".join(parts)


def _plain_zip(entries: dict[str, bytes], deflated: bool = False, again: list = ()) -> bytes:
  file = io.BytesIO()
  method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
  with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a name that is there twice
    for name, data in [*entries.items(), *again]:
      archive.writestr(name, data)
  return file.getvalue()


def _overlapping(data: bytes) -> bytes:
  """The list of contents names the last entry a thousand times more, under other names."""
  end = data.index(b"PK\x05\x06")
  count, size, start = struct.unpack_from("<HII", data, end + 10)
  listed = data[start : start + size]
  last = listed[listed.rindex(b"PK\x01\x02") :]
  for i in range(1000):
    name = b"archive/data/%03d" % i
    listed += last[:28] + struct.pack("<H", len(name)) + last[30:46] + name
  return data[:start] + listed + _end(count + 1000, len(listed), start)


def _end(count: int, size: int, start: int) -> bytes:
  """The end of a zip file: how long its list of contents is, and where it begins."""
  return b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, size, start, 0)


def _flagged(data: bytes) -> bytes:
  """Says of every entry that it is encrypted."""
  for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
    parts = data.split(mark)
    data = mark.join([parts[0], *(p[: at - 4] + b"\x01" + p[at - 3 :] for p in parts[1:])])
  return data


def _one(value: bytes) -> bytes:
  """The pickle of {"a": value}."""
  return b"\x80\x02}" + _text("a") + value + b"s."


def _text(text: str) -> bytes:
  data = text.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _value(value: object) -> bytes:
  return pickle.dumps(value, 2)[2:-1]


def _repeated_pairs(count: int) -> bytes:
  """Dicts made of one long list of pairs, again and again."""
  pairs = b"](" + b"".join(_value(i) + b"N\x86" for i in range(count)) + b"eq\x00"
  made = b"ccollections\nOrderedDict\nh\x00\x85R"
  return b"](" + pairs + made * 30_000 + b"e"


def _storage(kind: str = "FloatStorage", key: str = "0", length: int = 1) -> bytes:
  name = b"ctorch\n" + kind.encode() + b"\n"
  return b"(" + _text("storage") + name + _text(key) + _text("cpu") + _value(length) + b"tQ"


def _tensor(
  shape: bytes = b"K\x01\x85",
  strides: bytes = b"K\x01\x85",
  offset: int = 0,
  length: int = 1,
  kind: str = "FloatStorage",
) -> bytes:
  """The operations for a view of the storage "0"."""
  view = _storage(kind, length=length) + _value(offset) + shape + strides
  hooks = b"\x89ccollections\nOrderedDict\n)R"
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + hooks + b"tR"


def _tensors(
  count: int, shape: tuple, strides: tuple | None = None, offset: int = 0, length: int = 1
) -> bytes:
  """The pickle of a dict of so many views of one storage."""
  strides = (1,) * len(shape) if strides is None else strides
  view = _tensor(*(_tuple(values) for values in (shape, strides)), offset, length)
  return b"\x80\x02}(" + b"".join(_text(f"x{i}") + view for i in range(count)) + b"u."


def _tuple(values: tuple) -> bytes:
  return b"(" + b"".join(map(_value, values)) + b"t"
