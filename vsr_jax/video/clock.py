"""Gives all streams of a file one continuous clock, across jumps of the file's own clock.

Where recordings were concatenated in a transport stream the clock restarts, and a 33-bit clock
wraps around. The offset after each such place is found from the packets alone, in file order, so
that every pass over a file gives the same times: one pass reads the pictures, another the sound.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator

import av
from av.format import Flags
from av.stream import Disposition

# A step of the decoding time that is a jump of the clock, in seconds: FFmpeg's
# `dts_delta_threshold` forward, and what it allows for damage backward.
_FORWARD, _BACK = 10, 0.1
# A step backward, in seconds, that is a jump in other containers too; smaller ones are jitter.
_BEGUN_ANEW = 1
# How far after a jump, in seconds and in packets, to look for the other streams' first packets.
_INTERLEAVED, _LOOK_AHEAD = 2, 2000
_SPANS = 16  # the latest ones, which are remembered; each jump begins one


def bridged(container: av.container.InputContainer) -> Iterator[av.Packet]:
  """Demuxes a file from its beginning and makes one continuous clock of its packets' times.

  Where the clock jumps back, or more than 10 seconds forward, what follows is shifted, by the same
  offset in every stream, so that its first packet shown begins where all that came before has
  ended. A pause in one stream during which the others go on is no jump. In containers whose clock
  cannot jump according to FFmpeg (all but MPEG's transport and program streams and Ogg) any step
  forward is a pause. A step back by over a second is a jump there too, as in two concatenated
  Matroska files, if the packet can begin a recording; any other packet stays in its stream's span,
  because FFmpeg guesses the decoding times of Matroska.

  The packets of all streams take part, whichever of them the caller wants, so that two passes over
  a file agree: iterate over all packets and skip those of other streams. In each pass,

    for packet in bridged(container):
      if packet.stream.index == stream.index:
        frames = packet.decode()  # their times are on the same clock; or mux the packet itself

  Args:
    container: an open file from which nothing was read; it must not be demuxed elsewhere.

  Yields:
    Every packet with its `pts` and `dts` rewritten, in file order (after a jump two seconds are
    read ahead), and last PyAV's empty packet of every stream, which flushes its decoder.

  Raises:
    av.error.FFmpegError: the file cannot be read further; what was read before is yielded first.
  """
  clock = _Clock(jumps=bool(container.format.flags & Flags.ts_discont.value))
  waiting: collections.deque[tuple[av.Packet, _Span | None]] = collections.deque()
  error = None
  packets = container.demux()
  while error is None:
    try:
      packet = next(packets)
    except StopIteration:
      break
    except av.error.FFmpegError as e:
      error = e
      break
    waiting.append((packet, clock.place(packet)))
    if clock.passing and len(waiting) < _LOOK_AHEAD:
      continue
    clock.settle()
    while waiting:
      yield _shifted(*waiting.popleft())
  clock.settle()
  while waiting:
    yield _shifted(*waiting.popleft())
  if error:
    raise error


class _Span:
  """A stretch of the file in which its own clock runs without a jump; times in seconds."""

  def __init__(self, number: int, time: float):
    self.number = number
    self.start = time  # when its first packet is shown
    self.end = time  # when the last one of all streams has been shown
    self.first = self.last = time  # the least and the largest decoding time
    self.offset: float | None = None  # to add to its times; None until it is settled

  def distance(self, time: float) -> float:
    return max(self.first - time, time - self.last, 0.0)


@dataclasses.dataclass
class _Track:
  """The state of one stream: its span, and when its last packet is decoded, shown and over."""

  span: _Span
  last: float
  shown: float
  end: float


class _Clock:
  """Tells which span a packet belongs to, and what the spans' offsets are."""

  def __init__(self, jumps: bool):
    """Takes `jumps`: whether the container's clock may jump, forward as well as back."""
    self._jumps = jumps
    self._recent: collections.deque[_Span] = collections.deque(maxlen=_SPANS)
    self._unsettled: list[_Span] = []
    self._end: float | None = None  # when the settled spans end, on the common clock
    self._tracks: dict[int, _Track] = {}
    self._deciding: dict[int, bool] = {}

  @property
  def passing(self) -> bool:
    """Whether a stream may still have to reach the newest span, which has no offset yet."""
    if not self._unsettled:
      return False
    newest = self._unsettled[-1]
    young = newest.last - newest.first <= _INTERLEAVED
    return young and any(track.span is not newest for track in self._tracks.values())

  def settle(self) -> None:
    """Decides the offsets of spans that have none."""
    for span in self._unsettled:
      span.offset = 0.0 if self._end is None else self._end - span.start
      self._extend_end(span.offset + span.end)
    self._unsettled.clear()

  def place(self, packet: av.Packet) -> _Span | None:
    """Finds the span of a packet, a new one where the clock jumps; None if it has no time."""
    ticks = packet.pts if packet.dts is None else packet.dts
    if ticks is None:
      return None
    tick = packet.time_base.numerator / packet.time_base.denominator
    time, duration = ticks * tick, (packet.duration or 0) * tick
    shown = time if packet.pts is None else packet.pts * tick
    if abs(shown - time) > _FORWARD:  # a damaged time of showing
      shown = time
    stream = packet.stream
    track = self._tracks.get(stream.index)
    if packet.dts is None and track:  # its `pts` may go back: pictures are reordered
      return track.span
    if not self._decides_on_jumps(stream):
      return self._nearest_span(time)
    if not self._jumps:
      span = self._find_span_after_step_back(track, packet, time, shown)
    elif track:
      span = self._find_next_span(track, time)
    else:
      span = self._find_first_span(time, stream.type)
    if span is None:
      span = _Span(self._recent[-1].number + 1 if self._recent else 0, shown)
      span.first = span.last = time
      self._recent.append(span)
      self._unsettled.append(span)
    self._tracks[stream.index] = _Track(span, time, shown, time + duration)
    span.first, span.last = min(span.first, time), max(span.last, time)
    span.end = max(span.end, shown + duration)
    if span.offset is None:
      span.start = min(span.start, shown)
    else:
      self._extend_end(span.offset + span.end)
    return span

  def _decides_on_jumps(self, stream: av.stream.Stream) -> bool:
    """Whether a stream decides on jumps: subtitles may be far apart, and a cover has no time."""
    if stream.index not in self._deciding:
      cover = bool(stream.disposition & Disposition.attached_pic)
      self._deciding[stream.index] = stream.type in ("video", "audio") and not cover
    return self._deciding[stream.index]

  def _extend_end(self, end: float) -> None:
    self._end = end if self._end is None else max(self._end, end)

  def _find_first_span(self, time: float, kind: str) -> _Span | None:
    """The span that a stream's first time is in, None if that is a new one."""
    # Streams are interleaved, roughly; but a picture that stands for minutes may come late.
    for span in reversed(self._recent):
      near = abs(time - span.last) if kind == "audio" else span.distance(time)
      if near <= _FORWARD:
        return span
    return None

  def _find_next_span(self, track: _Track, time: float) -> _Span | None:
    """The span that a stream's next time is in, None if that is a new one."""
    step = max(track.last - time, time - track.end, 0.0)
    if step <= _BACK:
      return track.span
    # Another stream may have passed the jump already: this one follows into the nearest later span.
    for span in self._recent:
      if span.number > track.span.number and span.distance(time) < step:
        return span
    forward = time - max(track.end, track.span.last)
    if time > track.last and forward <= _FORWARD:
      return track.span
    # A single time may be damaged: the others are still where this stream came from.
    for other in self._tracks.values():
      if other.span is not track.span and other.span.distance(time) <= _BACK:
        return other.span
    return None

  def _find_span_after_step_back(
    self, track: _Track | None, packet: av.Packet, time: float, shown: float
  ) -> _Span | None:
    """Like `_find_next_span` and `_find_first_span`, where only a step back can be a jump."""
    if track is None:
      return self._nearest_span(time)
    step = abs(time - track.last)
    if step <= _BACK:
      return track.span
    for span in self._recent:
      if span.number > track.span.number and span.distance(time) < step:
        return span
    others = [other for other in self._tracks.values() if other is not track]
    for other in others:  # after a damaged time: back to the others' span
      if other.span is not track.span and other.span.distance(time) < step / 2:
        return other.span
    back = min(track.last - time, track.shown - shown)
    begins = packet.is_keyframe and not packet.is_discard and packet.pts is not None
    damaged = any(o.span is track.span and abs(o.last - time) < step / 2 for o in others)
    return None if begins and back > _BEGUN_ANEW and not damaged else track.span

  def _nearest_span(self, time: float) -> _Span | None:
    return min(reversed(self._recent), key=lambda span: span.distance(time), default=None)


def _shifted(packet: av.Packet, span: _Span | None) -> av.Packet:
  if span is not None and span.offset:
    tick = packet.time_base.numerator / packet.time_base.denominator
    shift = round(span.offset / tick)
    with contextlib.suppress(OverflowError):  # damaged beyond 64 bits: it stays
      if packet.pts is not None:
        packet.pts += shift
      if packet.dts is not None:
        packet.dts += shift
  return packet
