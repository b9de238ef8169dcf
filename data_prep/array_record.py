"""Writes files of records, and reads parts of a record without the rest of it.

A clip's record has about a hundred megabytes, of which a training window needs a few; the library
reads it whole, at about 200 MB/s. This module finds a clip's frames by the lengths stored before
them and reads only those asked for. It reads three nested formats, documented by their projects:

Riegeli's records file, on which array_record builds: each block of 64 KiB begins with a header of
24 bytes, which may lie in the middle of other data; a chunk is a header of 40 bytes and data; the
data of a simple chunk are, uncompressed, a byte 0, the size of the sizes, the sizes, the records.
array_record with `group_size:1`: a chunk holds one record; array_record's own chunks come last.
tf.train.Example in protocol buffers' wire format: named lists of byte strings, floats or integers.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module

from vsr_jax import files
from vsr_jax.errors import UserError

WRITER_OPTIONS = "group_size:1,uncompressed"  # what this module can read

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_PAYLOAD = _BLOCK - _BLOCK_HEADER
_CHUNK_HEADER = struct.Struct("<8xQ8xBxxxxxxx8x")  # size of the data, type of the chunk
_SIGNATURE, _SIMPLE, _UNCOMPRESSED = ord("s"), ord("r"), 0
_AGAIN = "make it again"
_VARINT_BYTES = 10  # of a varint of 64 bits, at most
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3  # fields of a Feature
_LENGTH_DELIMITED = 2  # wire type
_FEATURES, _NAME = 64, 256  # features of an Example, and bytes of a feature's name, at most


@contextlib.contextmanager
def writing(path: str) -> Iterator[Callable[[bytes], None]]:
  """A context that writes a file of records beside `path` and moves it there when it is complete.

  Yields:
    A function that adds a record.

  Raises:
    OSError: the file cannot be written.
  """
  part = files.part_name(path)
  try:
    writer = array_record_module.ArrayRecordWriter(part, WRITER_OPTIONS)
    try:
      yield writer.write
    finally:
      _close(writer, path)
    os.replace(part, path)
  finally:
    pathlib.Path(part).unlink(missing_ok=True)


def _close(writer: array_record_module.ArrayRecordWriter, path: str) -> None:
  """Closes the writer; its errors, which have a text but no error number, become OSError."""
  try:
    writer.close()
  except Exception as e:
    full = os.strerror(errno.ENOSPC) in str(e)
    raise OSError(errno.ENOSPC if full else errno.EIO, str(e), path) from e


class Span(NamedTuple):
  """A range of a record: `start` is its offset in the file, `size` its bytes but block headers."""

  path: str
  start: int
  size: int

  def read(self) -> bytes:
    """Reads the bytes of the range, without block headers.

    Raises:
      UserError: the file ends before the range does.
    """
    return _read(self.path, self.start, self.size)


def read_verified(path: str, index: int, size: int) -> bytes:
  """Reads a whole record with the library, which verifies the checksum that the format stores.

  Args:
    path: a file written with `WRITER_OPTIONS`.
    index: the record's number, from 0.
    size: the record's size in bytes.

  Raises:
    UserError: the record is damaged, or of another size.
  """
  if (found := record(path, index).size) != size:
    raise UserError(f"{path}: record {index} has {found} bytes instead of {size}; {_AGAIN}")
  try:
    reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
    try:
      (data,) = reader.read([index])
    finally:
      reader.close()
  except Exception as e:  # the library's errors have no type of their own
    raise UserError(f"{path}: record {index} is damaged, its checksum is wrong; {_AGAIN}") from e
  if len(data) != size:
    raise UserError(f"{path}: record {index} is damaged; {_AGAIN}")
  return data


def record(path: str, index: int) -> Span:
  """Finds the record with a number, from 0, in a file written with `WRITER_OPTIONS`.

  Raises:
    UserError: the file is damaged or written otherwise, or has fewer records.
  """
  return _records(path, index + 1)[index]


@functools.lru_cache(maxsize=4096)
def _records(path: str, count: int) -> tuple[Span, ...]:
  """Finds the first `count` records of a file."""
  found, position = [], 0
  while len(found) < count:
    size, kind = _CHUNK_HEADER.unpack(_read(path, position, _CHUNK_HEADER.size))
    data = _advance(position, _CHUNK_HEADER.size)
    if kind == _SIGNATURE and position == size == 0:
      position = data
      continue
    position = _advance(data, size)
    head = _read(path, data, min(size, 1 + 2 * _VARINT_BYTES))
    sizes_size, sizes = _varint(path, head, 1)
    length, start = _varint(path, head, sizes)
    well_made = kind == _SIMPLE and head[0] == _UNCOMPRESSED
    if not well_made or start != sizes + sizes_size or start + length != size:
      raise UserError(f"{path}: damaged, or not written by data_prep; {_AGAIN}")
    found.append(Span(path, _advance(data, start), length))
  return tuple(found)


def parse_example(example: Span, most: int = 10**5) -> dict[str, np.ndarray | list[Span]]:
  """Parses a record: reads its numbers, and finds where its byte strings are.

  Args:
    example: a serialized tf.train.Example.
    most: values that a feature may have, at most.

  Returns:
    By feature a list of the byte strings' spans, or a flat float32 or int64 array.

  Raises:
    UserError: the record is damaged.
  """
  features = {}
  for _, outer in _fields(example, 1):  # Features
    for _, entry in _fields(outer, _FEATURES):  # an entry of the map
      parts = dict(_fields(entry, 2))
      if parts.keys() != {1, 2} or parts[1].size > _NAME:
        raise _damaged(example.path)
      name = parts[1].read().decode(errors="replace")
      for kind, values in _fields(parts[2], 1):  # the one list of a Feature
        features[name] = _values(kind, values, most)
  return features


def _values(kind: int, values: Span, most: int) -> np.ndarray | list[Span]:
  if kind == _BYTES_LIST:
    return [span for _, span in _fields(values, most)]
  if values.size > most * _VARINT_BYTES:
    raise _damaged(values.path)
  packed = b"".join(span.read() for _, span in _fields(values, most))
  if kind == _FLOAT_LIST and len(packed) % 4 == 0:
    return np.frombuffer(packed, "<f4")
  if kind != _INT64_LIST:
    raise _damaged(values.path)
  numbers, position = [], 0
  while position < len(packed):
    value, position = _varint(values.path, packed, position)
    numbers.append(value)
  return np.array(numbers, np.uint64).astype(np.int64)


def _fields(message: Span, most: int) -> Iterator[tuple[int, Span]]:
  """Yields number and content of each field of a message: at most `most`, all with a length."""
  path, position, left = message
  while left:
    head = _read(path, position, min(left, 1 + _VARINT_BYTES))
    number, wire_type = head[0] >> 3, head[0] & 7
    size, skipped = _varint(path, head, 1)
    left -= skipped + size
    most -= 1
    if wire_type != _LENGTH_DELIMITED or left < 0 or most < 0:
      raise _damaged(path)
    content = _advance(position, skipped)
    yield number, Span(path, content, size)
    position = _advance(content, size)


def _damaged(path: str) -> UserError:
  return UserError(f"{path}: damaged; {_AGAIN}")


def _varint(path: str, data: bytes, position: int) -> tuple[int, int]:
  """Decodes a varint (7 bits per byte, 64 bits at most); returns it and the position after it."""
  value = shift = 0
  for byte in data[position : position + _VARINT_BYTES]:
    value |= (byte & 127) << shift
    position, shift = position + 1, shift + 7
    if byte < 128 and value < 1 << 64:
      return value, position
  raise _damaged(path)


def _advance(position: int, size: int) -> int:
  """The position `size` bytes of payload after another; behind a block's header if it is at one."""
  block, inside = divmod(position, _BLOCK)
  blocks, inside = divmod(max(0, inside - _BLOCK_HEADER) + size, _PAYLOAD)
  return (block + blocks) * _BLOCK + _BLOCK_HEADER + inside


def _read(path: str, position: int, size: int) -> bytes:
  """Reads `size` bytes of payload from a position on, without the block headers between them."""
  start, end = _advance(position, 0), _advance(position, size)
  file = _open(path).fileno()
  # The end may lie behind the header of a next block, which the file need not have. The check keeps
  # a damaged file, which may state any size, from having memory allocated for it.
  if os.fstat(file).st_size < end - _BLOCK_HEADER:
    raise UserError(f"{path}: cut short; {_AGAIN}")
  raw = os.pread(file, end - start, start)
  if start // _BLOCK == end // _BLOCK:
    return raw
  view, parts, first = memoryview(raw), [], 0
  for boundary in range(_BLOCK - start % _BLOCK, len(raw), _BLOCK):
    parts.append(view[first:boundary])
    first = boundary + _BLOCK_HEADER
  return b"".join([*parts, view[first:]])


@functools.lru_cache(maxsize=128)  # far below the limit of open files; closed when dropped
def _open(path: str) -> io.FileIO:
  return io.FileIO(path)
