"""Encodes one video file with PyAV: H.264 pictures, with the source's other tracks in step."""

from __future__ import annotations

import contextlib
import errno
import warnings
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from vsr_jax.video.containers import open_container
from vsr_jax.video.decode import VideoInfo
from vsr_jax.video.filters import scale_graph
from vsr_jax.video.tracks import Tracks

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}

# Ticks per second of the output's clock, at least: fine enough for a variable frame rate.
_MIN_TICKS = 90_000
# The largest numerator of a rate, so that the ticks per second stay below 2^31.
_MAX_NUMERATOR = 1_000_000
_MOV_LIMIT = 2**31 - 1  # ticks from one packet to the next
_TIME_LIMIT = 2**32  # seconds after the first picture

_NTSC_RATES = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
_COARSE = Fraction(1, 10_000)  # seconds; clocks with longer ticks are Matroska's and FLV's
_SHORT = Fraction(1, 100)  # seconds by which a header may be rounded


class VideoSink:
  """A video file while it is written, tagged BT.709 in limited range unless it is lossless RGB."""

  def __init__(
    self,
    path: str,
    suffix: str,
    height: int,
    width: int,
    frame_rate: Fraction,
    quality: int,
    source: VideoInfo | None,
  ):
    """Opens a video file for writing.

    Args:
      path: the file; its name need not have the suffix.
      suffix: one of `CONTAINERS`.
      height: pixels. Odd sizes are coded without chroma subsampling, which needs even ones.
      width: pixels.
      frame_rate: frames per second, nominal.
      quality: H.264's constant rate factor, 1 to 51; 0 is lossless RGB.
      source: the clip from which all but the pictures is taken, and the pixel aspect; or None.

    Raises:
      OSError: the file cannot be written.

    Warns:
      UserWarning: the file cannot hold all that the source does.
    """
    self._path = path
    self._first_time: Fraction | None = None
    self._shown: tuple[int, int] | None = None  # when the last picture begins and ends, in ticks
    self._durations: dict[int, int] = {}  # in ticks, by begin, of pictures not written yet
    self._count = 0
    self._graph: Graph | None = None
    self._tracks: Tracks | None = None
    self._container: av.container.OutputContainer | None = None
    fast_start = {"movflags": "+faststart"} if suffix != ".mkv" else {}
    try:
      with _as_os_error():
        if source and not source.is_folder:
          self._tracks = Tracks(source)
        self._pace = Pace(frame_rate, self._tracks.tick if self._tracks else Fraction(0))
        container = self._container = av.open(
          "file:" + path, "w", format=CONTAINERS[suffix], container_options=fast_start
        )
        self._add_pictures(container, height, width, quality, source)
        if self._tracks:
          self._tracks.add_to(container, self._stream)
        container.start_encoding()
    except BaseException:
      self.abort()
      raise
    if source and self._tracks and self._tracks.left_out:
      names = ", ".join(self._tracks.left_out)
      warnings.warn(f"{source.path}: not taken along into the {suffix}: {names}", stacklevel=1)

  def write(self, image: np.ndarray, time: Fraction, duration: Fraction | None = None) -> None:
    """Encodes a frame.

    Args:
      image: uint8 RGB [h w 3].
      time: seconds; the file's time 0 is the first frame's time.
      duration: seconds for which it is shown; used for the last frame only. None: one frame at the
        nominal rate.

    Raises:
      OSError: the disk is full, or the file cannot hold such a time.
    """
    if self._first_time is None:
      self._first_time = time
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    with _as_os_error():
      if self._graph:
        self._graph.push(frame)
        frame = self._graph.pull()
      ticks = self._ticks(time - self._first_time)
      if self._shown:
        last, _ = self._shown
        ticks = max(ticks, last + 1)
        if last in self._durations:  # else it is written already
          self._durations[last] = ticks - last
      end = time + (duration or 1 / self._pace.rate)
      end_ticks = max(self._ticks(end - self._first_time), ticks + 1)
      self._shown = ticks, end_ticks
      self._durations[ticks] = end_ticks - ticks
      frame.pts, frame.time_base = ticks, Fraction(1, self._pace.ticks)
      self._count += 1
      self._mux(self._stream.encode(frame))
      if self._tracks:
        self._tracks.write(self._first_time, time)

  def finish(self) -> None:
    """Completes the file.

    Raises:
      ValueError: no frame was written.
      OSError: the disk is full, or what was written cannot be read again.
    """
    if self._first_time is None or self._shown is None:
      raise ValueError("a video needs at least one frame")
    with _as_os_error():
      self._mux(self._stream.encode(None))
      seconds = Fraction(self._shown[1], self._pace.ticks)
      if self._tracks:
        self._tracks.finish(self._first_time, self._first_time + seconds)
        self._tracks.close()
      assert self._container is not None  # since __init__
      self._container.close()
    _check(self._path, self._count, seconds)

  def abort(self) -> None:
    """Closes the file without completing it."""
    if self._tracks:
      self._tracks.close()
    if self._container:
      with contextlib.suppress(OSError, ValueError, av.error.FFmpegError):
        self._container.close()

  def _add_pictures(
    self,
    container: av.container.OutputContainer,
    height: int,
    width: int,
    quality: int,
    source: VideoInfo | None,
  ) -> None:
    # No B-frames: mp4 derives durations from decoding times, and readers of Matroska guess these;
    # with B-frames both are wrong where the rate varies.
    options = {"crf": str(quality), "bf": "0"}
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
    self._stream = container.add_stream(name, rate=self._pace.rate, options=options)
    self._stream.width, self._stream.height = width, height
    self._stream.pix_fmt = pixel_format
    self._stream.codec_context.time_base = Fraction(1, self._pace.ticks)

  def _ticks(self, time: Fraction) -> int:
    """Converts seconds after the first picture to ticks of the file."""
    if abs(time) > _TIME_LIMIT:
      raise OSError(errno.EINVAL, f"cannot show a picture at {float(time):.3g} s")
    return round(self._pace.place(time) * self._pace.ticks)

  def _mux(self, packets: list[av.Packet]) -> None:
    assert self._container is not None  # since __init__
    for packet in packets:
      packet.duration = self._durations.pop(packet.pts)
      if packet.duration > _MOV_LIMIT and self._container.format.name != "matroska":
        seconds = float(packet.duration / self._pace.ticks)
        raise OSError(errno.EINVAL, f"cannot show a picture for {seconds:.0f} s; an .mkv can")
      self._container.mux(packet)


