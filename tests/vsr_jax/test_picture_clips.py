"""Clips of image files: which, their names, their limits, the frames around a range."""

from __future__ import annotations

import os
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.vsr_jax import pictures
from tests.vsr_jax.clips import encode, grey_levels, number_of
from vsr_jax import images, video
from vsr_jax.errors import UserError
from vsr_jax.images import encode_image
from vsr_jax.video import frames_folder


def fill(folder, names, start=0):
  """Writes images that tell their number."""
  folder.mkdir(exist_ok=True)
  for name, image in zip(names, grey_levels(start + len(names))[start:], strict=True):
    suffix = os.path.splitext(name)[1].lower().replace("jfif", "jpg")
    (folder / name).write_bytes(pictures.encoded(image, suffix))
  return str(folder)


def copy(source, target, *frame_range):
  """What a restoring command does, without restoring."""
  with video.open_reader(source, *frame_range) as reader:
    info = reader.info
    with video.open_writer(target, info.height, info.width, info.frame_rate, source=info) as writer:
      for frame in reader:
        writer.write(frame.image, frame.time, frame.duration, frame.name)


def test_frames_keep_their_names(tmp_path):
  source = fill(tmp_path / "in", ["0001.png", "0002.PNG", "x10.jpg", "x9.jfif", "b.c.bmp"])
  copy(source, str(tmp_path / "out"))
  names = ["0001.png", "0002.png", "b.c.png", "x10.png", "x9.png"]
  assert sorted(os.listdir(tmp_path / "out")) == names
  assert number_of(images.read_image(tmp_path / "out" / "x9.png")) == 3
  copy(source, str(tmp_path / "out"), 1, 3)
  assert sorted(os.listdir(tmp_path / "out")) == ["0002.png", "b.c.png"]
  copy(f"{source}/x10.jpg", f"{tmp_path}/one/")
  assert os.listdir(tmp_path / "one") == ["x10.png"]
  encode(tmp_path / "a.mkv", grey_levels(2))
  copy(str(tmp_path / "a.mkv"), str(tmp_path / "out"))
  assert sorted(os.listdir(tmp_path / "out")) == ["00000000.png", "00000001.png"]


def test_images_of_one_name_are_told_and_kept_apart(tmp_path):
  source = fill(tmp_path / "in", ["1.png", "1.jpg", "2.png", "2.jpg"])
  (note,) = video.probe(source).notes
  assert note.startswith(f"{source}: 1.jpg and 1.png differ in the extension alone, 4 such files")
  copy(source, str(tmp_path / "out"))
  assert sorted(os.listdir(tmp_path / "out")) == ["1.jpg.png", "1.png", "2.jpg.png", "2.png"]
  assert frames_folder.output_names(["1.jpg", "1.jpg.png", "1.png"])[0] == [
    "1.jpg.png.png",
    "1.jpg.png",
    "1.png",
  ]
  assert frames_folder.output_names(["1.jpg", "2.jpg"]) == (["1.png", "2.png"], None)


def test_only_frames_that_were_written_here_are_replaced(tmp_path):
  copy(fill(tmp_path / "in", ["a.png", "b.png"]), str(tmp_path / "out"))
  fill(tmp_path / "out", ["00000000.png"])  # somebody's own
  with pytest.raises(UserError, match="holds other files; name a new or an empty folder"):
    copy(str(tmp_path / "in"), str(tmp_path / "out"))
  assert sorted(os.listdir(tmp_path / "out")) == ["00000000.png", "a.png", "b.png"]
  frames_folder.remove_frames(str(tmp_path / "out"))
  assert os.listdir(tmp_path / "out") == ["00000000.png"]
  (tmp_path / "out" / "00000001.png").write_bytes(b"")
  (tmp_path / "out" / "folder.png").mkdir()
  (tmp_path / "out" / "link.png").symlink_to(tmp_path / "nothing")
  frames_folder.remove(str(tmp_path / "out"))  # as what a killed run left
  assert sorted(os.listdir(tmp_path / "out")) == ["00000000.png", "folder.png", "link.png"]


def test_animations_are_clips_or_refused(tmp_path):
  shown = grey_levels(3)
  (tmp_path / "a.png").write_bytes(pictures.animated_png(list(shown), [10, 20, 40]))
  (tmp_path / "a.gif").write_bytes(pictures.gif(16, 8))
  with video.open_reader(str(tmp_path / "a.png")) as reader:
    frames = list(reader)
  np.testing.assert_array_equal([frame.image for frame in frames], shown)
  assert [float(frame.time) for frame in frames] == pytest.approx([0, 0.1, 0.3], abs=1e-4)
  assert video.probe(str(tmp_path / "a.gif")).width == 16
  (tmp_path / "a.webp").write_bytes(pictures.animated_webp(list(shown)))
  (tmp_path / "a.tif").write_bytes(pictures.tiff(list(shown)))
  fill(tmp_path / "in", ["b.png"])
  for name in ("a.webp", "a.tif", "a.png"):
    (tmp_path / "in" / name).write_bytes((tmp_path / name).read_bytes())
    path = tmp_path / "in" if name == "a.png" else tmp_path / name
    with pytest.raises(UserError, match=rf"{name}: holds several pictures .* folder of single"):
      video.probe(str(path))
    (tmp_path / "in" / name).unlink()


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_pictures_under_the_name_of_a_video(tmp_path, name):
  noise = np.random.default_rng(0).integers(0, 256, (3, 400, 600, 3), np.uint8)  # above 1 MiB
  for make in (pictures.tiff, pictures.animated_webp):
    (tmp_path / name).write_bytes(make(list(noise)))
    with pytest.raises(UserError, match=rf"{name}: holds several pictures .* folder of single"):
      video.probe(str(tmp_path / name))
    if make is pictures.tiff:
      (tmp_path / name).write_bytes(make(list(noise[:1])))
      assert video.probe(str(tmp_path / name)).width == 600
  (tmp_path / name).write_bytes(pictures.animated_png(list(noise), [4, 4, 4]))
  with video.open_reader(str(tmp_path / name)) as reader:
    assert len(list(reader)) == 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.jpg", "a.jfif", "a.dat", "in"])
