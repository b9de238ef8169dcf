"""Image files made by bytes: what OpenCV does not write."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np


def chunk(name: bytes, data: bytes) -> bytes:
  """A chunk of a PNG."""
  return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))


def encoded(image: np.ndarray, suffix: str, *options: int) -> bytes:
  """RGB (or grey) as OpenCV writes it."""
  return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image, options)[1].tobytes()


def exif(orientation: int) -> bytes:
  entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
  return b"MM\0*\0\0\0\x08\0\x01" + entry + bytes(4)


def oriented(image: np.ndarray, suffix: str, orientation: int) -> bytes:
  """uint8 RGB as PNG, JPEG, WebP (both lossless) or TIFF that carries an orientation."""
  tag = exif(orientation)
  if suffix == ".tiff":
    return tiff([image], orientation)
  if suffix == ".webp":
    picture = encoded(image, suffix, cv2.IMWRITE_WEBP_QUALITY, 101)[12:]
    return webp(image.shape, 0x08, picture + riff(b"EXIF", tag))
  data = encoded(image, suffix, cv2.IMWRITE_JPEG_QUALITY, 100)
  if suffix == ".png":
    return data[:33] + chunk(b"eXIf", tag) + data[33:]
  segment = b"\xff\xe1" + struct.pack(">H", len(tag) + 8) + b"Exif\0\0" + tag
  return data[:2] + segment + data[2:]


def riff(name: bytes, data: bytes) -> bytes:
  return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def webp(shape: tuple[int, ...], flags: int, parts: bytes) -> bytes:
  """An extended WebP file; flags: 2 for an animation, 8 for Exif."""
  sides = b"".join((side - 1).to_bytes(3, "little") for side in (shape[1], shape[0]))
  return riff(b"RIFF", b"WEBP" + riff(b"VP8X", struct.pack("<I", flags) + sides) + parts)


def animated_webp(images: list[np.ndarray]) -> bytes:
  parts = riff(b"ANIM", bytes(6))
  for image in images:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (image.shape[1], image.shape[0]))
    head = bytes(6) + sides + (40).to_bytes(3, "little") + bytes(1)
    parts += riff(b"ANMF", head + encoded(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101)[12:])
  return webp(images[0].shape, 2, parts)


def tiff(pages: list[np.ndarray], orientation: int = 1, subfile: int = 0) -> bytes:
  """An uncompressed TIFF of uint8 or uint16 [h w c]; subfile: the later pages' kind, 1: reduced."""
  data = b"II*\0\0\0\0\0"
  link = 4
  for i, page in enumerate(pages):
    h, w, c = page.shape
    pixels, bits = len(data), 8 * page.dtype.itemsize
    data += page.astype(page.dtype.newbyteorder("<")).tobytes()
    depths = len(data)
    data += struct.pack("<H", bits) * c
    data += bytes(len(data) % 2)
    tags = {254: subfile if i else 0, 256: w, 257: h, 258: depths if c > 2 else bits, 259: 1}
    tags |= {262: 2, 273: pixels, 274: orientation, 277: c, 278: h, 279: page.nbytes, 284: 1}
    tags |= {338: 2} if c == 4 else {}
    data = data[:link] + struct.pack("<I", len(data)) + data[link + 4 :]
    data += struct.pack("<H", len(tags))
    for tag, value in sorted(tags.items()):
      data += struct.pack("<HHII", tag, 3 if tag == 258 else 4, c if tag == 258 else 1, value)
    link = len(data)
    data += bytes(4)
  return data


def animated_png(images: list[np.ndarray], delays: list[int]) -> bytes:
  """An APNG of uint8 RGB; delays in hundredths of a second."""
  h, w, _ = images[0].shape
  data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
  data += chunk(b"acTL", struct.pack(">II", len(images), 0))
  number = 0
  for i, (image, delay) in enumerate(zip(images, delays, strict=True)):
    frame = struct.pack(">IIIIIHHBB", number, w, h, 0, 0, delay, 100, 0, 0)
    data += chunk(b"fcTL", frame)
    number += 1
    rows = zlib.compress(np.pad(image.reshape(h, -1), ((0, 0), (1, 0))).tobytes())
    if i:
      data += chunk(b"fdAT", struct.pack(">I", number) + rows)
      number += 1
    else:
      data += chunk(b"IDAT", rows)
  return data + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
  """Of that canvas, with three pictures of a pixel."""
  data = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
  picture = b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
  return data + (picture + b"\x02\x02\x44\x01\0") * 3 + b"\x3b"


def huge(suffix: str, width: int, height: int) -> bytes:
  """A file of a few bytes whose header claims that size."""
  if suffix == ".gif":
    return gif(width, height)
  small = encoded(np.zeros((8, 8, 3), np.uint8), suffix)
  if suffix == ".png":
    return small[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + small[24:29]) + small[33:]
  if suffix == ".bmp":
    return small[:18] + struct.pack("<ii", width, height) + small[26:]
  if suffix == ".jpg":
    at = small.index(b"\xff\xc0")
    return small[: at + 5] + struct.pack(">HH", height, width) + small[at + 9 :]
  if suffix == ".webp":
    return webp((height, width), 0, small[12:])
  data = bytearray(tiff([np.zeros((8, 8, 3), np.uint8)]))
  for tag, value in ((256, width), (257, height)):
    at = data.rindex(struct.pack("<HHI", tag, 4, 1)) + 8
    data[at : at + 4] = struct.pack("<I", value)
  return bytes(data)
