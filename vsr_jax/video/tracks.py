"""Copies what a clip holds beside its pictures into another file: sound, subtitles, tags."""

from __future__ import annotations

import collections
import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction

import av
from av.stream import Disposition

from vsr_jax.errors import UserError
from vsr_jax.video.clock import bridged
from vsr_jax.video.containers import open_container
from vsr_jax.video.decode import VideoInfo
from vsr_jax.video.sound import Item, SoundTrack, as_fraction

# Tags that describe the source file itself, or no longer hold, such as the rotation.
_STALE_TAGS = {
  "bps",
  "compatible_brands",
  "duration",
  "encoder",
  "major_brand",
  "minor_version",
  "number_of_bytes",
  "number_of_frames",
  "rotate",
  "software",
  "timecode",
  "vendor_id",
}

# The language codes of the old Macintosh, the only ones that .mov has, as FFmpeg spells them: some
# spellings are FFmpeg's own, and where ISO 639-2 has two for a language FFmpeg knows one of them.
_MAC_OWN = {"fao": "fo ", "gle": "iri", "hrv": "hr ", "pan": "pa ", "srp": "sr ", "swe": "sve"}
_FROM_MAC = {theirs: code for code, theirs in _MAC_OWN.items()}
_TO_MAC = (
  _MAC_OWN
  | {"bod": "tib", "cym": "wel", "cze": "ces", "deu": "ger", "ell": "gre", "eus": "baq"}
  | {"fas": "per", "fre": "fra", "hye": "arm", "isl": "ice", "kat": "geo", "mkd": "mac"}
  | {"msa": "may", "mya": "bur", "nld": "dut", "rum": "ron", "slo": "slk", "sqi": "alb"}
  | {"zho": "chi"}
)

# Handler names that FFmpeg writes itself.
_HANDLERS = ("VideoHandler", "SoundHandler", "SubtitleHandler")

# How far apart, in seconds, packets of the same time may be stored in a file.
_INTERLEAVED = 10


