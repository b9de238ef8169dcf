from __future__ import annotations

import pathlib
import threading
import time
import warnings
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.vsr_jax.clips import encode, grey_levels, moving_waves, number_of, set_display_matrix
from vsr_jax import video
from vsr_jax.errors import UserError
from vsr_jax.video import reader


def read(path, *frame_range) -> list[video.Frame]:
  with video.open_reader(str(path), *frame_range) as reader:
    return list(reader)


@pytest.mark.parametrize(
  ("name", "codec", "options"),
  [
    ("a.mp4", "libx264", {}),
    ("a.mkv", "libx264", {}),
    ("a.mov", "mpeg4", {}),
    ("a.avi", "libx264", {}),  # reordered frames in a container without times
    ("a.webm", "libvpx-vp9", {"crf": "20"}),
    ("a.mpg", "mpeg2video", {"b": "2000000"}),
    ("a.ts", "libx264", {}),
    ("a.h264", "libx264", {}),
    ("a.h265", "libx265", {"x265-params": "log-level=none"}),
  ],
)
def test_every_common_container_is_read(tmp_path, name, codec, options):
  encode(tmp_path / name, grey_levels(12), codec, rate=30, **options)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with video.open_reader(str(tmp_path / name)) as reader:
      frames = list(reader)
  info = reader.info
  assert (info.height, info.width, info.frame_rate) == (48, 64, 30)
  assert info.frame_count in (12, None)
  assert not info.has_audio
  assert not info.is_folder
  assert [number_of(f.image) for f in frames] == list(range(12))
  assert [f.index for f in frames] == list(range(12))
  # Matroska counts milliseconds.
  assert all(abs(f.time - Fraction(f.index, 30)) <= Fraction(1, 1000) for f in frames)
  assert frames[0].image.dtype == np.uint8
  assert frames[0].image.shape == (48, 64, 3)


def test_a_short_clip_is_one_array(tmp_path):
  encode(tmp_path / "a.mkv", grey_levels(5), "ffv1", rate=10)
  whole = video.read_frames(tmp_path / "a.mkv")
  assert (whole.dtype, whole.shape) == (np.uint8, (5, 48, 64, 3))
  assert [number_of(image) for image in video.read_frames(tmp_path / "a.mkv", 1, 3)] == [1, 2]
  assert [number_of(image) for image in video.read_frames(tmp_path / "a.mkv", 3, 9)] == [3, 4]


def test_a_gif_is_read(tmp_path):
  encode(tmp_path / "a.gif", grey_levels(4), "gif", "gray", rate=10)
  frames = read(tmp_path / "a.gif")
  assert [number_of(f.image) for f in frames] == [0, 1, 2, 3]
  assert [f.time for f in frames] == [Fraction(i, 10) for i in range(4)]


@pytest.mark.parametrize(
  ("name", "codec", "pix_fmt", "tolerance"),
  [
    ("a.mkv", "ffv1", "yuv444p10le", 2),
    ("a.mkv", "ffv1", "gbrp16le", 1),
    ("a.mkv", "ffv1", "bgra", 0),
    ("a.mkv", "ffv1", "yuva444p", 2),
    ("a.mov", "qtrle", "argb", 0),
    ("a.mov", "libx264rgb", "rgb24", 0),
  ],
)
def test_other_pixel_formats_become_8_bit_rgb(tmp_path, name, codec, pix_fmt, tolerance):
  images = moving_waves(2)
  encode(tmp_path / name, images, codec, pix_fmt, crf="0")
  frames = read(tmp_path / name)
  error = np.abs(frames[1].image.astype(int) - images[1])
  assert error.max() <= tolerance  # rounding of the two conversions


@pytest.mark.parametrize(("pix_fmt", "codec"), [("gray", "ffv1"), ("gray10le", "ffv1")])
def test_grey_is_shown_as_grey(tmp_path, pix_fmt, codec):
  images = grey_levels(3)
  encode(tmp_path / "a.mkv", images, codec, pix_fmt)
  for frame, image in zip(read(tmp_path / "a.mkv"), images, strict=True):
    assert np.abs(frame.image.astype(int) - image).max() <= 1


