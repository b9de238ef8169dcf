from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import threading
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vsr_jax.clips import encode, grey_levels, moving_waves, number_of, read_sound
from vsr_jax import files, video
from vsr_jax.errors import Terminated, UserError
from vsr_jax.video import frames_folder, sound

VIDEOS = ["a.mp4", "a.mkv", "a.mov"]
RATE = Fraction(30_000, 1001)


def write(path, images, times=None, rate=RATE, **arguments) -> None:
  height, width = images.shape[1:3]
  with video.open_writer(str(path), height, width, rate, **arguments) as writer:
    for i, image in enumerate(images):
      writer.write(image, times and times[i])


def read(path) -> list[video.Frame]:
  with video.open_reader(str(path)) as reader:
    return list(reader)


def restore(source, target, *frame_range) -> None:
  """Passes a clip through as the restorers do."""
  with video.open_reader(str(source), *frame_range) as reader:
    info = reader.info
    with video.open_writer(
      str(target), info.height, info.width, info.frame_rate, source=info
    ) as writer:
      for frame in reader:
        writer.write(frame.image, frame.time, frame.duration)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
  return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_comes_back_as_it_was(tmp_path, name):
  # Waves twice as long as the usual ones: 4:2:0 halves the chroma, which costs fine colours most.
  images = np.stack([cv2.resize(i, (128, 96)) for i in moving_waves(12)])
  write(tmp_path / name, images, quality=10)
  info, frames = video.probe(str(tmp_path / name)), read(tmp_path / name)
  assert (info.height, info.width, info.frame_rate) == (96, 128, RATE)
  assert min(psnr(f.image, image) for f, image in zip(frames, images, strict=True)) > 40
  assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_quality_0_is_exact(tmp_path, name, size):
  images = np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)
  write(tmp_path / name, images, quality=0)
  np.testing.assert_array_equal([f.image for f in read(tmp_path / name)], images)


def test_colours_are_true_and_tagged(tmp_path):
  colours = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]
  for colour in [*colours, (200, 30, 90), (17, 130, 60)]:
    image = np.full((48, 64, 3), colour, np.uint8)
    write(tmp_path / "a.mp4", image[None], quality=4)
    (frame,) = read(tmp_path / "a.mp4")
    # 8-bit YUV in limited range resolves no finer.
    assert np.abs(frame.image.astype(int) - colour).max() <= 2
  with av.open(str(tmp_path / "a.mp4")) as file:
    coded = file.streams.video[0].codec_context
    assert (coded.colorspace, coded.color_primaries, coded.color_trc) == (1, 1, 1)
    assert (coded.color_range, coded.name, coded.pix_fmt) == (1, "h264", "yuv420p")


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40))
def test_any_size_is_kept(tmp_path_factory, height, width):
  path = tmp_path_factory.mktemp("sizes") / "a.mp4"
  write(path, grey_levels(2, height, width))
  frames = read(path)
  assert [number_of(f.image) for f in frames] == [0, 1]
  assert frames[0].image.shape == (height, width, 3)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_variable_frame_rate_is_kept(tmp_path, name):
  times = [Fraction(n, 30) for n in (7, 8, 10, 11, 22, 23, 47)]
  write(tmp_path / name, grey_levels(7), times)
  precision = Fraction(1, 1000) if name == "a.mkv" else Fraction(1, 90_000)
  for frame, time in zip(read(tmp_path / name), times, strict=True):
    assert abs(frame.time - (time - times[0])) <= precision


def test_the_index_of_an_mp4_comes_first(tmp_path):
  write(tmp_path / "a.mp4", grey_levels(3))
  data = (tmp_path / "a.mp4").read_bytes()
  assert data.index(b"moov") < data.index(b"mdat")


def test_the_pixel_aspect_is_kept(tmp_path):
  encode(tmp_path / "a.mkv", grey_levels(2), aspect="8/9")
  assert video.probe(str(tmp_path / "a.mkv")).pixel_aspect == Fraction(8, 9)
  restore(tmp_path / "a.mkv", tmp_path / "b.mp4")
  assert video.probe(str(tmp_path / "b.mp4")).pixel_aspect == Fraction(8, 9)


