"""Copies sound tracks from one file into another, as they are or coded anew as AAC."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

from vsr_jax.video.decode import VideoInfo

# Begin in seconds on the clip's own clock, duration in seconds, and what is to be written.
Item = tuple[Fraction, Fraction, av.Packet | av.AudioFrame]

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

# Packets to keep for a decoder that cannot begin at any packet; TrueHD can within 128 packets.
_LEAD = 256


def as_fraction(value: Any) -> Fraction:
  """A PyAV rational as a Fraction."""
  return Fraction(value.numerator, value.denominator)


class SampleClock:
  """Finds the times of a track's packets or frames, by counting samples where the container agrees.

  Containers round times to their own ticks, to milliseconds in Matroska, where TrueHD's packets of
  0.83 ms share a time; counting the samples is exact. Some containers, such as RealMedia, state no
  times for most packets; where times repeat or jump back the count goes on.

  Attributes:
    next: when the next packet would begin without a gap, in seconds; None before the first.
    fault: what was wrong with the last time given to `place`, in a few words; None if nothing.
  """

  def __init__(self):
    self._stated: Fraction | None = None  # by the container, of the packet before
    self._last: Fraction | None = None
    self._shift = self._former_shift = Fraction(0)  # from the container's times to ours
    self.next: Fraction | None = None
    self.fault: str | None = None

  def place(self, time: Fraction | None, duration: Fraction, tick: Fraction) -> Fraction | None:
    """Finds when the next packet begins.

    Args:
      time: the time that the container states, in seconds; None if it states none.
      duration: the packet's duration in seconds, by its number of samples.
      tick: the tick of the container's clock, in seconds.

    Returns:
      When the packet begins, in seconds, later than all before; None for a packet to be left out,
      whose time lies within earlier ones, as where packets were stored twice.
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
  """One sound track while it is written; its ends are cut at whole packets."""

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
      stream: its sound track, with a known sample rate and channels.
      target: the file.
      copy: whether to copy the packets, which the file must be able to hold; else they are coded
        anew as AAC.
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
    self._kind: tuple[str, str, int] | None = None  # the frames' format, layout and rate
    self._resampler: av.AudioResampler  # for frames of that kind

  def items(self, packet: av.Packet) -> Iterator[Item]:
    """Turns a packet of the track, or the empty last one, into the items for `write`.

    Yields:
      The packet itself if it is copied, else its decoded frames, with times and durations.

    Warns:
      UserWarning: the packet is damaged, or its time is wrong.
    """
    if self._copies:
      items = [(packet, self._duration(packet))] if packet.size else []
    else:
      items = [(f, Fraction(f.samples, f.sample_rate)) for f in self._decode(packet)]
    for item, duration in items:
      # PyAV leaves the time base out of a decoder's last frames; all have the stream's.
      time = None if item.pts is None else item.pts * self._tick
      time = self._clock.place(time, duration, self._tick)
      if self._clock.fault:
        self._warn(self._clock.next or Fraction(0), self._clock.fault)
      if time is not None:
        yield time, duration, item

  def write(self, item: Item, first: Fraction) -> None:
    """Writes a packet or frame, unless it ends before the pictures begin.

    Args:
      item: one that `items` yielded.
      first: when the pictures begin, in seconds on the same clock.

    Warns:
      UserWarning: the packet is damaged, so that the file does not accept it.

    Raises:
      OSError: the disk is full, or the file cannot be written otherwise.
    """
    time, duration, data = item
    if not self._copies or data.is_keyframe:
      self._lead.clear()
    self._lead.append(item)
    # The packet that ends just here is kept: decoding the next one may need it. So are those that
    # the header tells players to skip, since players would skip later ones instead.
    if time + duration < first - self._tick - self._skipped:
      return
    while self._lead:
      self._mux(self._lead.popleft(), first)

  def finish(self) -> None:
    """Writes what the encoder still holds, if the track is coded anew."""
    if not self._copies and self._last_ticks is not None:
      for frame in (*self._resampled(None), None):
        self._target.mux(self.output.encode(frame))

  def _mux(self, item: Item, first: Fraction) -> None:
    time, duration, data = item
    ticks = round((time - first) * self._rate)
    if self._last_ticks is not None:
      ticks = max(ticks, self._last_ticks + 1)  # rounding must not make two times equal
    self._last_ticks = ticks
    data.time_base, data.pts = Fraction(1, self._rate), ticks
    if self._copies:
      data.dts, data.duration = ticks, round(duration * self._rate)
      data.stream = self.output
    try:
      self._put(data)
    except OSError:  # a full disk, which ends the pictures, too
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
    """Yields frames in the encoder's format; a broadcast's channels may change on the way."""
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
    # The stated duration is coarse, missing, or (for a last packet) wrong: the packet is decoded.
    # Vorbis' first packet gives no samples.
    samples = sum(frame.samples for frame in self._decode(packet))
    return Fraction(samples, self._rate) if samples else stated

  def _decode(self, packet: av.Packet) -> list[av.AudioFrame]:
    try:
      return self._stream.codec_context.decode(packet if packet.size else None)
    except av.error.FFmpegError:
      self._warn(self._clock.next or Fraction(0), "is damaged")
      return []

  def _warn(self, time: Fraction, what: str, more: str = "") -> None:
    """Warns of what is wrong with the sound at a time; only once per track."""
    if not self._damaged:
      self._damaged = True
      at = float(time - self._start)
      warnings.warn(f"{self._path}: its sound {what} at {at:.1f} s{more}", stacklevel=1)


def _skipped(stream: av.AudioStream) -> Fraction:
  """Seconds at a track's begin that a player skips, as an Opus header states; else 0."""
  header = bytes(stream.codec_context.extradata or b"")
  if not header.startswith(b"OpusHead"):
    return Fraction(0)
  # One tick more, because the times of both its ends are rounded.
  return Fraction(int.from_bytes(header[10:12], "little"), 48_000) + as_fraction(stream.time_base)