class Tracks:
  """Copies the sound tracks, subtitles, chapters and tags of a clip as far as a file takes them.

  The default sound track comes first.

  Attributes:
    tick: the tick of the clock of the clip's pictures, in seconds.
    left_out: what the file cannot hold, a few words for each.
  """

  def __init__(self, source: VideoInfo):
    """Opens the file of a clip, which `close` closes.

    Raises:
      UserError: the file cannot be opened any more.
    """
    self._start = source.start_time
    self._source = source
    try:
      self._input = open_container(source.file)
    except (OSError, ValueError, av.error.FFmpegError) as e:
      raise UserError(
        f"{source.path}: cannot be read a second time, for its sound; leave it where it is"
      ) from e
    self._tracks: dict[int, SoundTrack | _SubtitleTrack] = {}
    self.left_out: list[str] = []
    self._shown = self._input.streams[source.stream]
    self.tick = as_fraction(self._shown.time_base)

  def add_to(self, target: av.container.OutputContainer, pictures: av.VideoStream) -> None:
    """Adds the tracks to a file whose header is not written yet.

    Args:
      target: the file.
      pictures: the file's track with the restored pictures.
    """
    self._target = target
    self._add(pictures)
    self._items = self._read()
    self._next = next(self._items, None)

  def write(self, first: Fraction, end: Fraction) -> None:
    """Writes what begins before `end` and was not written yet.

    Args:
      first: the time of the first picture written, in seconds after the source's first picture.
      end: the time up to which to write, counted likewise; what begins then is left for later.

    Raises:
      OSError: the file cannot be written.
    """
    while self._next is not None and self._next[1][0] < self._start + end:
      self._write_item(*self._next, first)
      self._next = next(self._items, None)
    self._flush_subtitles(first, end)

  def finish(self, first: Fraction, end: Fraction) -> None:
    """Writes all that begins before the end of the last picture; then the chapters.

    Args:
      first: see `write`.
      end: when the last picture ends, in seconds after the source's first picture begins.

    Raises:
      OSError: the file cannot be written.
    """
    stop = self._start + end
    while self._next is not None and self._next[1][0] < stop + _INTERLEAVED:
      if self._next[1][0] < stop:
        self._write_item(*self._next, first)
      self._next = next(self._items, None)
    self._flush_subtitles(first, end, last=True)
    for track in self._tracks.values():
      track.finish()
    self._target.set_chapters(self._chapters(first, end))

  def close(self) -> None:
    """Closes the source."""
    self._input.close()

  def _add(self, pictures: av.VideoStream) -> None:
    tags = _text_tags(self._input.metadata)
    self._target.metadata.update(tags)
    self._describe(pictures, self._shown)
    sounds = self._input.streams.audio
    for stream in sorted(sounds, key=lambda s: not s.disposition & Disposition.default):
      self._add_sound(stream)
    for stream in self._input.streams:
      if stream.type == "subtitle" and _can_hold(self._target, stream):
        self._add_track(stream, _SubtitleTrack(stream, self._target))
      elif stream.type == "attachment" and _can_hold(self._target, stream):
        self._target.add_stream_from_template(stream)  # fonts; they have no packets
      elif stream.type != "audio" and stream.index != self._shown.index:
        self._leave_out(stream)
    outputs = [pictures, *(track.output for track in self._tracks.values())]
    lost, *lost_of_tracks = _lost_tags(self._target, tags, [dict(s.metadata) for s in outputs])
    if lost:
      self.left_out.append(f"tags ({', '.join(lost)})")
    for kind in ("video", "audio", "subtitle"):
      pairs = zip(outputs, lost_of_tracks, strict=True)
      names = dict.fromkeys(n for output, part in pairs if output.type == kind for n in part)
      if names:
        self.left_out.append(f"tags of {kind} tracks ({', '.join(names)})")

  def _add_sound(self, stream: av.AudioStream) -> None:
    context = stream.codec_context
    if not context or not context.sample_rate or not context.layout.nb_channels:
      self._leave_out(stream)
      return
    # Few players take these in mp4, and FFmpeg not PCM of every source, nor Vorbis in step.
    rare = self._target.format.name == "mp4" and context.name.startswith(("pcm_", "vorbis"))
    copy = not rare and _can_hold(self._target, stream)
    self._add_track(stream, SoundTrack(self._source, stream, self._target, copy))

  def _add_track(self, stream: av.stream.Stream, track: SoundTrack | _SubtitleTrack) -> None:
    self._tracks[stream.index] = track
    self._describe(track.output, stream)

  def _describe(self, output: av.stream.Stream, stream: av.stream.Stream) -> None:
    """Gives an output track the tags and the disposition of the source's."""
    tags = _text_tags(stream.metadata)
    if "name" in tags:  # FFmpeg reads a title from mp4 under another name than it writes it
      tags.setdefault("title", tags.pop("name"))
    language = tags.pop("language", "und")
    if "mov" in self._input.format.name:
      language = _FROM_MAC.get(language, language)
    if self._target.format.name == "mov":
      language = _TO_MAC.get(language, language)
    if language != "und":
      tags["language"] = language
    output.metadata.update(tags)
    output.disposition = stream.disposition.value  # PyAV 17 does not take the flag itself

  def _leave_out(self, stream: av.stream.Stream) -> None:
    name = getattr(stream, "name", None) or "unknown"
    if stream.type == "data" and name == "bin_data" and self._input.chapters():
      return  # the text of an mp4's chapters
    kind = "pictures" if stream.type == "video" else stream.type
    if stream.disposition & Disposition.attached_pic:
      kind = "cover"
    language = stream.metadata.get("language", "und")
    self.left_out.append(f"{kind} ({name}{'' if language == 'und' else ', ' + language})")

  def _read(self) -> Iterator[tuple[SoundTrack | _SubtitleTrack, Item]]:
    with contextlib.suppress(av.error.FFmpegError):  # the pictures end there too, and warn
      for packet in bridged(self._input):
        track = self._tracks.get(packet.stream.index)
        if track:
          for item in track.items(packet):
            yield track, item

  def _flush_subtitles(self, first: Fraction, end: Fraction, last: bool = False) -> None:
    for track in self._tracks.values():
      if isinstance(track, _SubtitleTrack):
        track.flush(self._start + first, self._start + end, last)

  def _write_item(self, track: SoundTrack | _SubtitleTrack, item: Item, first: Fraction) -> None:
    track.write(item, self._start + first)

  def _chapters(self, first: Fraction, end: Fraction) -> list[dict]:
    """The chapters within what is written, counted from its first picture."""
    chapters: dict[tuple[Fraction, str], dict] = {}
    for chapter in self._input.chapters():  # FFmpeg reads some of an mp4 twice, from its two lists
      chapters.setdefault((chapter["start"] * chapter["time_base"], _title(chapter)), chapter)
    kept = []
    for number, chapter in enumerate(chapters.values(), 1):
      tick = Fraction(chapter["time_base"])
      times = (chapter[name] * tick - self._start for name in ("start", "end"))
      start, stop = (round((min(max(t, first), end) - first) * 1000) for t in times)
      if start >= stop:
        continue
      if self._target.format.name != "matroska" and not _title(chapter):  # FFmpeg leaves it out
        chapter = chapter | {"metadata": {"title": f"Chapter {number}"}}
      kept.append(chapter | {"start": start, "end": stop, "time_base": Fraction(1, 1000)})
    return kept


