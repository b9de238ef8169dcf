"""Encodes one video file with PyAV: H.264 pictures, and the source's sound in step with them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from vsr_jax.video_decode import VideoInfo
from vsr_jax.video_filters import scale_graph
from vsr_jax.video_open import open_container

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}

# Ticks a second at least: fine enough for the times of a variable frame rate.
_MIN_TICKS = 90_000
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def open_video(
  path: str,
  suffix: str,
  height: int,
  width: int,
  frame_rate: Fraction,
  quality: int,
  source: VideoInfo | None,
) -> VideoSink:
  """Opens a video file for writing.

  Args:
    path: the file, under whatever name.
    suffix: one of `CONTAINERS`.
    height: pixels. Odd sizes are coded without chroma subsampling, which has no place for them.
    width: pixels.
    frame_rate: frames a second, nominal.
    quality: H.264's constant rate factor, 1 to 51; 0 is lossless RGB.
    source: where sound and pixel aspect are taken from, if there is one.

  Returns:
    The file. Its sound is copied where the container takes it as it is, and else coded as AAC.

  Raises:
    OSError: the file cannot be written.
  """
  settings = (path, suffix, height, width, frame_rate, quality, source)
  try:
    return VideoSink(*settings, copy_sound=True)
  except (ValueError, av.error.FFmpegError):  # if it is not about the sound it comes again
    return VideoSink(*settings, copy_sound=False)


class VideoSink:
  """A video file while it is written; its colours are BT.709 in limited range, and say so."""

  def __init__(
    self,
    path: str,
    suffix: str,
    height: int,
    width: int,
    frame_rate: Fraction,
    quality: int,
    source: VideoInfo | None,
    copy_sound: bool,
  ):
    self._frame_duration = 1 / frame_rate
    # A multiple of the rate's numerator: the times of a constant rate stay exact.
    self._ticks = frame_rate.numerator * -(-_MIN_TICKS // frame_rate.numerator)
    self._first_time: Fraction | None = None
    self._last_ticks = -1
    self._graph = self._sound = None
    fast_start = {"movflags": "+faststart"} if suffix != ".mkv" else {}
    self._container = av.open(
      "file:" + path, "w", format=CONTAINERS[suffix], container_options=fast_start
    )
    try:
      self._add_pictures(height, width, frame_rate, quality, source)
      if source and source.has_audio:
        self._sound = Sound(source, self._container, copy_sound)
      self._container.start_encoding()
    except BaseException:
      self.abort()
      raise

  def _add_pictures(
    self, height: int, width: int, frame_rate: Fraction, quality: int, source: VideoInfo | None
  ) -> None:
    options = {"crf": str(quality)}
    if source:
      options["aspect"] = f"{source.pixel_aspect.numerator}/{source.pixel_aspect.denominator}"
    if quality:
      name, pixel_format = "libx264", "yuv444p" if height % 2 or width % 2 else "yuv420p"
      tags = ("colorspace", "color_primaries", "color_trc")
      options |= dict.fromkeys(tags, "bt709") | {"color_range": "tv"}
      colors = "in_range=full:out_color_matrix=bt709:out_range=limited"
      self._graph = scale_graph(width, height, "rgb24", pixel_format, colors)
    else:
      name, pixel_format = "libx264rgb", "rgb24"
    self._stream = self._container.add_stream(name, rate=frame_rate, options=options)
    self._stream.width, self._stream.height = width, height
    self._stream.pix_fmt = pixel_format
    self._stream.codec_context.time_base = Fraction(1, self._ticks)

  def write(self, image: np.ndarray, time: Fraction, duration: Fraction | None) -> None:
    """Encodes a frame, uint8 RGB [h w 3]; the file's time 0 is the first frame's time."""
    if self._first_time is None:
      self._first_time = time
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    if self._graph:
      self._graph.push(frame)
      frame = self._graph.pull()
    ticks = max(round((time - self._first_time) * self._ticks), self._last_ticks + 1)
    frame.pts, frame.time_base = ticks, Fraction(1, self._ticks)
    self._last_ticks = ticks
    self._last_duration = self._frame_duration if duration is None else duration
    self._container.mux(self._stream.encode(frame))
    if self._sound:
      self._sound.write(self._first_time, time)

  def finish(self) -> None:
    """Completes the file.

    Raises:
      ValueError: no frame was written.
    """
    if self._first_time is None:
      raise ValueError("a video needs at least one frame")
    self._container.mux(self._stream.encode(None))
    if self._sound:
      end = self._first_time + Fraction(self._last_ticks, self._ticks) + self._last_duration
      self._sound.write(self._first_time, end)
      self._sound.finish()
      self._sound.close()
    self._container.close()

  def abort(self) -> None:
    """Gives up and closes the file, which is of no use then."""
    if self._sound:
      self._sound.close()
    with contextlib.suppress(OSError, ValueError, av.error.FFmpegError):
      self._container.close()


class Sound:
  """The first sound track of a clip on its way into another file, cut at whole packets."""

  def __init__(self, source: VideoInfo, target: av.container.OutputContainer, copy: bool):
    """Adds the track.

    Args:
      source: the clip; it has sound.
      target: the file.
      copy: copy the packets as they are, otherwise code them as AAC.

    Raises:
      ValueError: the target does not take the codec.
    """
    self._path = source.path
    self._start = source.start_time
    self._target = target
    self._encodes = not copy
    self._input = open_container(source.file)
    stream = next(s for s in self._input.streams.audio if s.codec_context)
    if copy and target.format.name == "mp4" and stream.codec_context.name.startswith("pcm_"):
      raise ValueError("PCM in mp4: few players take it, nor does FFmpeg from every source")
    if copy:
      self._output = target.add_stream_from_template(stream)
      items = self._input.demux(stream)
    else:
      rate = stream.codec_context.sample_rate
      layout = _AAC_LAYOUTS.get(stream.codec_context.layout.nb_channels, "stereo")
      self._output = target.add_stream("aac", rate=rate if rate in _AAC_RATES else 48_000)
      self._output.codec_context.layout = layout
      items = self._input.decode(stream)
    self._items = _until_damaged(items)
    self._next = next(self._items, None)
    self._last_ticks: int | None = None

  def write(self, first: Fraction, end: Fraction) -> None:
    """Writes on up to a time.

    Args:
      first: the time of the first picture written, in seconds after the source's first picture.
      end: what begins at this time, counted likewise, or later is left for the next call.

    Warns:
      UserWarning: the sound is damaged; what follows is left out, for the pictures' sake.
    """
    while self._next is not None:
      item = self._next
      tick = Fraction(item.time_base.numerator, item.time_base.denominator)
      time = item.pts * tick - self._start
      if time >= end:
        return
      # The packet that ends just here comes along: decoding the next one may need it.
      if time + _duration(item, tick) >= first:
        try:
          self._write_item(item, round((self._start + first) / tick))
        except OSError:  # a full disk; that the pictures would not survive either
          raise
        except (ValueError, av.error.FFmpegError):
          warnings.warn(f"{self._path}: its sound is damaged at {float(time):.1f} s", stacklevel=1)
          self._items = iter(())
      self._next = next(self._items, None)

  def finish(self) -> None:
    """Writes what the encoder holds, if there is one."""
    if self._encodes and self._last_ticks is not None:
      self._target.mux(self._output.encode(None))

  def close(self) -> None:
    """Closes the source."""
    self._input.close()

  def _write_item(self, item: av.Packet | av.AudioFrame, shift: int) -> None:
    ticks = item.pts - shift
    if self._last_ticks is not None and ticks <= self._last_ticks:
      return  # out of order in a damaged file; muxers refuse it
    self._last_ticks = ticks
    item.pts = ticks
    if self._encodes:
      self._target.mux(self._output.encode(item))
    else:
      item.dts = ticks
      item.stream = self._output
      self._target.mux(item)


def _until_damaged(
  items: Iterator[av.Packet | av.AudioFrame],
) -> Iterator[av.Packet | av.AudioFrame]:
  """Passes on what has a time (PyAV's closing packet has none) until the file cannot be read."""
  with contextlib.suppress(av.error.FFmpegError):
    for item in items:
      if item.pts is not None:
        yield item


def _duration(item: av.Packet | av.AudioFrame, tick: Fraction) -> Fraction:
  if isinstance(item, av.AudioFrame):
    return Fraction(item.samples, item.sample_rate)
  return (item.duration or 0) * tick