def make_talkie(path, codec: str, rate: int, video_codec: str = "libx264") -> None:
  """Two seconds; a bright flash and a beep together from 1.2 s to 1.4 s."""
  times = np.arange(2 * rate) / rate
  beep = np.where((times >= 1.2) & (times < 1.4), 0.5 * np.sin(2 * np.pi * 600 * times), 0)
  images = np.full((50, 48, 64, 3), 30, np.uint8)
  images[30:35] = 220
  encode(path, images, video_codec, sound=(codec, beep), sound_rate=rate)


def beep_minus_flash(path) -> float:
  """How much later than the flash the beep begins, in seconds."""
  flash = next(frame.time for frame in read(path) if frame.image.mean() > 120)
  samples, start = read_sound(path)
  with av.open(str(path)) as file:
    rate = file.streams.audio[0].codec_context.sample_rate
  beep = start + np.argmax(np.abs(samples) > 0.2) / rate
  return beep - float(flash + video.probe(str(path)).start_time)


@pytest.mark.parametrize(
  ("source", "codec", "rate", "target", "expected"),
  [
    ("a.mp4", "aac", 44_100, "b.mp4", "aac"),
    ("a.mp4", "aac", 44_100, "b.mkv", "aac"),
    ("a.ts", "aac", 48_000, "b.mp4", "aac"),
    ("a.mkv", "libopus", 48_000, "b.mp4", "opus"),
    ("a.mkv", "libopus", 48_000, "b.mov", "aac"),  # mov does not take Opus
    ("a.mkv", "flac", 48_000, "b.mkv", "flac"),
    ("a.avi", "pcm_s16le", 22_050, "b.mp4", "aac"),
    ("a.mpg", "mp2", 44_100, "b.mov", "mp2"),
  ],
)
@pytest.mark.parametrize("frame_range", [(0, None), (20, 40)])
def test_sound_comes_along_in_step(tmp_path, source, codec, rate, target, expected, frame_range):
  make_talkie(
    tmp_path / source, codec, rate, "mpeg2video" if source in ("a.avi", "a.mpg") else "libx264"
  )
  before = beep_minus_flash(tmp_path / source)
  restore(tmp_path / source, tmp_path / target, *frame_range)
  with av.open(str(tmp_path / target)) as file:
    assert file.streams.audio[0].codec_context.name == expected
    duration = float(file.duration / 1e6)
  frames = len(range(50)[slice(*frame_range)])
  packet = 4608 / 48_000 if codec == "flac" else 2048 / rate
  assert abs(duration - frames / 25) <= packet + 0.005
  assert abs(beep_minus_flash(tmp_path / target) - before) < 0.005


def test_copied_sound_is_not_coded_again(tmp_path):
  make_talkie(tmp_path / "a.mp4", "aac", 44_100)
  restore(tmp_path / "a.mp4", tmp_path / "b.mp4")

  def packets(name):
    with av.open(str(tmp_path / name)) as file:
      return [bytes(packet) for packet in file.demux(audio=0) if packet.size]

  # All but the encoder's last packets, which lie behind the last picture.
  assert packets("b.mp4") == packets("a.mp4")[: len(packets("b.mp4"))]
  assert 0 <= len(packets("a.mp4")) - len(packets("b.mp4")) <= 2


def test_damaged_sound_costs_neither_the_pictures_nor_the_rest_of_it(tmp_path, monkeypatch):
  make_talkie(tmp_path / "a.mp4", "aac", 44_100)
  put, calls = sound.SoundTrack._put, []

  def fragile(*args):
    calls.append(args)
    if len(calls) == 20:
      raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
    put(*args)

  monkeypatch.setattr(sound.SoundTrack, "_put", fragile)
  with pytest.warns(UserWarning, match=r"a.mp4: its sound is damaged at 0.4 s"):
    restore(tmp_path / "a.mp4", tmp_path / "b.mp4")
  assert len(read(tmp_path / "b.mp4")) == 50
  assert beep_minus_flash(tmp_path / "b.mp4") == pytest.approx(-1024 / 44_100, abs=0.005)
  assert len(read_sound(tmp_path / "b.mp4")[0]) == pytest.approx(2 * 44_100, abs=2048)