# Kr and Kb of the matrices, from ITU-R BT.709, BT.601 and BT.2020.
WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593)}


@pytest.mark.parametrize(
  ("tag", "tagged_range", "width", "matrix"),
  [
    ("bt709", "tv", 64, "bt709"),
    ("smpte170m", "tv", 64, "bt601"),
    ("bt470bg", "tv", 64, "bt601"),
    ("bt2020nc", "tv", 64, "bt2020"),
    ("bt709", "pc", 64, "bt709"),
    ("smpte170m", "pc", 1280, "bt601"),
    (None, None, 64, "bt601"),
    (None, None, 1280, "bt709"),
  ],
)
def test_colours_follow_the_tags(tmp_path, tag, tagged_range, width, matrix):
  yuv = np.zeros((1, 48, width, 3), np.int64)
  yuv[..., 0] = 60 + np.arange(width) % 64 * 2
  yuv[:, :24] += (0, 90, 150)
  yuv[:, 24:] += (0, 170, 100)
  planes = yuv[0].transpose(2, 0, 1).astype(np.uint8)
  options = {"colorspace": tag, "color_range": tagged_range} if tag else {}
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as file:
    stream = file.add_stream("ffv1", rate=25, options=options)
    stream.width, stream.height, stream.pix_fmt = width, 48, "yuv444p"
    frame = av.VideoFrame.from_ndarray(planes, format="yuv444p", channel_last=False)
    if tag:
      frame.colorspace = {"bt709": 1, "bt470bg": 5, "smpte170m": 6, "bt2020nc": 9}[tag]
      frame.color_range = {"tv": 1, "pc": 2}[tagged_range]
    file.mux(stream.encode(frame))
    file.mux(stream.encode(None))
  kr, kb = WEIGHTS[matrix]
  if tagged_range == "pc":
    luma, u, v = yuv[..., 0] / 255, (yuv[..., 1] - 128) / 255, (yuv[..., 2] - 128) / 255
  else:
    luma, u, v = (yuv[..., 0] - 16) / 219, (yuv[..., 1] - 128) / 224, (yuv[..., 2] - 128) / 224
  red, blue = luma + 2 * (1 - kr) * v, luma + 2 * (1 - kb) * u
  green = (luma - kr * red - kb * blue) / (1 - kr - kb)
  expected = np.clip(255 * np.stack([red, green, blue], -1), 0, 255)[0]
  (frame,) = read(path)
  assert np.abs(frame.image - expected).max() <= 1.01  # fixed-point coefficients


