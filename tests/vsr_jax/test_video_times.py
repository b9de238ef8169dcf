"""When a written clip's pictures and sound begin and end, and what no file can hold."""

from __future__ import annotations

import errno
import warnings
from fractions import Fraction

import pytest

from tests.vsr_jax.clips import encode, grey_levels
from tests.vsr_jax.test_video_output import RATE, VIDEOS, read, restore, write
from tests.vsr_jax.test_video_tracks import make, samples, seconds
from vsr_jax import video
from vsr_jax.errors import UserError
from vsr_jax.video import encode as encoding


@pytest.mark.parametrize("name", VIDEOS)
def test_the_last_picture_lasts_as_long_as_it_did(tmp_path, name):
  times = [Fraction(n, 25) for n in (0, 1, 2, 7, 8)]
  with video.open_writer(str(tmp_path / name), 48, 64, Fraction(25)) as writer:
    for image, time in zip(grey_levels(5), times, strict=True):
      writer.write(image, time, Fraction(3))
  for _ in range(2):
    last = read(tmp_path / name)[-1]
    assert float(last.time) == pytest.approx(8 / 25, abs=0.001)
    assert float(last.duration) == pytest.approx(3, abs=0.001)
    assert seconds(tmp_path / name) == pytest.approx(8 / 25 + 3, abs=0.001)
    (tmp_path / "out").mkdir(exist_ok=True)
    with video.open_reader(str(tmp_path / name)) as reader:
      info = reader.info
      with video.open_writer(str(tmp_path / "out" / name), 48, 64, info.frame_rate) as writer:
        for frame in reader:
          writer.write(frame.image, frame.time, frame.duration)
    (tmp_path / "out" / name).replace(tmp_path / name)


def test_sound_goes_on_to_the_end_of_the_last_picture(tmp_path):
  make(tmp_path / "a.mkv")
  info = video.probe(str(tmp_path / "a.mkv"))
  with video.open_writer(str(tmp_path / "b.mp4"), 48, 64, info.frame_rate, source=info) as writer:
    for n, image in enumerate(grey_levels(3)):
      writer.write(image, Fraction(n, 25), Fraction(19, 10))
  assert samples(tmp_path / "b.mp4") == pytest.approx(48_000 * (1.9 + 0.08), abs=2048)


@pytest.mark.parametrize("rate", [Fraction(24_000, 1001), Fraction(30_000, 1001), Fraction(60)])
def test_a_constant_rate_loses_the_jitter_of_a_coarse_clock(tmp_path, rate):
  encode(tmp_path / "a.mkv", grey_levels(40), rate=rate, bf="0")
  assert any(frame.time != frame.index / rate for frame in read(tmp_path / "a.mkv"))
  restore(tmp_path / "a.mkv", tmp_path / "b.mp4")
  assert video.probe(str(tmp_path / "b.mp4")).frame_rate == rate
  assert [frame.time for frame in read(tmp_path / "b.mp4")] == [n / rate for n in range(40)]


def test_a_variable_rate_does_not_become_constant(tmp_path):
  times = [Fraction(n, 1000) for n in (0, 45, 80, 123, 160, 201, 251, 280)]
  write(tmp_path / "a.mkv", grey_levels(8), times)
  restore(tmp_path / "a.mkv", tmp_path / "b.mp4")
  again = [frame.time for frame in read(tmp_path / "b.mp4")]
  assert [round(time * 1000) for time in again] == [round(time * 1000) for time in times]


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("with_sound", [False, True])
def test_times_that_no_file_holds_are_told_in_one_line(tmp_path, name, with_sound):
  make(tmp_path / "in.ts")
  source = video.probe(str(tmp_path / "in.ts")) if with_sound else None
  for gap in (2**40, 2**70):
    times = [Fraction(n * gap) for n in range(3)]
    with warnings.catch_warnings():
      warnings.simplefilter("error")  # not a word about the sound
      with pytest.raises(OSError, match="cannot show a picture") as error:
        write(tmp_path / name, grey_levels(3), times, source=source)
    assert (error.value.errno, error.value.filename) == (errno.EINVAL, str(tmp_path / name))
  assert [path.name for path in tmp_path.iterdir()] == ["in.ts"]


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("rate", [Fraction(1, 10**6), Fraction(2**31 - 1, 2**31 - 2), 10**9])
def test_absurd_rates_give_a_whole_file_or_an_error(tmp_path, name, rate):
  times = [Fraction(n, 25) for n in range(3)]
  with video.open_writer(str(tmp_path / name), 48, 64, Fraction(rate)) as writer:
    for image, time in zip(grey_levels(3), times, strict=True):
      writer.write(image, time, Fraction(1, 25))
  assert [float(f.time) for f in read(tmp_path / name)] == pytest.approx([0, 0.04, 0.08], abs=0.001)


def test_what_cannot_be_read_again_is_no_result(tmp_path, monkeypatch):
  write(tmp_path / "a.mp4", grey_levels(5))
  whole = (tmp_path / "a.mp4").read_bytes()

  def damaged(path, count, length):
    with open(path, "r+b") as file:
      file.truncate(200)
    check(path, count, length)

  check = encoding._check
  monkeypatch.setattr(encoding, "_check", damaged)
  with pytest.raises(OSError, match="not readable after writing") as error:
    write(tmp_path / "a.mp4", grey_levels(9))
  assert error.value.filename == str(tmp_path / "a.mp4")
  assert (tmp_path / "a.mp4").read_bytes() == whole
  for count, length in ((6, 0.1), (5, 9.0)):
    with pytest.raises(OSError, match="5 of"):
      check(str(tmp_path / "a.mp4"), count, Fraction(length))


def test_a_lost_source_is_told(tmp_path):
  make(tmp_path / "a.ts")
  info = video.probe(str(tmp_path / "a.ts"))
  (tmp_path / "a.ts").unlink()
  with pytest.raises(UserError, match=r"a.ts: cannot be read a second time"):
    write(tmp_path / "b.mp4", grey_levels(2), rate=RATE, source=info)
