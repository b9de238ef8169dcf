"""Reads the headers of image files (kind, size, orientation, number of pictures), finds damage."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_PAGES = 16  # pages that are read, at most
_CHUNK, _CHECKSUM = struct.Struct(">I4s"), struct.Struct(">I")  # a PNG chunk's head and CRC

# Numbers of TIFF's tags, Exif's among them.
_SUBFILE, _WIDTH, _HEIGHT, _ORIENTATION = 254, 256, 257, 274
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES = 322, 323, 338


class Header(NamedTuple):
  """The contents of an image's header.

  Attributes:
    kind: "PNG", "JPEG", "GIF", "BMP", "TIFF" or "WebP".
    height: pixels, as stored.
    width: pixels, as stored.
    orientation: Exif's, 1 to 8; from 5 on the upright picture has height and width exchanged.
    pictures: 1, or 2 if the file holds two or more. A GIF, which is read as a video, always has 1.
    pixels: how many are decoded at once, at least height x width; a TIFF's tile may be larger.
    has_alpha: whether there are extra channels; found for TIFF only.
  """

  kind: str
  height: int
  width: int
  orientation: int = 1
  pictures: int = 1
  pixels: int = 0
  has_alpha: bool = False


def read_header(data: bytes) -> Header | None:
  """Reads an image's header.

  Args:
    data: the file, or its beginning. What is stored later is not found then, such as a WebP's
      orientation and a TIFF's second page.

  Returns:
    The header; None where the file is of no known kind, or its header is incomplete.
  """
  with contextlib.suppress(struct.error, StopIteration):
    for start, read in _READERS.items():
      if data.startswith(start):
        header = read(data)
        if header and header.height > 0 and header.width > 0:
          return header._replace(pixels=max(header.pixels, header.height * header.width))
  return None


def is_scattered(begin: bytes) -> bool:
  """Whether a file with this beginning is a TIFF or WebP, whose header may be spread over it."""
  return begin[:4] in _TIFF or (begin.startswith(b"RIFF") and begin[8:12] == b"WEBP")


def damage(data: bytes) -> str | None:
  """What is wrong with a PNG or JPEG file, given whole, without decoding it; None if nothing is.

  For a PNG every chunk's checksum is verified; for a JPEG, which has none, that its end is there.
  """
  if data.startswith(_PNG):
    return _png_damage(memoryview(data))
  if data.startswith(_JPEG):
    scan = data.find(b"\xff\xda")  # an end before the scan is that of a thumbnail
    if scan < 0 or data.find(b"\xff\xd9", scan) < 0:
      return "is damaged: its end is missing"
  return None


def _png_damage(data: memoryview) -> str | None:
  position, kind = len(_PNG), b""
  while kind != b"IEND":
    try:
      length, kind = _CHUNK.unpack_from(data, position)
      (checksum,) = _CHECKSUM.unpack_from(data, position + 8 + length)
    except struct.error:
      return "is cut short"
    if zlib.crc32(data[position + 4 : position + 8 + length]) != checksum:
      return "is damaged: a wrong checksum"
    position += 12 + length
  return None


def _png(data: bytes) -> Header:
  width, height = struct.unpack_from(">II", data, 16)
  orientation, pictures, position, kind = 1, 1, len(_PNG), b""
  while position + 12 <= len(data) and kind != b"IDAT":
    length, kind = struct.unpack_from(">I4s", data, position)
    if kind == b"acTL":
      pictures = struct.unpack_from(">I", data, position + 8)[0]
    elif kind == b"eXIf":
      orientation = _exif_orientation(data[position + 8 : position + 8 + length])
    position += 12 + length
  return Header("PNG", height, width, orientation, min(2, max(1, pictures)))


def _jpeg(data: bytes) -> Header | None:
  size, orientation, position = None, 1, 2
  while position + 10 <= len(data):
    start, marker, length = struct.unpack_from(">BBH", data, position)
    if start != 0xFF or marker == 0xDA:  # the scan begins, behind all headers
      break
    if marker == 0xFF:  # filling
      position += 1
      continue
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      size = size or struct.unpack_from(">HH", data, position + 5)
    if marker == 0xE1 and data.startswith(b"Exif\0\0", position + 4):
      orientation = _exif_orientation(data[position + 10 : position + 2 + length])
    position += 2 + length
  return None if size is None else Header("JPEG", size[0], size[1], orientation)


def _gif(data: bytes) -> Header:
  width, height = struct.unpack_from("<HH", data, 6)
  return Header("GIF", height, width)


def _bmp(data: bytes) -> Header:
  (length,) = struct.unpack_from("<I", data, 14)
  width, height = struct.unpack_from("<HH" if length == 12 else "<ii", data, 18)
  return Header("BMP", abs(height), width)  # a negative height means rows from the top down


def _webp(data: bytes) -> Header | None:
  if data[8:12] != b"WEBP":
    return None
  kind, bits = data[12:16], int.from_bytes(data[21:25], "little")
  if kind == b"VP8 ":
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return Header("WebP", height, width)
  if kind == b"VP8L":
    return Header("WebP", (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
  if kind != b"VP8X":
    return None
  width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
  orientation, pictures, position = 1, 0, 12
  while position + 8 <= len(data):
    kind, length = struct.unpack_from("<4sI", data, position)
    if kind == b"EXIF":
      exif = data[position + 8 : position + 8 + length]
      orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    pictures += kind == b"ANMF"
    position += 8 + length + length % 2
  return Header("WebP", height, width, orientation, min(2, max(1, pictures)))


def _tiff(data: bytes) -> Header:
  walk = _tiff_pages(data)
  first, others = next(walk), walk
  pages = [page for page in others if not page.get(_SUBFILE, 0) & 5]  # thumbnails, masks
  return Header(
    "TIFF",
    first.get(_HEIGHT, 0),
    first.get(_WIDTH, 0),
    _orientation_of(first),
    min(2, 1 + len(pages)),
    first.get(_TILE_WIDTH, 0) * first.get(_TILE_HEIGHT, 0),
    _EXTRA_SAMPLES in first,
  )


def _exif_orientation(exif: bytes) -> int:
  try:
    return _orientation_of(next(_tiff_pages(exif)))
  except (struct.error, StopIteration):
    return 1


def _orientation_of(tags: dict[int, int]) -> int:
  orientation = tags.get(_ORIENTATION, 1)
  return orientation if 1 <= orientation <= 8 else 1


def _tiff_pages(data: bytes) -> Iterator[dict[int, int]]:
  """Yields each page's integer tags: the first number by tag."""
  order = {b"II": "<", b"MM": ">"}.get(data[:2])
  if order is None:
    return
  big = struct.unpack_from(order + "H", data, 2)[0] == 43
  # In a BigTIFF numbers of entries, offsets and counts have 8 bytes.
  offset, head, entry, count = (8, "Q", "HHQQ", "Q") if big else (4, "I", "HHII", "H")
  seen: set[int] = set()
  (place,) = struct.unpack_from(order + head, data, offset)
  while place and place not in seen and len(seen) < _TIFF_PAGES:
    seen.add(place)
    try:
      yield _tiff_tags(data, place, order, count, entry)
      (entries,) = struct.unpack_from(order + count, data, place)
      size = struct.calcsize(order + count) + entries * struct.calcsize(order + entry)
      (place,) = struct.unpack_from(order + head, data, place + size)
    except struct.error:
      if len(seen) == 1:
        raise
      return


def _tiff_tags(data: bytes, place: int, order: str, count: str, entry: str) -> dict[int, int]:
  (entries,) = struct.unpack_from(order + count, data, place)
  tags: dict[int, int] = {}
  position, size = place + struct.calcsize(order + count), struct.calcsize(order + entry)
  for at in range(position, position + size * min(entries, 4096), size):
    tag, kind = struct.unpack_from(order + "HH", data, at)
    number = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    if number and at + size <= len(data):
      value = struct.unpack_from(order + number, data, at + size - (8 if "Q" in entry else 4))[0]
      tags.setdefault(tag, value)
  return tags


_READERS = {
  _PNG: _png,
  _JPEG: _jpeg,
  b"GIF8": _gif,
  b"BM": _bmp,
  b"RIFF": _webp,
  **dict.fromkeys(_TIFF, _tiff),
}