@pytest.mark.parametrize("first", [(1, 0), (-1, 0), (0, 1), (0, -1)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_mirroring_are_applied(tmp_path, first, mirrored):
  path = tmp_path / "a.mp4"
  image = moving_waves(1)[0]
  encode(path, image[None], "libx264rgb", "rgb24", crf="0")
  a, b = first
  c, d = (b, -a) if mirrored else (-b, a)
  set_display_matrix(path, a, b, c, d)
  y, x = np.mgrid[:48, :64]
  to_x, to_y = a * x + c * y, b * x + d * y
  to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
  expected = np.empty((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
  expected[to_y, to_x] = image
  info = video.probe(str(path))
  assert (info.height, info.width) == expected.shape[:2]
  np.testing.assert_array_equal(read(path)[0].image, expected)


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
  times = [Fraction(n, 30) for n in (0, 1, 3, 4, 15, 16, 40)]
  encode(tmp_path / "a.mp4", grey_levels(7), times=times)
  frames = read(tmp_path / "a.mp4")
  assert [f.time for f in frames] == times
  assert [number_of(f.image) for f in frames] == list(range(7))


def test_times_count_from_the_first_frame(tmp_path):
  encode(tmp_path / "a.mkv", grey_levels(3), times=[2 + Fraction(n, 10) for n in range(3)])
  with video.open_reader(str(tmp_path / "a.mkv")) as reader:
    assert reader.info.start_time == 2
    assert [f.time for f in reader] == [0, Fraction(1, 10), Fraction(2, 10)]


@pytest.mark.parametrize(
  ("size", "codec"), [((47, 63), "ffv1"), ((2, 2), "ffv1"), ((1, 5), "ffv1")]
)
def test_odd_sizes(tmp_path, size, codec):
  images = grey_levels(2, *size)
  encode(tmp_path / "a.mkv", images, codec, "yuv444p")
  np.testing.assert_allclose([f.image for f in read(tmp_path / "a.mkv")], images, atol=1)


def test_a_frame_range_is_cut_out(tmp_path):
  encode(tmp_path / "a.mp4", grey_levels(10))
  frames = read(tmp_path / "a.mp4", 3, 6)
  assert [number_of(f.image) for f in frames] == [3, 4, 5]
  assert [f.index for f in frames] == [3, 4, 5]
  assert [f.time for f in frames] == [Fraction(n, 25) for n in (3, 4, 5)]
  assert len(read(tmp_path / "a.mp4", 8)) == 2
  assert len(read(tmp_path / "a.mp4", 8, 1000)) == 2
  for wrong in [(10,), (5, 5), (5, 3), (-1, 3)]:
    with pytest.raises(UserError, match="a.mp4"):
      video.open_reader(str(tmp_path / "a.mp4"), *wrong)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "fast.mp4", "a.avi"])
def test_a_truncated_file_yields_its_good_frames_and_a_warning(tmp_path, name):
  images = moving_waves(60)
  if name == "fast.mp4":
    with video.open_writer(str(tmp_path / name), 48, 64, Fraction(25)) as writer:
      for image in images:
        writer.write(image)
  else:
    encode(tmp_path / name, images, "mpeg4" if name == "a.avi" else "libx264", g="10")
  whole = read(tmp_path / name)
  assert len(whole) == 60
  data = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(data[: len(data) * 8 // 10 + 1])
  with pytest.warns(UserWarning, match=f"{name}: .* cut short after [0-9]+ frames"):  # noqa: SIM117
    with video.open_reader(str(tmp_path / name)) as reader:
      frames = list(reader)
  assert "cut short" in reader.warning
  assert 20 < len(frames) < 60
  # By time: a transport stream may be cut in a frame that is shown before the last one decoded,
  # and where that is depends on how the encoder's threads chose the kinds of frames.
  good = {frame.time: frame.image for frame in whole}
  assert len({frame.time for frame in frames}) == len(frames)
  for frame in frames:
    np.testing.assert_array_equal(frame.image, good[frame.time])


def test_a_damaged_file_stops_before_the_damage(tmp_path):
  path = tmp_path / "a.mp4"
  encode(path, moving_waves(60), g="10", movflags="+faststart")
  whole = read(path)
  data = bytearray(path.read_bytes())
  middle = data.index(b"mdat") + len(data) // 2
  data[middle : middle + 200] = bytes(200)
  path.write_bytes(data)
  with pytest.warns(UserWarning, match="damaged"):
    frames = read(path)
  assert 20 < len(frames) < 50
  # Of the frame that was hit the decoder may see nothing wrong: H.264 has no checksums.
  for frame, good in zip(frames[: len(frames) // 10 * 10 - 10], whole, strict=False):
    np.testing.assert_array_equal(frame.image, good.image)


def test_bad_input_is_named_in_one_line(tmp_path):
  waves = moving_waves(4)
  encode(tmp_path / "no_moov.mp4", waves)
  data = (tmp_path / "no_moov.mp4").read_bytes()
  (tmp_path / "no_moov.mp4").write_bytes(data[: data.index(b"moov")])
  with av.open(str(tmp_path / "no_frames.avi"), "w") as file:
    track = file.add_stream("ffv1", rate=25)
    track.width, track.height, track.pix_fmt = 64, 48, "bgr0"
    file.start_encoding()
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "notes.txt").write_text("no film here\n" * 40)
  (tmp_path / "text.mp4").write_text("no film here\n" * 40)
  (tmp_path / "zeros.mkv").write_bytes(bytes(5000))
  (tmp_path / "text.png").write_text("no picture here\n" * 40)
  (tmp_path / "empty_folder").mkdir()
  (tmp_path / "other_folder").mkdir()
  (tmp_path / "other_folder" / "readme.txt").write_text("hello")
  with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as file:
    track = file.add_stream("aac", rate=48_000)
    track.codec_context.layout = "mono"
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
    silence.sample_rate = 48_000
    file.mux(track.encode(silence))
    file.mux(track.encode(None))
  names = [path.name for path in tmp_path.iterdir()]
  assert len(names) == 10
  for name in [*names, "missing.mp4", "missing/folder"]:
    with pytest.raises(UserError) as error:
      video.open_reader(str(tmp_path / name))
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # what is wrong; what to do
  with pytest.raises(UserError, match="no video"):
    video.probe(str(tmp_path / "sound.m4a"))
  with pytest.raises(UserError, match="no frame can be decoded"):
    video.probe(str(tmp_path / "no_frames.avi"))


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
  encode(tmp_path / "a.mp4", moving_waves(1))

  def denied(*args):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(reader, "open", denied, raising=False)  # tests may run as root
  with pytest.raises(UserError, match="a.mp4: cannot be read .Permission denied.; check"):
    video.probe(str(tmp_path / "a.mp4"))


def test_names_and_tags_may_hold_anything(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = pathlib.Path("http: 100%03d ü.mkv")
  with av.open(str(tmp_path / "a.mkv"), "w") as file:
    file.metadata["title"] = "XXXXXXXX"
    stream = file.add_stream("ffv1", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    file.mux(stream.encode(av.VideoFrame.from_ndarray(moving_waves(1)[0])))
    file.mux(stream.encode(None))
  data = (tmp_path / "a.mkv").read_bytes()
  assert data.count(b"XXXXXXXX") == 1
  path.write_bytes(data.replace(b"XXXXXXXX", "Rückkehr".encode("latin-1")))
  assert len(read(path)) == 1


@pytest.mark.parametrize("ahead", [None, 2])
def test_memory_does_not_grow_with_the_clip(tmp_path, ahead):
  encode(tmp_path / "a.mp4", grey_levels(30))
  images, most = [], 0
  with video.open_reader(str(tmp_path / "a.mp4")) as reader:
    for frame in video.prefetch(reader, ahead) if ahead else reader:
      images.append(weakref.ref(frame.image))
      most = max(most, sum(ref() is not None for ref in images))
      del frame
  assert len(images) == 30
  assert most <= 2  # of those handed out: this one and the one before


def test_prefetch_runs_ahead_but_not_far():
  made = []

  def items():
    for i in range(10):
      made.append(i)
      yield i

  ahead = video.prefetch(items(), depth=3)
  assert next(ahead) == 0
  deadline = time.monotonic() + 5
  while len(made) < 4 and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.05)
  assert made == [0, 1, 2, 3]
  assert list(ahead) == list(range(1, 10))


def test_prefetch_passes_on_what_goes_wrong():
  def items():
    yield 1
    raise UserError("clip.mp4: damaged")

  ahead = video.prefetch(items())
  assert next(ahead) == 1
  with pytest.raises(UserError, match="damaged"):
    next(ahead)


def test_stopping_early_ends_the_thread(tmp_path):
  encode(tmp_path / "a.mp4", grey_levels(30))
  before = threading.active_count()

  def interrupted():
    with video.open_reader(str(tmp_path / "a.mp4")) as reader:
      for frame in video.prefetch(reader):
        if frame.index == 3:
          raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    interrupted()
  assert threading.active_count() == before
  with video.open_reader(str(tmp_path / "a.mp4")) as reader:
    ahead = video.prefetch(reader)
    next(ahead)
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # closed is not cut short
    assert len(list(ahead)) <= 3  # only what was made before the reader was closed
  assert threading.active_count() == before