class Pace:
  """Moves times that a coarse clock has rounded back to the grid of a constant rate.

  Once a time is further off the grid than rounding explains, the rate is not constant: from there
  on times are kept as they are.

  Attributes:
    rate: frames per second, nominal.
    ticks: ticks per second of the file's clock; a frame at `rate` is a whole number of them.
  """

  def __init__(self, rate: Fraction, tick: Fraction):
    """Takes the clip's rate, frames per second, and the tick of its clock in seconds (0: exact)."""
    if tick > _COARSE:  # the mean of rounded times is only close to the real rate
      standard = min(*_NTSC_RATES, Fraction(max(1, round(rate))), key=lambda r: abs(r - rate))
      rate = standard if abs(standard - rate) <= standard / 2000 else rate
    if rate.numerator > _MAX_NUMERATOR:
      rate = min(rate.limit_denominator(1000), Fraction(1000))
    self.rate = rate
    # A multiple of the rate's numerator: the times of a constant rate stay exact.
    self.ticks = rate.numerator * -(-_MIN_TICKS // rate.numerator)
    self._tick = tick
    self._steady = tick * rate <= Fraction(1, 4)

  def place(self, time: Fraction) -> Fraction:
    """Maps seconds after the first frame, in the order shown, to the seconds that are written."""
    if self._steady:
      on_grid = round(time * self.rate) / self.rate
      if abs(on_grid - time) <= self._tick:
        return on_grid
      self._steady = False
    return time


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """A context in which errors of FFmpeg become `OSError`; the caller adds the file's name."""
  try:
    yield
  except OSError:
    raise
  except (av.error.FFmpegError, OverflowError) as e:
    reason = getattr(e, "strerror", None) or e
    raise OSError(errno.EINVAL, f"FFmpeg cannot write it ({reason})") from e


def _check(path: str, count: int, seconds: Fraction) -> None:
  """Raises `OSError` unless the written file states all pictures and the first can be decoded."""
  reason = "no pictures"
  try:
    with open_container(path) as file:
      stream = file.streams.video[0]
      found = stream.frames or count  # Matroska does not state it
      duration = Fraction(file.duration or 0, 1_000_000)
      if found != count or duration < seconds - _SHORT:
        reason = f"{found} of {count} pictures, {float(duration):.3f} of {float(seconds):.3f} s"
      elif next(file.decode(stream), None):
        return
  except (av.error.FFmpegError, IndexError) as e:
    reason = getattr(e, "strerror", None) or reason
  raise OSError(errno.EIO, f"is not readable after writing ({reason})")
