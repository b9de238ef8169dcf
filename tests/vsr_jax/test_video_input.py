"""What a file may hold beside an ordinary clip: long last pictures, fields, other files, pipes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pathlib
import shutil
import struct
import tempfile
import threading
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.vsr_jax.clips import encode, grey_levels, moving_waves, number_of
from vsr_jax import video, video_cli
from vsr_jax.errors import UserError
from vsr_jax.video import containers, filters


def read(path, *frame_range, **arguments) -> list[video.Frame]:
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with video.open_reader(str(path), *frame_range, **arguments) as reader:
      return list(reader)


def encode_held(
  path, count: int, last: Fraction, codec: str = "libx264", pix_fmt: str = "yuv420p", sound: int = 0
) -> None:
  """Writes `grey_levels` at 25 frames a second, the last one held, and seconds of silence."""
  with av.open(str(path), "w") as file:
    pictures = file.add_stream(codec, rate=25, options={"bf": "0"} if codec == "libx264" else {})
    pictures.width, pictures.height, pictures.pix_fmt = 64, 48, pix_fmt
    track = file.add_stream("aac", rate=48_000) if sound else None
    packets = []
    for image in [*grey_levels(count), None]:
      frame = None
      if image is not None:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
      packets += pictures.encode(frame)
    packets[-1].duration = round(last / packets[-1].time_base)
    file.mux(packets)
    for start in range(0, sound * 48_000, 1024):
      silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
      silence.sample_rate, silence.pts, silence.time_base = 48_000, start, Fraction(1, 48_000)
      file.mux(track.encode(silence))
    if track:
      file.mux(track.encode(None))


@pytest.mark.parametrize(
  ("name", "codec", "pix_fmt"),
  [
    ("a.mp4", "libx264", "yuv420p"),
    ("a.mov", "libx264", "yuv420p"),
    ("a.mkv", "libx264", "yuv420p"),
    ("a.gif", "gif", "gray"),
  ],
)
def test_the_last_picture_stands_as_long_as_its_packet_says(tmp_path, name, codec, pix_fmt):
  encode_held(tmp_path / name, 5, Fraction(3), codec, pix_fmt)
  frames = read(tmp_path / name)
  assert [f.duration for f in frames] == [*[Fraction(1, 25)] * 4, 3]
  assert [f.duration for f in read(tmp_path / name, 1, 3)] == [Fraction(1, 25)] * 2


def test_a_picture_stands_until_the_next_one(tmp_path):
  times = [Fraction(n, 30) for n in (0, 1, 3, 4, 15, 16, 40)]
  encode(tmp_path / "a.mp4", grey_levels(7), times=times)
  frames = read(tmp_path / "a.mp4")
  assert [f.time + f.duration for f in frames[:-1]] == times[1:]
  (frame,) = read(tmp_path / "a.mp4", 3, 4)
  assert frame.duration == Fraction(11, 30)  # the next one is not wanted, but tells
  assert read(tmp_path / "a.mp4", 6)[0].duration > 0


def test_what_is_wanted_ends_before_the_damage_without_a_word(tmp_path):
  encode(tmp_path / "a.mkv", moving_waves(30), g="10")
  data = (tmp_path / "a.mkv").read_bytes()
  (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
  with pytest.warns(UserWarning, match="cut short"), video.open_reader(f"{tmp_path}/a.mkv") as all_:
    count = len(list(all_))
  assert len(read(tmp_path / "a.mkv", 0, count)) == count


@pytest.mark.parametrize("start", [0, 100])
def test_pictures_of_two_recordings_follow_each_other(tmp_path, start):
  for name, first in [("a.ts", 0), ("b.ts", start)]:
    times = [first + Fraction(n, 25) for n in range(10)]
    encode(tmp_path / name, grey_levels(10), times=times)
  data = [(tmp_path / name).read_bytes() for name in ("a.ts", "b.ts")]
  (tmp_path / "two.ts").write_bytes(b"".join(data))
  frames = read(tmp_path / "two.ts")
  assert [number_of(f.image) for f in frames] == [*range(10), *range(10)]
  assert [f.time for f in frames] == [Fraction(n, 25) for n in range(20)]


@pytest.mark.parametrize("start", [Fraction(1, 2), 5])
def test_matroska_that_does_not_begin_at_0_is_whole(tmp_path, start):
  times = [start + Fraction(n, 25) for n in range(20)]
  encode(tmp_path / "a.mkv", grey_levels(20), times=times)
  assert len(read(tmp_path / "a.mkv")) == 20
  info = video.probe(str(tmp_path / "a.mkv"))
  assert (info.start_time, info.frame_count) == (start, 20)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
@pytest.mark.parametrize("count", [1, 5])
def test_few_pictures_under_long_sound_are_whole(tmp_path, name, count):
  encode_held(tmp_path / name, count, Fraction(1, 25), sound=6)
  assert len(read(tmp_path / name)) == count
  assert video.probe(str(tmp_path / name)).frame_count in (count, None)


def test_the_default_one_of_several_picture_streams_is_taken(tmp_path):
  with av.open(str(tmp_path / "a.mkv"), "w") as file:
    for size, disposition in [(32, 0), (64, Disposition.default.value)]:
      stream = file.add_stream("ffv1", rate=25)
      stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
      stream.disposition = disposition
    for stream in file.streams:
      image = np.zeros((stream.height, stream.width, 3), np.uint8)
      for packet in [*stream.encode(av.VideoFrame.from_ndarray(image)), *stream.encode(None)]:
        file.mux(packet)
  info = video.probe(str(tmp_path / "a.mkv"))
  assert (info.width, info.stream) == (64, 1)
  assert "stream 1 is taken" in info.notes[0]


def make_interlaced(path, codec: str = "mpeg2video") -> None:
  """A bright bar that moves 2 pixels a field, 16 frames of two fields, the lower one first."""
  fields = np.full((32, 96, 128, 3), 40, np.uint8)
  for i, field in enumerate(fields):
    field[:, 10 + 2 * i : 40 + 2 * i] = 200
  woven = fields[1::2].copy()
  woven[:, 1::2] = fields[::2, 1::2]
  encode(path, woven, codec, flags="+ildct+ilme", b="4000000")


def combs(image: np.ndarray) -> float:
  """How much rows differ from the mean of their neighbours, in levels."""
  rows = image[..., 1].astype(float)
  return np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean()


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.avi"])
def test_fields_become_whole_pictures(tmp_path, name):
  make_interlaced(tmp_path / name)
  combed, whole = read(tmp_path / name), read(tmp_path / name, deinterlace=True)
  assert len(whole) == 16
  assert [(f.time, f.duration) for f in whole] == [(f.time, f.duration) for f in combed]
  for before, after in list(zip(combed, whole, strict=True))[1:-1]:
    assert combs(before.image) > 2
    assert combs(after.image) < combs(before.image) / 4
  # The picture of the first field's moment.
  edge = [int(np.argmax(f.image[48, :, 1] > 120)) for f in whole]
  assert np.abs(np.array(edge) - (10 + 4 * np.arange(16)))[1:-1].max() <= 1


def test_pictures_that_are_not_marked_are_deinterlaced_on_demand(tmp_path):
  make_interlaced(tmp_path / "a.mkv", "ffv1")
  (combed, whole) = (read(tmp_path / "a.mkv", 5, 6, deinterlace=d)[0] for d in (False, True))
  assert combs(whole.image) < combs(combed.image) / 4


def open_arguments(path) -> argparse.Namespace:
  """What `video_cli.open_input` takes."""
  return argparse.Namespace(
    input=path,
    output="out.mp4",
    frames=(0, None),
    deinterlace=False,
    quality=18,
    max_pixels=2**26,
  )


def test_what_the_frames_will_lack_is_told_before_work(tmp_path, capsys):
  make_interlaced(tmp_path / "fields.ts")
  encode(tmp_path / "plain.mp4", grey_levels(2))
  for name, transfer in [("pq.mkv", "smpte2084"), ("hlg.mkv", "arib-std-b67")]:
    encode(tmp_path / name, grey_levels(2), color_trc=transfer)
  for name, said in [("fields.ts", "--deinterlace"), ("pq.mkv", "PQ"), ("hlg.mkv", "HLG")]:
    (note,) = video.probe(str(tmp_path / name)).notes
    assert name in note
    assert said in note
    assert "\n" not in note
  assert video.probe(str(tmp_path / "plain.mp4")).notes == ()
  with video.open_reader(str(tmp_path / "fields.ts"), deinterlace=True) as reader:
    assert reader.info.notes == ()
  args = open_arguments(f"{tmp_path}/pq.mkv")
  with video_cli.readable(args.input, None) as args.copies:
    for tell in (True, False):
      video_cli.open_input(args, tell=tell).close()
  assert capsys.readouterr().out.count("note: ") == 1
  args.quality = 0
  video_cli.open_input(args).close()
  assert "note: out.mp4: lossless RGB, which few players show" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.ts\n#EXT-X-ENDLIST\n"),
    ("a.mp4", "ffconcat version 1.0\nfile clip.ts\n"),
    ("a.txt", "ffconcat version 1.0\nfile clip.ts\n"),
  ],
)
def test_lists_of_other_files_are_refused(tmp_path, name, text):
  encode(tmp_path / "clip.ts", grey_levels(3))
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=f"{name}: .*playlists.*; give the video file itself"):
    video.probe(str(tmp_path / name))


def test_a_name_is_never_a_pattern_of_names(tmp_path):
  for name in ("0.png", "1.png", "%d.png"):
    with av.open(str(tmp_path / "a"), "w", format="image2pipe") as file:
      stream = file.add_stream("png", rate=25)
      stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
      file.mux(stream.encode(av.VideoFrame.from_ndarray(grey_levels(1)[0], format="rgb24")))
    os.rename(tmp_path / "a", tmp_path / name)
  assert containers.open_container(str(tmp_path / "0.png")).format.name == "png_pipe"
  with pytest.raises(UserError, match="%d.png"):
    containers.open_container(str(tmp_path / "%d.png"))


def refer_to(data: bytes, other: str) -> bytes:
  """An mp4 without its media, whose data reference names another file."""
  path = f"/disk/{other}\0".encode()
  path += bytes(len(path) % 2)
  alias = bytes(10 + 28 + 12 + 64 + 16) + struct.pack(">HH", 1, 1) + bytes(16)
  alias += struct.pack(">HH", 2, len(path)) + path + struct.pack(">HH", 0xFFFF, 0)
  entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
  new = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
  at = data.index(b"dref") - 4
  (old,) = struct.unpack(">I", data[at : at + 4])
  out = bytearray(data[:at] + new + data[at + old :])
  for name in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
    box = data.rindex(name, 0, at) - 4
    (size,) = struct.unpack_from(">I", out, box)
    struct.pack_into(">I", out, box, size + len(new) - old)
  media = data.index(b"mdat") + 4
  end = data.index(b"moov") - 4
  out[media:end] = bytes(end - media)
  return bytes(out)


def test_a_movie_whose_media_are_in_another_file_is_refused(tmp_path):
  encode(tmp_path / "other.mp4", grey_levels(3))
  (tmp_path / "a.mp4").write_bytes(refer_to((tmp_path / "other.mp4").read_bytes(), "other.mp4"))
  with av.open(str(tmp_path / "a.mp4"), options={"enable_drefs": "1"}) as file:
    assert len(list(file.decode(video=0))) == 3  # so it does refer to the other file
  with pytest.raises(UserError, match="a.mp4"):
    video.probe(str(tmp_path / "a.mp4"))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(UserError, match="pipe: is not a regular file"):
    containers.open_container(str(tmp_path / "pipe"))
  with pytest.raises(UserError, match="/dev/zero: is a device"):
    video.probe("/dev/zero")


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> pathlib.Path:
  """An empty folder for temporary files."""
  folder = tmp_path / "temporary"
  folder.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(folder))
  return folder


def fill(pipe, data: bytes) -> None:
  """Writes into a named pipe from a thread, once somebody reads it."""

  def write():
    with contextlib.suppress(BrokenPipeError):  # whoever read it has seen enough
      pathlib.Path(pipe).write_bytes(data)

  threading.Thread(target=write, daemon=True).start()


def test_a_named_pipe_is_read(tmp_path, temporary):
  encode(tmp_path / "a.mp4", grey_levels(8), sound=("aac", np.zeros(48_000)))
  os.mkfifo(tmp_path / "pipe")
  fill(tmp_path / "pipe", (tmp_path / "a.mp4").read_bytes())
  with video.open_reader(str(tmp_path / "pipe")) as reader:
    info = reader.info
    with video.open_writer(f"{tmp_path}/b.mp4", 48, 64, Fraction(25), source=info) as writer:
      for frame in reader:
        writer.write(frame.image, frame.time, frame.duration)
  assert [number_of(f.image) for f in read(tmp_path / "b.mp4")] == list(range(8))
  assert video.probe(str(tmp_path / "b.mp4")).has_audio
  assert info.path == str(tmp_path / "pipe")
  assert os.listdir(temporary) == []


def test_a_pipe_is_read_twice_by_its_copy(tmp_path, temporary, capsys):
  encode(tmp_path / "a.mkv", grey_levels(8))
  os.mkfifo(tmp_path / "pipe")
  fill(tmp_path / "pipe", (tmp_path / "a.mkv").read_bytes())
  args = open_arguments(f"{tmp_path}/pipe")
  with video_cli.readable(args.input, None) as args.copies:
    for _ in range(2):
      with video_cli.open_input(args) as reader:
        assert len(list(reader)) == 8
    assert len(os.listdir(temporary)) == 1
  assert os.listdir(temporary) == []
  assert capsys.readouterr().out.count("copied to a temporary file") == 1


def test_standard_input_is_read(tmp_path, temporary):
  encode(tmp_path / "a.mp4", grey_levels(8))
  kept, (out, into) = os.dup(0), os.pipe()
  try:
    os.dup2(out, 0)
    fill(f"/dev/fd/{into}", (tmp_path / "a.mp4").read_bytes())
    os.set_blocking(out, True)
    threading.Timer(0.2, os.close, (into,)).start()
    assert len(read("-")) == 8
  finally:
    os.dup2(kept, 0)
    os.close(kept)
    os.close(out)
  assert os.listdir(temporary) == []


def test_pipes_that_give_no_clip_are_told_in_one_line(tmp_path, temporary, monkeypatch):
  os.mkfifo(tmp_path / "pipe")
  for data, reason in [
    (b"", "is empty"),
    (b"no film " * 99, "not a readable video"),
    (b"ffconcat version 1.0\nfile clip.ts\n", "is of a kind that is not read"),
  ]:
    fill(tmp_path / "pipe", data)
    with pytest.raises(UserError, match=f"{tmp_path}/pipe: {reason}"):
      video.probe(str(tmp_path / "pipe"))

  def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(shutil, "copyfileobj", full)
  fill(tmp_path / "pipe", b"film")
  with pytest.raises(UserError, match=r"pipe: .*No space left on device.*; free some space"):
    video.probe(str(tmp_path / "pipe"))
  monkeypatch.setattr("sys.stdin", None)
  with pytest.raises(UserError, match="-: standard input is closed"):
    video.probe("-")
  assert os.listdir(temporary) == []


def test_nothing_is_written_to_standard_output():
  with pytest.raises(UserError, match="-: frames are not written to standard output; name"):
    video.check_output("-")


@pytest.mark.parametrize("deinterlace", [False, True])
def test_what_the_filters_do_not_take_is_told_in_one_line(tmp_path, monkeypatch, deinterlace):
  encode(tmp_path / "a.mp4", grey_levels(3))

  def refuse(*args):
    raise av.error.ArgumentError(22, "Invalid argument")

  name = "_bwdif_graph" if deinterlace else "scale_graph"
  monkeypatch.setattr(filters, name, refuse)
  with pytest.raises(UserError, match="a.mp4: its pictures cannot be converted .Invalid argument"):
    read(tmp_path / "a.mp4", deinterlace=deinterlace)