def test_pictures_above_the_limit_are_refused_before_decoding(tmp_path, monkeypatch, name):
  suffix = {"a.jfif": ".jpg", "a.dat": ".png", "in": ".png"}.get(name, name[1:])
  file = tmp_path / name
  if name == "in":
    file.mkdir()
    file /= "1.png"
  file.write_bytes(pictures.huge(suffix, 16000, 15000))

  def decode(*_, **__):
    raise AssertionError("decoded")

  monkeypatch.setattr(av, "open", decode)
  monkeypatch.setattr(images.cv2, "imdecode", decode)
  message = rf"{file.name}: 16000x15000 are 240.0 megapixels, more than the limit of 67.1; .*240000"
  with pytest.raises(UserError, match=message):
    video.probe(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.mjpeg", "a.gif"])
def test_videos_have_the_limit(tmp_path, name):
  codec = {"a.mjpeg": "mjpeg", "a.avi": "mjpeg", "a.gif": "gif"}.get(name, "libx264")
  form = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
  encode(tmp_path / name, grey_levels(30), codec, form)
  with pytest.raises(UserError, match=rf"{name}: (64x48 are|no frame can be decoded; .* of more)"):
    video.probe(str(tmp_path / name), 64 * 48 - 1)
  with pytest.raises(
    UserError, match=r"3,072 pixels, more than the limit of 3,071;| 3,071 pixels \("
  ):
    video.probe(str(tmp_path / name), 64 * 48 - 1)
  assert video.probe(str(tmp_path / name), 64 * 48).width == 64


def test_more_than_8_bits_of_rgb_and_grey_are_rounded(tmp_path):
  values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  encode(tmp_path / "a.mkv", values[None], "ffv1", "gray16le")
  with video.open_reader(str(tmp_path / "a.mkv")) as reader:
    (frame,) = reader
  np.testing.assert_array_equal(frame.image[..., 1], np.rint(values / 257))


@pytest.mark.parametrize("kind", ["video", "folder"])
@pytest.mark.parametrize(
  ("start", "stop", "numbers", "lead"),
  [
    (3, 5, [1, 2, 3, 4, 5], 2),
    (0, 2, [0, 1, 2], 0),
    (1, None, [*range(8)], 1),
    (7, 9, [5, 6, 7], 2),
  ],
)
def test_a_range_comes_with_its_neighbours(tmp_path, kind, start, stop, numbers, lead):
  path = tmp_path / ("a.mkv" if kind == "video" else "in")
  if kind == "video":
    encode(path, grey_levels(8))
  else:
    fill(path, [f"{i}.png" for i in range(8)])
  with warnings.catch_warnings(), video.open_reader(str(path), start, stop, context=(2, 1)) as clip:
    warnings.simplefilter("error")
    assert clip.lead == lead
    frames = list(clip)
  assert [number_of(frame.image) for frame in frames] == [f.index for f in frames] == numbers
  end = 8 if stop is None else stop
  assert [f.is_context for f in frames] == [not start <= i < end for i in numbers]
  assert all(frame.duration == Fraction(1, 25) for frame in frames)


def test_neighbours_that_cannot_be_read_are_left_out(tmp_path):
  source = fill(tmp_path / "in", [f"{i}.png" for i in range(6)])
  for name in ("1.png", "4.png"):
    (tmp_path / "in" / name).write_bytes(b"damaged")
  with video.open_reader(source, 2, 4, context=(1, 2)) as reader:
    assert [frame.index for frame in reader] == [2, 3, 5]
    assert reader.lead == 0
  with pytest.raises(UserError, match="1.png: not a readable image"):
    video.open_reader(source, 1, 3, context=(1, 1))
  with pytest.raises(UserError, match="ends before frame 6"):
    video.open_reader(source, 6, context=(2, 0))


def test_a_cut_file_is_not_told_where_only_neighbours_are_missing(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
  encode(tmp_path / "a.mkv", noise, "ffv1", "bgr0")
  data = (tmp_path / "a.mkv").read_bytes()
  (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
  with pytest.warns(UserWarning, match="damaged"), video.open_reader(f"{tmp_path}/cut.mkv") as clip:
    good = len(list(clip))
  assert 0 < good < 6
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with video.open_reader(str(tmp_path / "cut.mkv"), 0, good, context=(0, 3)) as clip:
      assert len(list(clip)) == good


def test_a_mark_leaves_the_picture_as_it_is(tmp_path):
  source = fill(tmp_path / "in", ["a.png"])
  copy(source, str(tmp_path / "out"))
  data = (tmp_path / "out" / "a.png").read_bytes()
  assert b"tEXtSoftware\0vsr_jax" in data
  image = images.read_image(tmp_path / "in" / "a.png")
  np.testing.assert_array_equal(images.decode_image(data, "a"), image)
  assert encode_image(image) != data
