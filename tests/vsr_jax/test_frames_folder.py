from __future__ import annotations

import struct
import zlib
from fractions import Fraction

import cv2
import numpy as np
import pytest

from tests.vsr_jax.clips import grey_levels, moving_waves, number_of
from vsr_jax import images, video
from vsr_jax.errors import UserError


def read(path, *frame_range) -> list[video.Frame]:
  with video.open_reader(str(path), *frame_range) as reader:
    return list(reader)


def test_a_folder_is_read_in_natural_order(tmp_path):
  images = grey_levels(12)
  for i, image in enumerate(images):
    cv2.imwrite(str(tmp_path / f"Frame{i}.{'png' if i % 2 else 'PNG'}"), image)
  (tmp_path / "notes.txt").write_text("not a frame")
  (tmp_path / ".hidden.png").write_text("not a frame")
  frames = read(tmp_path)
  np.testing.assert_array_equal([f.image for f in frames], images)
  assert [f.time for f in frames] == [Fraction(n, 25) for n in range(12)]
  info = video.probe(str(tmp_path))
  assert (info.frame_count, info.frame_rate, info.is_folder) == (12, 25, True)


def test_every_kind_of_image_is_read(tmp_path):
  image = moving_waves(1)[0]
  bgr = image[..., ::-1]
  alpha = np.dstack([bgr, np.full(bgr.shape[:2], 100, np.uint8)])
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

  files = {
    "rgb.png": (bgr, image, 0),
    "16.png": (bgr.astype(np.uint16) * 257, image, 1),
    "alpha.png": (alpha, image, 0),
    "grey.png": (grey, np.dstack([grey] * 3), 0),
    "grey16.png": (grey.astype(np.uint16) * 257, np.dstack([grey] * 3), 1),
    "a.bmp": (bgr, image, 0),
    "a.tiff": (bgr, image, 0),
    "a.jpg": (bgr, image, 12),
    "a.webp": (bgr, image, 12),
  }
  for name, (written, expected, tolerance) in files.items():
    assert cv2.imwrite(str(tmp_path / name), written)
    (frame,) = read(tmp_path / name)
    assert np.abs(frame.image.astype(int) - expected).max() <= tolerance, name


def test_a_palette_png_is_read(tmp_path):
  def chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

  colours = np.array([[255, 0, 0], [10, 200, 30], [0, 0, 250]], np.uint8)
  indices = np.random.default_rng(0).integers(0, 3, (5, 7), np.uint8)
  rows = np.pad(indices, ((0, 0), (1, 0)))  # each begins with the filter in use: none
  (tmp_path / "a.png").write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 8, 3, 0, 0, 0))
    + chunk(b"PLTE", colours.tobytes())
    + chunk(b"IDAT", zlib.compress(rows.tobytes()))
    + chunk(b"IEND", b"")
  )
  (frame,) = read(tmp_path / "a.png")
  np.testing.assert_array_equal(frame.image, colours[indices])


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_photo_is_turned_upright(tmp_path, orientation, turns):
  image = grey_levels(1)[0]
  image[:10, :20] = 250
  _, jpeg = cv2.imencode(".jpg", image)
  entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
  exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4)
  marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
  (tmp_path / "a.jpg").write_bytes(jpeg[:2].tobytes() + marker + jpeg[2:].tobytes())
  (frame,) = read(tmp_path / "a.jpg")
  expected = np.rot90(image, turns)
  assert frame.image.shape == expected.shape
  assert np.abs(frame.image.astype(int) - expected).mean() < 2


def test_damaged_and_unequal_images_are_named(tmp_path):
  for i in range(3):
    cv2.imwrite(str(tmp_path / f"{i}.png"), moving_waves(1)[0])
  good = (tmp_path / "1.png").read_bytes()
  flipped = bytearray(good)
  flipped[len(good) // 2] ^= 255
  for bad in (good[:-20], good[: len(good) // 2], good[:30], bytes(flipped), b""):
    (tmp_path / "1.png").write_bytes(bad)
    with pytest.raises(UserError, match="1.png: not a readable image"):
      read(tmp_path)
  _, jpeg = cv2.imencode(".jpg", moving_waves(1)[0])
  (tmp_path / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2].tobytes())
  with pytest.raises(UserError, match="half.jpg: not a readable image"):
    read(tmp_path / "half.jpg")
  (tmp_path / "half.jpg").unlink()
  cv2.imwrite(str(tmp_path / "1.png"), moving_waves(1, 48, 62)[0])
  with pytest.raises(UserError, match="1.png: is 62x48 but the first frame is 64x48"):
    read(tmp_path)


def test_skipped_frames_are_not_converted(tmp_path, monkeypatch):
  for n in range(6):
    cv2.imwrite(str(tmp_path / f"{n}.png"), grey_levels(6)[n])
  loaded = []
  original = images.read_image
  monkeypatch.setattr(images, "read_image", lambda p, n: loaded.append(p) or original(p, n))
  assert [number_of(f.image) for f in read(tmp_path, 4)] == [4, 5]
  assert [path[-5] for path in loaded] == ["0", "4", "5"]  # the first for its size
