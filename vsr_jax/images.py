"""Decodes images to uint8 RGB and encodes them; all image files are read and written here.

The header is read before anything is decoded, so that memory is bounded by `max_pixels`
and not by the size that a file of a few bytes claims.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import cv2
import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.image_headers import Header, damage, read_header

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp")

# Pixels that a picture or a video's frame may have unless the caller raises the limit: 8192x8192.
# Reading one of 16 bits takes 18 bytes per pixel, its file included: 1.2 GB.
MAX_PIXELS = 2**26
MOST_PIXELS = 2**30  # OpenCV decodes no larger picture
_MAX_BYTES_A_PIXEL = 8  # in a file: four uncompressed channels of 16 bits
_MAX_EXTRA_BYTES = 2**24  # in a file: profiles, thumbnails, notes

_DAMAGED = "not a readable image; replace it or take it away"


def check_pixels(
  height: int, width: int, name: object, max_pixels: int, pixels: int | None = None
) -> None:
  """Raises `UserError` for more than `max_pixels`; a picture has `pixels` if given, else h x w."""
  pixels = height * width if pixels is None else pixels
  if pixels > max_pixels:
    option = f", or raise the limit: --max-pixels {pixels}" if pixels <= MOST_PIXELS else ""
    amounts = f"{pixels / 1e6:,.1f} megapixels", f"{max_pixels / 1e6:,.1f}"
    if max_pixels < 1e6 or amounts[0].startswith(f"{amounts[1]} "):  # too few digits to tell
      amounts = f"{pixels:,} pixels", f"{max_pixels:,}"
    raise UserError(
      f"{name}: {width}x{height} are {amounts[0]}, more than the limit of {amounts[1]}; "
      f"make it smaller{option}"
    )


def check_header(header: Header, name: object, max_pixels: int = MAX_PIXELS) -> None:
  """Raises `UserError` for an image of more than `max_pixels`, or several in one file."""
  check_pixels(header.height, header.width, name, max_pixels, header.pixels)
  if header.pictures > 1:
    raise UserError(
      f"{name}: holds several pictures (an animation or pages); make them a folder of single images"
    )


def image_size(data: bytes, name: object) -> tuple[int, int]:
  """(height, width) of an encoded image, upright, from its header.

  Args:
    data: the file, or its beginning (see `read_header`).
    name: what the error calls it.

  Raises:
    UserError: the data are no image of a known kind.
  """
  header = read_header(data)
  if header is None:
    raise UserError(f"{name}: {_DAMAGED}")
  height, width = header.height, header.width
  return (width, height) if header.orientation >= 5 else (height, width)


def decode_image(
  data: bytes, name: object, max_pixels: int = MAX_PIXELS, damaged: str = _DAMAGED
) -> np.ndarray:
  """Decodes a picture: PNG, JPEG, BMP, TIFF or WebP.

  It is turned upright as its Exif orientation says; grey and palettes become colours, alpha is
  dropped, 16-bit values v become v / 257, rounded.

  Args:
    data: the file.
    name: what errors call it.
    max_pixels: a larger picture is refused before it is decoded.
    damaged: what the error says, after the name, where the data are no such picture.

  Returns:
    uint8 RGB [h w 3].

  Raises:
    UserError: the file is damaged or of another kind, has too many pixels, holds several pictures
      (an animation or pages) or numbers that are neither 8 nor 16 bits, or is a TIFF with
      transparency.
  """
  header = read_header(data)
  if header is None or header.kind == "GIF" or damage(data):  # libpng would print a line about it
    raise UserError(f"{name}: {damaged}")
  check_header(header, name, max_pixels)
  # Some kinds of TIFF would come out as BGR all the same.
  is_rgb = header.kind != "TIFF"
  order = cv2.IMREAD_COLOR_RGB if is_rgb else cv2.IMREAD_COLOR
  image = _decode(data, header, order | cv2.IMREAD_ANYDEPTH)
  if image is None:
    raise UserError(f"{name}: {damaged}")
  if header.has_alpha:  # TIFF's decoder multiplies the colours by it
    whole = _decode(data, header, cv2.IMREAD_UNCHANGED)
    if (
      whole is not None
      and whole.shape[2:] == (4,)
      and whole.dtype == np.uint8
      and whole[..., 3].min() < 255
    ):
      raise UserError(f"{name}: a TIFF with transparency; save it without")
  if image.dtype == np.uint16:
    image = from_16_bits(image)
  if image.dtype != np.uint8:
    raise UserError(f"{name}: holds {image.dtype} numbers; save it with 8 or 16 bits a channel")
  return image if is_rgb else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Reads an image file; see `decode_image`.

  Raises:
    UserError: the file cannot be read, or see `decode_image`.
  """
  return decode_image(read_file(path, path, max_pixels), path, max_pixels)


def read_file(file: str | os.PathLike, name: object, max_pixels: int = MAX_PIXELS) -> bytes:
  """Reads the bytes of an image file; `name` is what errors call it.

  Raises:
    UserError: the file cannot be read, or has more bytes than a picture of `max_pixels` can have.
  """
  try:
    with open(file, "rb") as f:
      size = os.fstat(f.fileno()).st_size
      if size > _MAX_BYTES_A_PIXEL * max_pixels + _MAX_EXTRA_BYTES:
        header = read_header(f.read(_MAX_EXTRA_BYTES))
        if header is not None:
          check_header(header, name, max_pixels)
        raise UserError(f"{name}: {size / 1e6:,.0f} MB are too much for a picture; save it anew")
      return f.read()
  except OSError as e:
    raise UserError(f"{name}: cannot be read ({e.strerror}); check its permissions") from e


def encode_image(image: np.ndarray, suffix: str = ".png") -> bytes:
  """Encodes uint8 RGB [h w 3] as PNG, or as JPEG for the suffix .jpg."""
  _, data = cv2.imencode(suffix, cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))
  return data.tobytes()


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes uint8 [h w 3]: by area to a smaller size, cubically to a larger one."""
  if image.shape[:2] == (height, width):
    return image
  how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
  return cv2.resize(image, (width, height), interpolation=how)


def from_16_bits(image: np.ndarray) -> np.ndarray:
  """Converts uint16 to uint8: v / 257, rounded, so that 65535 becomes 255."""
  return cv2.convertScaleAbs(image, alpha=1 / 257)


def _decode(data: bytes, header: Header, flags: int) -> np.ndarray | None:
  # libpng cannot be silenced: where rows are missing though checksums are right, it prints a line.
  # To foresee that, all data would have to be inflated, which takes as long as decoding.
  quiet = contextlib.nullcontext() if header.kind in ("PNG", "JPEG") else _quiet()
  with quiet:
    try:
      return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # raised for more than 2^30 pixels, or a side above 2^20
      return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """A context in which OpenCV prints nothing about damaged files, if it can be silenced."""
  log = getattr(cv2, "utils", None) and getattr(cv2.utils, "logging", None)
  if log is None:
    yield
    return
  level = log.setLogLevel(log.LOG_LEVEL_SILENT)
  try:
    yield
  finally:
    log.setLogLevel(level)
