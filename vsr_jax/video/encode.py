"""Encodes one video file with PyAV: H.264 pictures, and what else the source holds in step."""

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

# Ticks a second at least: fine enough for the times of a variable frame rate.
_MIN_TICKS = 90_000
# The most in a rate: ticks stay below 2^31 then.
_MAX_NUMERATOR = 1_000_000
_MOV_LIMIT = 2**31 - 1  # ticks from one packet to the next
_TIME_LIMIT = 2**32  # seconds after the first picture

_NTSC_RATES = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
_COARSE = Fraction(1, 10_000)  # seconds; a clock of such ticks is Matroska's, or FLV's
_SHORT = Fraction(1, 100)  # seconds by which a header may be rounded


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
  ):
    """Opens a video file for writing.

    Args:
      path: the file, under whatever name.
      suffix: one of `CONTAINERS`.
      height: pixels. Odd sizes are coded without chroma subsampling, which has no place for them.
      width: pixels.
      frame_rate: frames a second, nominal.
      quality: H.264's constant rate factor, 1 to 51; 0 is lossless RGB.
      source: where all but the pictures is taken from, and the pixel aspect, if there is one.

    Raises:
      OSError: the file cannot be written.

    Warns:
      UserWarning: the file cannot hold all that the source does.
    """
    self._path = path
    self._first_time: Fraction | None = None
    self._shown: tuple[int, int] | None = None  # the last picture's ticks, from and to
    self._durations: dict[int, int] = {}  # by when a picture begins that is not written yet
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
      duration: seconds for which it is shown; of use where no other frame follows. None: one frame
        at the nominal rate.

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
    """Gives up and closes the file, which is of no use then."""
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
    # No B-frames: mp4 counts durations by times of decoding, which Matroska's readers guess;
    # where the rate varies both come out wrong.
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
    """Seconds after the first picture in the file's ticks."""
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
  """Puts the times of a constant rate back on its grid, off which a coarse clock has moved them.

  Once a time is further off the grid than the clock rounds, the rate is not constant: from there on
  times are taken as they are.

  Attributes:
    rate: frames a second, nominal.
    ticks: how many a second the file's clock has; the grid is a whole number of them.
  """

  def __init__(self, rate: Fraction, tick: Fraction):
    """Takes the clip's rate, frames a second, and the tick of its clock in seconds (0: exact)."""
    if tick > _COARSE:  # the mean of rounded times is close to the rate that was meant, only
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
  """Makes every error of FFmpeg an `OSError`, which gets the file's name further up."""
  try:
    yield
  except OSError:
    raise
  except (av.error.FFmpegError, OverflowError) as e:
    reason = getattr(e, "strerror", None) or e
    raise OSError(errno.EINVAL, f"FFmpeg cannot write it ({reason})") from e


def _check(path: str, count: int, seconds: Fraction) -> None:
  """Raises `OSError` unless a file, read again, tells of all its pictures and shows the first."""
  reason = "no pictures"
  try:
    with open_container(path) as file:
      stream = file.streams.video[0]
      found = stream.frames or count  # Matroska does not tell
      duration = Fraction(file.duration or 0, 1_000_000)
      if found != count or duration < seconds - _SHORT:
        reason = f"{found} of {count} pictures, {float(duration):.3f} of {float(seconds):.3f} s"
      elif next(file.decode(stream), None):
        return
  except (av.error.FFmpegError, IndexError) as e:
    reason = getattr(e, "strerror", None) or reason
  raise OSError(errno.EIO, f"is not readable after writing ({reason})")
