from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.vsr_jax import pictures
from vsr_jax import image_headers, images
from vsr_jax.errors import UserError

QUARTERS = np.zeros((48, 64, 3), np.uint8)
QUARTERS[:24, :32], QUARTERS[:24, 32:], QUARTERS[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
  """Exif's definition: the sides of the picture that row 0 and column 0 are."""
  turn = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
  }
  return turn[orientation](image)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(suffix, orientation):
  data = pictures.oriented(QUARTERS, suffix, orientation)
  image, expected = images.decode_image(data, "a"), upright(QUARTERS, orientation)
  assert images.image_size(data, "a") == image.shape[:2] == expected.shape[:2]
  assert np.abs(image.astype(int) - expected).mean() < 8  # JPEG, which blurs colours


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_rounded(suffix):
  values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  deep = np.dstack([values, values[::-1], values[:, ::-1]])
  data = pictures.encoded(deep, ".png") if suffix == ".png" else pictures.tiff([deep])
  np.testing.assert_array_equal(images.decode_image(data, "a"), np.rint(deep / 257))
  grey = pictures.encoded(values, suffix)
  np.testing.assert_array_equal(images.decode_image(grey, "a")[..., 1], np.rint(values / 257))


SUFFIXES = [".png", ".jpg", ".bmp", ".webp", ".tiff"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_pixel_limit_is_checked_before_decoding(suffix, monkeypatch):
  width, height = (16000, 12000)
  data = pictures.huge(suffix, width, height)
  monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
  with pytest.raises(UserError, match=r"a: 16000x12000 are 192.0 .*67.1; .*--max-pixels 192000000"):
    images.decode_image(data, "a")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_pixel_limit_can_be_moved(suffix):
  data = pictures.encoded(QUARTERS, suffix)
  assert images.decode_image(data, "a", QUARTERS[..., 0].size).shape == QUARTERS.shape
  with pytest.raises(UserError, match="64x48"):
    images.decode_image(data, "a", QUARTERS[..., 0].size - 1)


@pytest.mark.parametrize(
  ("pixels", "limit", "expected"),
  [
    (3072, 1, "3,072 pixels, more than the limit of 1;"),
    (2**26 + 1, 2**26, "67,108,865 pixels, more than the limit of 67,108,864;"),
    (2 * 10**6, 10**6, "2.0 megapixels, more than the limit of 1.0;"),
  ],
)
def test_the_pixel_limit_is_told_in_digits_enough(pixels, limit, expected):
  with pytest.raises(UserError) as error:
    images.check_pixels(1, pixels, "a", limit)
  assert f"a: {pixels}x1 are {expected} make it smaller" in str(error.value)


def test_a_tiff_with_huge_tiles_is_above_the_limit():
  data = pictures.tiff([QUARTERS])
  (entries_at,) = struct.unpack_from("<I", data, 4)
  # 284 (planar configuration) and 279 (strip bytes) make room for the tiles' sizes.
  for old, new in ((279, 322), (284, 323)):
    at = data.index(struct.pack("<HHI", old, 4, 1), entries_at)
    data = data[:at] + struct.pack("<HHII", new, 4, 1, 30000) + data[at + 12 :]
  with pytest.raises(UserError, match="900.0 megapixels"):
    images.decode_image(data, "a")


def test_several_pictures_in_a_file_are_refused():
  black = np.zeros_like(QUARTERS)
  for data in (
    pictures.animated_webp([QUARTERS, black]),
    pictures.animated_png([QUARTERS, black], [4, 4]),
    pictures.tiff([QUARTERS, black]),
  ):
    with pytest.raises(UserError, match="a: holds several pictures .* folder of single images"):
      images.decode_image(data, "a")
  alone = pictures.tiff([QUARTERS, black[::2, ::2]], subfile=1)  # a thumbnail is no page
  np.testing.assert_array_equal(images.decode_image(alone, "a"), QUARTERS)


def test_transparency_and_numbers_that_cannot_be_read_right_are_refused():
  alpha = np.dstack([QUARTERS, np.full((48, 64), 255, np.uint8)])
  np.testing.assert_array_equal(images.decode_image(pictures.tiff([alpha]), "a"), QUARTERS)
  alpha[5, 5, 3] = 100
  with pytest.raises(UserError, match="a TIFF with transparency"):
    images.decode_image(pictures.tiff([alpha]), "a")
  data = pictures.encoded(QUARTERS.astype(np.float32), ".tiff")
  with pytest.raises(UserError, match="holds float32 numbers"):
    images.decode_image(data, "a")


def test_damage_and_rights_are_told_apart(tmp_path, capfd, monkeypatch):
  file = tmp_path / "a.png"
  noise = np.random.default_rng(0).integers(0, 256, QUARTERS.shape, np.uint8)
  for suffix in SUFFIXES:
    good = pictures.encoded(noise, suffix)
    for bad in (good[:-20], good[: len(good) // 2], good[:30], b""):
      file.write_bytes(bad)
      with pytest.raises(UserError, match="a.png: not a readable image; replace it"):
        images.read_image(file)
  flipped = bytearray(pictures.encoded(noise, ".png"))
  flipped[len(flipped) // 2] ^= 255
  file.write_bytes(flipped)
  with pytest.raises(UserError, match="not a readable image"):
    images.read_image(file)
  assert "libpng" not in capfd.readouterr().err

  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("builtins.open", refuse)
  with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); check its perm"):
    images.read_image(file)


def test_a_file_too_large_for_its_limit_is_not_read(tmp_path):
  file = tmp_path / "a.png"
  with open(file, "wb") as f:
    f.write(pictures.encoded(QUARTERS, ".png"))
    f.truncate(2**40)
  with pytest.raises(UserError, match="MB are too much for a picture"):
    images.read_image(file)


def test_what_stands_behind_a_jpeg_does_not_matter(tmp_path):
  file = tmp_path / "a.jpg"
  file.write_bytes(pictures.encoded(QUARTERS, ".jpg") + b"a phone's video of the moment")
  assert images.read_image(file).shape == QUARTERS.shape


def test_headers_are_read_from_a_beginning_and_survive_any_damage():
  for suffix in SUFFIXES:
    data = pictures.encoded(QUARTERS, suffix)
    header = image_headers.read_header(data)
    assert (header.height, header.width) == (48, 64)
    if suffix == ".png":
      assert image_headers.read_header(data[:24]) == header
  rng = np.random.default_rng(0)
  for suffix in (".png", ".jpg", ".webp", ".tiff"):
    good = pictures.oriented(QUARTERS, suffix, 6)
    for _ in range(300):
      bad = bytearray(good[: rng.integers(len(good)) + 1])
      for at in rng.integers(len(bad), size=3):
        bad[at] = rng.integers(256)
      image_headers.read_header(bytes(bad))  # raises nothing


def test_what_is_encoded_is_decoded():
  np.testing.assert_array_equal(images.decode_image(images.encode_image(QUARTERS), "a"), QUARTERS)
  assert images.encode_image(QUARTERS, ".jpg")[:2] == b"\xff\xd8"