class _SubtitleTrack:
  """One track of subtitles while it is copied, cut where the pictures begin and end."""

  def __init__(self, stream: av.stream.Stream, target: av.container.OutputContainer):
    self._target = target
    self.output = target.add_stream_from_template(stream)
    self._tick = as_fraction(stream.time_base)
    self._waiting: collections.deque[Item] = collections.deque()

  def items(self, packet: av.Packet) -> Iterator[Item]:
    if packet.size and packet.pts is not None:
      yield packet.pts * self._tick, (packet.duration or 0) * self._tick, packet

  def write(self, item: Item, first: Fraction) -> None:
    del first
    self._waiting.append(item)

  def flush(self, first: Fraction, end: Fraction, last: bool) -> None:
    """Writes the subtitles that are over at `end`; with `last` the others too, cut at `end`."""
    while self._waiting:
      time, duration, packet = self._waiting[0]
      if time + duration > end and not last:
        return
      self._waiting.popleft()
      start, stop = (min(max(t, first), end) - first for t in (time, time + duration))
      if stop > start or (not duration and first <= time < end):
        packet.pts = packet.dts = round(start / self._tick)
        packet.duration = round((stop - start) / self._tick)
        packet.stream = self.output
        self._target.mux(packet)

  def finish(self) -> None:
    """Does nothing: no encoder holds anything."""


def _title(chapter: dict) -> str:
  return chapter["metadata"].get("title", "")


def _can_hold(target: av.container.OutputContainer, stream: av.stream.Stream) -> bool:
  """Whether files of the target's kind can hold a track as it is; tried on a file in memory."""
  trial = av.open(io.BytesIO(), "w", format=target.format.name)
  try:
    trial.add_stream_from_template(stream)
    trial.start_encoding()
  except (ValueError, av.error.FFmpegError):
    return False
  finally:
    with contextlib.suppress(ValueError, OSError, av.error.FFmpegError):
      trial.close()
  return True


def _lost_tags(
  target: av.container.OutputContainer, tags: dict[str, str], tracks: list[dict[str, str]]
) -> list[list[str]]:
  """Finds tags that files of the target's kind cannot hold; tried on a small file in memory.

  Args:
    target: a file of that kind.
    tags: the file's tags.
    tracks: the tags of each track.

  Returns:
    Lists of names: the lost tags of the file, then those of each track.
  """
  if target.format.name == "matroska":  # it takes all
    return [[] for _ in (tags, *tracks)]
  memory = io.BytesIO()
  with av.open(memory, "w", format=target.format.name) as trial:
    trial.metadata.update(tags)
    for track in tracks:
      stream = trial.add_stream("mpeg4", rate=25)
      stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
      stream.metadata.update(track)
    for stream in trial.streams:  # without a picture it would not be written
      trial.mux([*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)])
  with av.open(io.BytesIO(memory.getvalue()), metadata_errors="replace") as trial:
    kept = [{key.lower() for key in part.metadata} for part in (trial, *trial.streams)]
  for names in kept[1:]:
    names.add("title")  # it is written; FFmpeg before 8.1 does not read it
  return [
    [_tag_name(key, value) for key, value in wanted.items() if key.lower() not in names]
    for wanted, names in zip((tags, *tracks), kept, strict=True)
  ]


def _tag_name(key: str, value: str) -> str:
  return f"language {value}" if key == "language" else key


def _text_tags(tags: dict[str, str]) -> dict[str, str]:
  """The tags to copy: not FFmpeg's, nor `_STALE_TAGS`, also with a language (DURATION-eng)."""
  return {
    key: value
    for key, value in tags.items()
    if key.lower().split("-")[0] not in _STALE_TAGS
    and not key.startswith("_STATISTICS")
    and not (key.lower() == "handler_name" and value in _HANDLERS)
  }
