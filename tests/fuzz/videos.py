"""Damaged videos and pictures through reader and writer, and a long stream."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import zlib
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from tests.fuzz.mutate import mutate
from tests.fuzz.runner import DONE, Case, run_case
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import video

_RATE = 25
_FRAMES = 12
_OUTPUTS = ("out.mp4", "out.mkv", "out.mov", "out")


def samples(folder: pathlib.Path) -> None:
  """Writes one small file of every common container and codec that PyAV's FFmpeg encodes."""
  images = moving_waves(_FRAMES)
  tone = np.sin(np.arange(_FRAMES * 48_000 // _RATE) / 17)

  def add(name: str, codec: str, pix_fmt: str = "yuv420p", sound: str = "", **options) -> None:
    if codec in av.codecs_available and (not sound or sound in av.codecs_available):
      track = (sound, tone) if sound else None
      encode(folder / name, images, codec, pix_fmt, _RATE, sound=track, **options)

  add("h264_aac.mp4", "libx264", sound="aac")
  add("h264_fragments.mp4", "libx264", sound="aac", movflags="frag_keyframe+empty_moov", g="4")
  add("hevc.mp4", "libx265", **{"x265-params": "log-level=none"})
  add("prores_pcm.mov", "prores_ks", "yuv422p10le", "pcm_s16le")
  add("h264_opus.mkv", "libx264", sound="libopus")
  add("ffv1_flac.mkv", "ffv1", "yuv420p", "flac")
  add("vp9_opus.webm", "libvpx-vp9", sound="libopus")
  add("mpeg4_mp3.avi", "mpeg4", sound="libmp3lame")
  add("mpeg2_mp2.ts", "mpeg2video", sound="mp2")
  add("h264_aac.ts", "libx264", sound="aac")
  add("mpeg1_mp2.mpg", "mpeg1video", sound="mp2")
  add("flv1_mp3.flv", "flv", sound="")
  add("picture.gif", "gif", "rgb8")
  add("h264.h264", "libx264", container="h264")
  add("wmv2.wmv", "wmv2")
  for name, codec, pix_fmt in (
    ("picture.png", "png", "rgb24"),
    ("picture.jpg", "mjpeg", "yuvj444p"),
    ("picture.webp", "libwebp", "yuv420p"),
    ("picture.bmp", "bmp", "bgr24"),
    ("picture.tiff", "tiff", "rgb24"),
  ):
    if codec in av.codecs_available:
      _encode_picture(folder / name, images[0], codec, pix_fmt)


def _encode_picture(path: pathlib.Path, image: np.ndarray, codec: str, pix_fmt: str) -> None:
  encoder = av.CodecContext.create(codec, "w")
  encoder.height, encoder.width = image.shape[:2]
  encoder.pix_fmt, encoder.time_base = pix_fmt, Fraction(1, _RATE)
  frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
  frame.pts = 0
  path.write_bytes(b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode(None)])))


def restore(source: pathlib.Path, target: pathlib.Path) -> None:
  """What the commands do with a clip, with a network that changes nothing."""
  with (
    video.open_reader(str(source)) as reader,
    video.open_writer(
      str(target),
      reader.info.height,
      reader.info.width,
      reader.info.frame_rate,
      source=reader.info,
    ) as writer,
    contextlib.closing(video.prefetch(reader)) as frames,
  ):
    for frame in frames:
      writer.write(frame.image, frame.time, frame.duration, frame.name)


def damaged_videos(folder: pathlib.Path, count: int, seed: int) -> Iterator[Case]:
  """Cases of damaged files that are read and written again; each has a folder of its own."""
  made = folder / "samples"
  made.mkdir(parents=True)
  # In a process of its own, too: coders start threads, which a fork must not meet.
  outcome = run_case(Case("samples", work=lambda: samples(made)))
  assert outcome.kind == DONE, outcome.said
  sources = sorted(made.iterdir())
  for i in range(count):
    source = sources[i % len(sources)]
    rng = np.random.default_rng((seed, zlib.crc32(b"videos"), i))
    data, how = mutate(source.read_bytes(), rng)
    place = folder / str(i)
    path, target = place / source.name, place / _OUTPUTS[int(rng.integers(len(_OUTPUTS)))]

    def make(path: pathlib.Path = path, data: bytes = data) -> None:
      path.parent.mkdir()
      path.write_bytes(data)

    yield Case(
      f"videos {i}: {source.name} {how} to {target.name}",
      work=lambda path=path, target=target: restore(path, target),
      check=lambda refused, path=path, target=target: check_output(path, target, refused),
      before=make,
    )


def check_output(source: pathlib.Path, target: pathlib.Path, refused: bool) -> None:
  """Raises `AssertionError` unless the output is whole, or not there and nothing beside it."""
  names = set(os.listdir(target.parent)) - {source.name}
  if refused:
    assert not names, f"left behind: {names}"
    return
  assert names == {target.name}, names
  with video.open_reader(str(target)) as reader:
    count = sum(1 for _ in reader)
    assert count, "no frame in the output"
    assert reader.warning is None, reader.warning


def long_stream(folder: pathlib.Path, frames: int) -> Iterator[Case]:
  """A stream of many frames with sound: all arrive, at a memory that does not grow with them."""
  source, target = folder / "long.mkv", folder / "restored.mp4"

  def make() -> None:
    folder.mkdir(parents=True)
    images = moving_waves(50)
    images = np.broadcast_to(images, (frames // 50, *images.shape)).reshape(-1, *images.shape[1:])
    tone = np.sin(np.arange(len(images) * 48_000 // _RATE, dtype=np.float32) / 17)
    encode(source, images, sound=("aac", tone), preset="ultrafast")

  def work() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    restore(source, target)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 150, f"memory grew by {grown:.0f} MB"

  def check(refused: bool) -> None:
    assert not refused
    with av.open(str(target)) as got, av.open(str(source)) as given:
      for kind in ("video", "audio"):
        counts = [sum(1 for p in f.demux(**{kind: 0}) if p.size) for f in (got, given)]
        assert abs(counts[0] - counts[1]) <= (kind == "audio"), f"{kind}: {counts}"
        got.seek(0)
        given.seek(0)

  # Made in a process of its own: its memory is not to hide the other's.
  outcome = run_case(Case("stream", work=make))
  assert outcome.kind == DONE, outcome.said
  yield Case(f"stream: {frames} frames", work, check)