def test_frames_are_written_as_png(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
  for path in (tmp_path / "frames", f"{tmp_path}/with.dot/"):
    write(path, images)
    assert sorted(os.listdir(path)) == ["00000000.png", "00000001.png", "00000002.png"]
    np.testing.assert_array_equal([f.image for f in read(path)], images)
    write(path, images[:2])  # frames of an earlier run may go
    assert sorted(os.listdir(path)) == ["00000000.png", "00000001.png"]
  (tmp_path / "v1.0").mkdir()
  write(tmp_path / "v1.0", images)
  assert len(os.listdir(tmp_path / "v1.0")) == 3
  assert sorted(os.listdir(tmp_path)) == ["frames", "v1.0", "with.dot"]


def test_one_image_is_written(tmp_path):
  image = moving_waves(1)
  write(tmp_path / "a.png", image)
  np.testing.assert_array_equal(read(tmp_path / "a.png")[0].image, image[0])
  write(tmp_path / "a.jpg", image)
  assert psnr(read(tmp_path / "a.jpg")[0].image, image[0]) > 30
  with pytest.raises(UserError, match="b.png: one image cannot hold several frames; name a folder"):
    write(tmp_path / "b.png", moving_waves(2))
  assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.png"]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.png", "out"])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Terminated, ValueError])
@pytest.mark.parametrize("there_before", [False, True])
def test_what_is_interrupted_leaves_nothing(tmp_path, name, interrupt, there_before):
  if there_before:
    write(tmp_path / name, grey_levels(1))
  before = snapshot(tmp_path)
  threads = threading.active_count()

  def interrupted():
    with video.open_writer(str(tmp_path / name), 48, 64, RATE) as writer:
      writer.write(moving_waves(1)[0])
      raise interrupt

  with pytest.raises(interrupt):
    interrupted()
  assert snapshot(tmp_path) == before
  assert threading.active_count() == threads


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.png"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, name, monkeypatch):
  if not os.path.exists("/dev/full"):
    pytest.skip("needs /dev/full")
  write(tmp_path / name, grey_levels(1))
  before = snapshot(tmp_path)
  part = f"{name}.of_this_run.part"
  monkeypatch.setattr(files, "part_name", lambda path: str(tmp_path / part))
  (tmp_path / part).symlink_to("/dev/full")
  noise = np.random.default_rng(0).integers(0, 256, (80, 48, 64, 3), np.uint8)
  with pytest.raises(OSError, match="No space left") as error:
    write(tmp_path / name, noise[: 1 if name == "out.png" else 80])
  assert error.value.errno == errno.ENOSPC
  assert error.value.filename == str(tmp_path / name)
  assert snapshot(tmp_path) == before
  assert os.listdir(tmp_path) == [name]


def test_a_disk_that_fills_up_under_a_folder(tmp_path, monkeypatch):
  write(tmp_path / "out", grey_levels(2))
  before = snapshot(tmp_path)

  def full(name, mode):
    raise OSError(errno.ENOSPC, "No space left on device", name)

  monkeypatch.setattr(frames_folder, "open", full, raising=False)
  with pytest.raises(OSError, match="No space left"):
    write(tmp_path / "out", grey_levels(40))
  assert snapshot(tmp_path) == before
  assert os.listdir(tmp_path) == ["out"]


