"""Sound tracks on their way from one file into another, as they are or coded anew as AAC."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

from vsr_jax.video.decode import VideoInfo

# Seconds on the clip's own clock, its duration in seconds, and what is to be written then.
Item = tuple[Fraction, Fraction, av.Packet | av.AudioFrame]

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

# Packets to keep for a decoder that cannot begin at any of them: TrueHD's are at most 128 apart.
_LEAD = 256


def as_fraction(value: Any) -> Fraction:
  """A PyAV rational as a Fraction."""
  return Fraction(value.numerator, value.denominator)


class SampleClock:
  """The times of a track's packets or frames, counted by samples where the container agrees.

  Containers round times to their own ticks, to milliseconds in Matroska, where TrueHD's packets of
  0.83 ms share one; the coder's own count of samples does not. Some state no times of their own
  for most packets, such as RealMedia; where times repeat or jump back the count goes on.

  Attributes:
    next: seconds, where what comes next would begin without a gap; None before the first.
    fault: what was wrong with the time placed last, a few words; None if nothing was.
  """

  def __init__(self):
    self._stated: Fraction | None = None  # the time by the container of the packet before
    self._last: Fraction | None = None
    self._shift = self._former_shift = Fraction(0)  # from the container's times to ours
    self.next: Fraction | None = None
    self.fault: str | None = None

  def place(self, time: Fraction | None, duration: Fraction, tick: Fraction) -> Fraction | None:
    """Tells when a packet begins.

    Args:
      time: what the container says, in seconds; None where it says nothing.
      duration: seconds, by the number of samples.
      tick: the container's clock's, in seconds.

    Returns:
      Seconds, later than all before; None for a packet that is to be left out: by the container
      another has its time, as where packets were stored twice.
    """
    self.fault = None
    stated, self._stated = self._stated, self._stated if time is None else time
    if self.next is None:
      placed = time or Fraction(0)
    elif time is None or time == stated:
      placed = self.next
    else:
      if abs(time + self._former_shift - self.next) <= max(tick, duration):
        self._shift = self._former_shift  # a damaged time is over
      placed = time + self._shift
      if abs(placed - self.next) <= tick:
        placed = self.next
      elif placed <= self._last:
        if stated is not None and time > stated:
          self.fault = "holds more than its times allow; some is left out"
          return None
        self.fault = "has times that jump back; it goes on without a gap"
        placed = self.next
        self._former_shift, self._shift = self._shift, placed - time
    self._last, self.next = placed, placed + duration
    return placed


class SoundTrack:
  """One sound track while it is written, cut at whole packets."""

  def __init__(
    self,
    source: VideoInfo,
    stream: av.AudioStream,
    target: av.container.OutputContainer,
    copy: bool,
  ):
    """Adds the track to a file whose header is not written yet.

    Args:
      source: the clip.
      stream: its track, which has a sample rate and channels.
      target: the file.
      copy: copy the packets as they are, which the file takes; otherwise code them as AAC.
    """
    self._path, self._start = source.path, source.start_time
    self._stream, self._target, self._copies = stream, target, copy
    context = stream.codec_context
    if copy:
      self.output = target.add_stream_from_template(stream)
    else:
      rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48_000
      self.output = target.add_stream("aac", rate=rate)
      self.output.codec_context.layout = _AAC_LAYOUTS.get(context.layout.nb_channels, "stereo")
    self._rate = context.sample_rate
    self._tick = as_fraction(stream.time_base)
    self._skipped = _skipped(stream) if copy else Fraction(0)
    self._clock = SampleClock()
    self._lead: collections.deque = collections.deque(maxlen=_LEAD)
    self._last_ticks: int | None = None
    self._damaged = False
    self._kind: tuple[str, str, int] | None = None  # what the frames are that are coded now
    self._resampler: av.AudioResampler  # for those

  def items(self, packet: av.Packet) -> Iterator[Item]:
    """Yields what a packet of the track, or the empty last one, gives to `write`.

    Yields:
      The packet or, to be coded, its frames.

    Warns:
      UserWarning: the packet is damaged, or its time is wrong.
    """
    if self._copies:
      items = [(packet, self._duration(packet))] if packet.size else []
    else:
      items = [(f, Fraction(f.samples, f.sample_rate)) for f in self._decode(packet)]
    for item, duration in items:
      # PyAV leaves the time base out of a decoder's last frames; it is the stream's in all.
      time = None if item.pts is None else item.pts * self._tick
      time = self._clock.place(time, duration, self._tick)
      if self._clock.fault:
        self._warn(self._clock.next or Fraction(0), self._clock.fault)
      if time is not None:
        yield time, duration, item

  def write(self, item: Item, first: Fraction) -> None:
    """Writes a packet or frame, unless it is over before the pictures begin.

    Args:
      item: one of `items`.
      first: when the pictures begin, on the same clock.

    Warns:
      UserWarning: the packet is damaged, the file does not take it.

    Raises:
      OSError: the disk is full, or the file cannot be written otherwise.
    """
    time, duration, data = item
    if not self._copies or data.is_keyframe:
      self._lead.clear()
    self._lead.append(item)
    # The packet that ends just here comes along: decoding the next one may need it. So do those
    # that players leave out by the header, who would leave out later ones in their place.
    if time + duration < first - self._tick - self._skipped:
      return
    while self._lead:
      self._mux(self._lead.popleft(), first)

  def finish(self) -> None:
    """Writes what the encoder holds, if there is one."""
    if not self._copies and self._last_ticks is not None:
      for frame in (*self._resampled(None), None):
        self._target.mux(self.output.encode(frame))

  def _mux(self, item: Item, first: Fraction) -> None:
    time, duration, data = item
    ticks = round((time - first) * self._rate)
    if self._last_ticks is not None:
      ticks = max(ticks, self._last_ticks + 1)  # not even rounding may halt the clock
    self._last_ticks = ticks
    data.time_base, data.pts = Fraction(1, self._rate), ticks
    if self._copies:
      data.dts, data.duration = ticks, round(duration * self._rate)
      data.stream = self.output
    try:
      self._put(data)
    except OSError:  # a full disk; that the pictures would not survive either
      raise
    except (ValueError, av.error.FFmpegError) as e:
      why = getattr(e, "strerror", None) or e
      self._warn(time, "is damaged", f" and not taken along there ({why})")

  def _put(self, data: av.Packet | av.AudioFrame) -> None:
    if self._copies:
      self._target.mux(data)
      return
    for frame in self._resampled(data):
      self._target.mux(self.output.encode(frame))

  def _resampled(self, frame: av.AudioFrame | None) -> Iterator[av.AudioFrame]:
    """What the encoder takes; broadcasts change from mono to stereo to 5.1 and back."""
    kind = frame and (frame.format.name, frame.layout.name, frame.sample_rate)
    if kind != self._kind:
      if self._kind:
        yield from self._resampler.resample(None)
      self._kind = kind
      wanted = self.output.codec_context
      self._resampler = av.AudioResampler(wanted.format, wanted.layout, wanted.sample_rate)
    if frame:
      yield from self._resampler.resample(frame)

  def _duration(self, packet: av.Packet) -> Fraction:
    """A packet's duration in seconds, by its number of samples."""
    stated = (packet.duration or 0) * self._tick
    exact = Fraction(self._stream.codec_context.frame_size or 0, self._rate)
    if exact and abs(exact - stated) < self._tick:
      return exact
    if stated and self._tick * self._rate <= 1:
      return stated
    # Coarse, unknown, or (of a last packet) wrong. Vorbis' first packet gives no samples.
    samples = sum(frame.samples for frame in self._decode(packet))
    return Fraction(samples, self._rate) if samples else stated

  def _decode(self, packet: av.Packet) -> list[av.AudioFrame]:
    try:
      return self._stream.codec_context.decode(packet if packet.size else None)
    except av.error.FFmpegError:
      self._warn(self._clock.next or Fraction(0), "is damaged")
      return []

  def _warn(self, time: Fraction, what: str, more: str = "") -> None:
    """Tells once what is wrong with the sound at a time."""
    if not self._damaged:
      self._damaged = True
      at = float(time - self._start)
      warnings.warn(f"{self._path}: its sound {what} at {at:.1f} s{more}", stacklevel=1)


def _skipped(stream: av.AudioStream) -> Fraction:
  """How much of a track's begin is not heard, in seconds, where the header copied says so."""
  header = bytes(stream.codec_context.extradata or b"")
  if not header.startswith(b"OpusHead"):
    return Fraction(0)
  # The times of both ends of it are rounded.
  return Fraction(int.from_bytes(header[10:12], "little"), 48_000) + as_fraction(stream.time_base)