def test_outputs_that_cannot_be_are_refused_before_any_work(tmp_path, monkeypatch):
  encode(tmp_path / "a.mp4", grey_levels(3))
  write(tmp_path / "frames", grey_levels(3))
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "photo.png").write_bytes(b"precious")
  (tmp_path / "link.mp4").symlink_to("a.mp4")
  os.link(tmp_path / "a.mp4", tmp_path / "hard.mp4")
  (tmp_path / "nothing.mp4").symlink_to("/dev/null")
  (tmp_path / "plain").touch()
  clip, frames = str(tmp_path / "a.mp4"), str(tmp_path / "frames")
  before = snapshot(tmp_path)
  for name, source, reason in [
    ("no/out.mp4", clip, "create it first"),
    ("no/frames/", clip, "create it first"),
    ("out.wmv", clip, "unknown kind of output .wmv; use .mp4, .mkv, .mov"),
    ("a.mp4", clip, "is the input"),
    ("link.mp4", clip, "is the input"),
    ("hard.mp4", clip, "is the input"),
    ("frames", frames, "is the input"),
    ("frames/", frames, "is the input"),
    ("frames", f"{frames}/00000001.png", "is the input"),
    ("frames/00000001.png", frames, "file of the input folder"),
    ("mine", clip, "holds other files"),
    ("nothing.mp4", clip, "not a file that can be replaced"),
    ("plain", clip, "is a file, not a folder"),
  ]:
    with pytest.raises(UserError, match=reason) as error:
      video.check_output(f"{tmp_path}/{name}", source)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=reason):
      write(f"{tmp_path}/{name}", grey_levels(1), source=video.probe(source))
  monkeypatch.setattr(os, "access", lambda *args: False)  # tests may run as root
  with pytest.raises(UserError, match="cannot be written; choose another one"):
    video.check_output(str(tmp_path / "out.mp4"))
  assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["out.mp4", "out.png", "out"])
def test_two_that_write_one_output_leave_one_of_the_two(tmp_path, name):
  """The one that ends last, whole; what it found there when it began does not matter."""
  path, images = str(tmp_path / name), grey_levels(5)
  with (
    video.open_writer(path, 48, 64, RATE) as late,
    video.open_writer(path, 48, 64, RATE) as early,
  ):
    late.write(images[0])
    early.write(images[3])
    if name != "out.png":
      early.write(images[4])
  assert [number_of(frame.image) for frame in read(path)] == [0]
  assert os.listdir(tmp_path) == [name]


def test_what_a_killed_run_left_is_removed_but_nothing_else(tmp_path):
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  run = f"-{os.getpid()}-", f"-{ended.pid}-"
  folder, file = (files.part_name(tmp_path / name).replace(*run) for name in ("out", "out.mp4"))
  living = files.part_name(tmp_path / "out.mp4")
  os.mkdir(folder)
  for path in (f"{folder}/00000007.png", f"{folder}/mine.txt", file, living):
    pathlib.Path(path).write_bytes(b"unfinished")
  with pytest.warns(UserWarning, match="out.mp4.*: removed, a run that was killed had left it"):
    write(tmp_path / "out.mp4", grey_levels(1))
  write(tmp_path / "out", grey_levels(1))
  there = {str(tmp_path / name) for name in ("out", "out.mp4")}
  assert {str(path) for path in tmp_path.iterdir()} == there | {folder, living}
  assert os.listdir(folder) == ["mine.txt"]


def test_an_interrupt_does_not_wait_for_the_frames_in_line():
  class SlowSink:
    written = 0

    def write(self, image, time, duration):
      threading.Event().wait(0.1)
      self.written += 1

    def abort(self):
      self.aborted = True

  sink = SlowSink()
  writer = video.Writer(sink, "a.mp4", 48, 64, RATE)
  for image in grey_levels(3):
    writer.write(image)
  writer.abort()
  assert sink.aborted
  assert sink.written <= 1


def test_wrong_frames_are_refused(tmp_path):
  for wrong in (
    np.zeros((48, 62, 3), np.uint8),
    np.zeros((48, 64, 3), np.float32),
    np.zeros((48, 64), np.uint8),
  ):
    with (
      pytest.raises(ValueError, match="not a uint8 frame"),
      video.open_writer(str(tmp_path / "a.mp4"), 48, 64, RATE) as writer,
    ):
      writer.write(wrong)
  with pytest.raises(ValueError, match="at least one frame"):
    write(tmp_path / "a.mp4", grey_levels(0))
  assert os.listdir(tmp_path) == []
