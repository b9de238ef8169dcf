"""Decodes one video file with PyAV: a clip's properties, and its undamaged frames as RGB."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction

import av
import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.image_headers import is_scattered, read_header
from vsr_jax.images import MAX_PIXELS, check_header, check_pixels, read_file
from vsr_jax.video.clock import bridged
from vsr_jax.video.containers import is_cut, open_container, picture_streams
from vsr_jax.video.filters import RgbConverter, deinterlaced

# Frames per second of clips that state no rate: FFmpeg's choice for raw streams and image folders.
DEFAULT_RATE = Fraction(25)

# AVColorTransferCharacteristic of pictures in high dynamic range.
_HDR = {16: "PQ", 18: "HLG"}
_MOV, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """What is known of a clip before its frames are read.

  Attributes:
    path: the clip's path, as the caller gave it.
    height: pixels, after rotation.
    width: pixels, after rotation.
    frame_rate: frames per second; the mean where the rate varies.
    frame_count: from the header, so an estimate; None where the file states none.
    has_audio: whether there is a sound track that can be copied or coded anew.
    is_folder: whether the clip is image files, one or a folder, which have no times of their own.
    start_time: the file's own time of frame 0 in seconds; the frames' times count from it.
    pixel_aspect: width over height of a pixel as shown; 1 is square.
    stream: the index in the file of the stream that the pictures come from.
    notes: lines to print before work, each naming the file, on what the user should know of it.
    copy: the regular file that a pipe at `path` was copied into; None if `path` is no pipe.
  """

  path: str
  height: int
  width: int
  frame_rate: Fraction
  frame_count: int | None
  has_audio: bool
  is_folder: bool
  start_time: Fraction
  pixel_aspect: Fraction
  stream: int = 0
  notes: tuple[str, ...] = ()
  copy: str | None = None

  @property
  def file(self) -> str:
    """The path to open to read the clip again."""
    return self.copy or self.path


class VideoFile:
  """A video file while it is decoded.

  Attributes:
    info: the clip's `VideoInfo`, known from the start.
    names: always None: frames of a video have no names.
    warning: one line on why frames are missing, set once `frames` has ended; None if none are.
    end: when the last frame's duration ends, in seconds after the first frame; None until `frames`
      has ended, and where the file does not state it.
  """

  names = None

  def __init__(
    self,
    path: str,
    *,
    copy: str | None = None,
    deinterlace: bool = False,
    max_pixels: int = MAX_PIXELS,
  ):
    """Opens the file and decodes its first frame.

    Args:
      path: the file.
      copy: the file with the content of a pipe at `path`; None if `path` is a regular file.
      deinterlace: whether to make whole pictures of fields.
      max_pixels: the most pixels in a frame.

    Raises:
      UserError: the file is no video, has no frame that can be decoded, or larger frames.
    """
    self.warning: str | None = None
    self.end: Fraction | None = None
    self._damaged = False
    self._packets_end: Fraction | None = None  # when the last picture's packet ends, in seconds
    try:
      _check_picture(copy or path, path, max_pixels)
      self._container = open_container(copy or path, path, max_pixels)
    except (av.error.FFmpegError, ValueError) as e:
      raise UserError(
        f"{path}: not a readable video; give a video file (mp4, mkv, mov, avi, webm, ...) or a"
        " folder of PNG or JPEG frames"
      ) from e
    try:
      self._format = self._container.format.name
      self._stream = _video_stream(self._container, path)
      coder = self._stream.codec_context
      check_pixels(coder.height, coder.width, path, max_pixels)
      # The decoder checks it again, where the size changes or only the stream itself has it.
      coder.options = {"max_pixels": str(max_pixels)}
      self._good = self._good_frames()
      if deinterlace:
        self._good = deinterlaced(self._good)
      with _filter_errors(path):
        first = next(self._good, None)
      if first is None:
        larger = f" or of more than {max_pixels:,} pixels (--max-pixels)"
        why = "damaged" if coder.width else "damaged" + larger
        raise UserError(f"{path}: no frame can be decoded; the file is {why}, replace it")
      self._first = first
      self._orientation = _orientation(first)
      self.info = self._make_info(path, copy, first)
    except BaseException:
      self._container.close()
      raise

  def frames(self) -> Iterator[tuple[Fraction, Callable[[], np.ndarray]]]:
    """Yields the frames before the first damaged one, in the order shown; can be called once.

    Yields:
      The frame's time in seconds after the first frame (increasing), and a function that returns
      it as uint8 RGB [h w 3]; a frame whose function is not called is only decoded.
    """
    first, self._first = self._first, None
    size, start = (first.width, first.height), _file_time(first)
    convert = RgbConverter()

    def load(frame: av.VideoFrame) -> np.ndarray:
      with _filter_errors(self.info.path):
        return _oriented(convert(frame), *self._orientation)

    time = None
    for count, frame in enumerate(itertools.chain([first], self._remaining_frames())):
      if (frame.width, frame.height) != size:
        self._warn(count, f"the frame size changes to {frame.width}x{frame.height}")
        return
      stamp = _file_time(frame)
      if time is None:
        time = Fraction(0)
      elif stamp is None or start is None or stamp - start <= time:  # raw streams have no times
        time += 1 / self.info.frame_rate
      else:
        time = stamp - start
      yield time, functools.partial(load, frame)
    if self._damaged or self._ends_early():
      self._warn(count + 1, "the file is damaged or cut short")
    elif start is not None and (end := self._end_of_last()) is not None:
      self.end = end - start

  def close(self) -> None:
    self._good.close()
    self._container.close()

  def _warn(self, count: int, reason: str) -> None:
    total = f" of about {self.info.frame_count}" if self.info.frame_count else ""
    self.warning = (
      f"{self.info.path}: {reason} after {count} frames{total}; what follows is left out"
    )

  def _make_info(self, path: str, copy: str | None, first: av.VideoFrame) -> VideoInfo:
    rate = _frame_rate(self._stream, has_times=first.pts is not None)
    start = _file_time(first) or Fraction(0)
    height, width = first.height, first.width
    aspect = _fraction(self._stream.sample_aspect_ratio) or Fraction(1)
    if self._orientation[0]:
      height, width, aspect = width, height, 1 / aspect
    return VideoInfo(
      path=path,
      height=height,
      width=width,
      frame_rate=rate,
      frame_count=self._stream.frames or self._estimate_count(start, rate),
      has_audio=any(s.codec_context for s in self._container.streams.audio),
      is_folder=False,
      start_time=Fraction(0) if self._format == "avi" else start,
      pixel_aspect=aspect,
      stream=self._stream.index,
      notes=tuple(self._notes(path, first)),
      copy=copy,
    )

  def _estimate_count(self, start: Fraction, rate: Fraction) -> int | None:
    """How many frames there are by the header, None where it states no duration."""
    if self._format == _MATROSKA:
      end = self._tagged_end() or _seconds(self._container.duration)  # as the clock counts
      return max(1, round((end - start) * rate)) if end else None
    duration = _seconds(self._container.duration) if self._format == _MOV else None
    return round(duration * rate) if duration else None

  def _notes(self, path: str, first: av.VideoFrame) -> Iterator[str]:
    """Yields the lines of `VideoInfo.notes`."""
    transfer = _HDR.get(int(self._stream.codec_context.color_trc or 0))
    if transfer:
      yield (
        f"{path}: is HDR ({transfer}), which is not mapped to the output's range: it will look pale"
        "; convert it to BT.709 first"
      )
    if first.interlaced_frame:
      yield f"{path}: is interlaced, moving edges are combed; --deinterlace mends that"
    if len(picture_streams(self._container)) > 1:
      yield f"{path}: has several picture tracks; stream {self._stream.index} is taken"

  def _remaining_frames(self) -> Iterator[av.VideoFrame]:
    with _filter_errors(self.info.path):
      yield from self._good

  def _good_frames(self) -> Generator[av.VideoFrame, None, None]:
    """Yields frames up to the first damaged one; damage before frame 0 is skipped."""
    started = False
    for frame in self._decoded():
      if frame is not None:
        started = True
        yield frame
      elif started:
        self._damaged = True
        return

  def _decoded(self) -> Iterator[av.VideoFrame | None]:
    """Yields every decoded frame, and None where one is missing or corrupt."""
    for packet in self._packets():
      failed = False
      try:
        frames = self._stream.decode(packet)
      except av.error.FFmpegError:
        failed, frames = True, []
        with contextlib.suppress(av.error.FFmpegError):
          frames = self._stream.decode(None)  # frames that the decoder still holds
        self._stream.codec_context.flush_buffers()
      for frame in frames:
        frame.time_base = self._stream.time_base  # PyAV leaves it out of the last ones
        if self._format == "avi":
          # AVI stores no times. FFmpeg counts decoding times right, but guesses those of showing,
          # wrongly where frames are reordered.
          frame.pts = frame.dts
        yield None if frame.is_corrupt else frame
      if failed:
        yield None

  def _packets(self) -> Iterator[av.Packet | None]:
    """Yields the stream's packets until the file ends or breaks, then None to empty the decoder."""
    try:
      for packet in bridged(self._container):
        if packet.size and packet.stream.index == self._stream.index:
          stamp = packet.dts if packet.pts is None else packet.pts
          if stamp is not None and not packet.is_discard:
            end = (stamp + (packet.duration or 0)) * _fraction(packet.time_base)
            self._packets_end = max(end, self._packets_end or end)
          yield packet
    except av.error.FFmpegError:
      self._damaged = True
    yield None

  def _ends_early(self) -> bool:
    """Whether the file ends before all pictures that its header promises."""
    if self._format != _MOV:
      return is_cut(self._container, self.info.file)
    # By more than one and a half frames, to allow for rounding.
    promised = self._header_end() or _seconds(self._container.duration)
    held = self._packets_end
    if promised is None or held is None:
      return False
    return promised - held > Fraction(3, 2) / self.info.frame_rate

  def _end_of_last(self) -> Fraction | None:
    """When the last picture ends, in seconds of the file's own time; it may be shown for long."""
    if self._format == "avi":
      return self._header_end()
    if self._format == _MATROSKA and self._packets_end is not None:
      return max(self._packets_end, self._tagged_end() or Fraction(0))
    return self._packets_end

  def _header_end(self) -> Fraction | None:
    """When the pictures end by the stream's header, in seconds; None if not stated."""
    stream = self._stream
    if not stream.duration:
      return None
    return ((stream.start_time or 0) + stream.duration) * _fraction(stream.time_base)

  def _tagged_end(self) -> Fraction | None:
    """When the pictures end according to the tag of Matroska's muxers, in seconds; None without."""
    tags = self._stream.metadata
    found = re.match(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)$", tags.get("DURATION", ""), re.ASCII)
    if not found:
      return None
    end = 3600 * int(found[1]) + 60 * int(found[2]) + Fraction(found[3])
    whole = _seconds(self._container.duration)
    counts_from_start = "_STATISTICS_TAGS" in tags  # mkvmerge's; FFmpeg's counts from 0
    tick = _fraction(self._stream.time_base)
    if counts_from_start:
      assert tick is not None  # streams of an open file have one
      end += (self._stream.start_time or 0) * tick
    return end if whole is None else min(end, whole)


@contextlib.contextmanager
def _filter_errors(path: str) -> Iterator[None]:
  """A context in which errors of FFmpeg's filters become `UserError`; decoding raises none here."""
  try:
    yield
  except av.error.FFmpegError as e:
    raise UserError(
      f"{path}: its pictures cannot be converted ({e.strerror}); convert it to H.264 first"
    ) from e


def _check_picture(file: str, path: str, max_pixels: int) -> None:
  """Raises `UserError` for an image file, such as a GIF, with more pixels than `max_pixels`.

  FFmpeg would find that late. Files with pages and animated WebP are refused as well, since FFmpeg
  decodes one picture of them or none.
  """
  with open(file, "rb") as f:
    begin = f.read(2**20)
  header = read_header(read_file(file, path, max_pixels) if is_scattered(begin) else begin)
  if header is not None:
    is_clip = header.kind == "PNG"  # APNG is read as a video, whatever its number of pictures
    check_header(header._replace(pictures=1) if is_clip else header, path, max_pixels)


def _video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
  streams = picture_streams(container)
  if not streams:
    raise UserError(f"{path}: holds no video (sound or text only); give a file with pictures")
  if streams[0].codec_context is None:
    raise UserError(f"{path}: its video codec is not supported; convert it to H.264 first")
  return streams[0]


def _file_time(frame: av.VideoFrame) -> Fraction | None:
  """The file's own time of a frame, in seconds."""
  return None if frame.pts is None else frame.pts * _fraction(frame.time_base)


def _seconds(microseconds: int | None) -> Fraction | None:
  return None if microseconds is None else Fraction(microseconds, 1_000_000)


def _frame_rate(stream: av.VideoStream, has_times: bool) -> Fraction:
  # For a raw stream the guess knows the codec's rate; where frames have times the mean is right.
  mean, *guesses = map(_fraction, (stream.average_rate, stream.guessed_rate, stream.base_rate))
  if has_times and mean and 0 < mean <= 1000:
    return mean
  for rate in guesses:
    if rate and 0 < rate < 1000:  # 1000 is only the clock's ticks per second
      return rate
  return DEFAULT_RATE


def _fraction(value) -> Fraction | None:
  """A PyAV rational as a Fraction, None if unset, which in PyAV is None up to 18, later false."""
  return Fraction(value.numerator, value.denominator) if value else None


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
  """Reads the display matrix as (transpose, then mirror columns, then mirror rows)."""
  # A pixel (x, y) is shown at (a x + c y, b x + d y); angles are rounded to quarter turns.
  a, b, c, d = 1, 0, 0, 1
  try:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
      a, b, _, c, d = (int(v) for v in np.frombuffer(matrix, np.int32)[:5])
  except ValueError:  # PyAV < 19 raises it for side data that it does not know, such as EXIF
    quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns]
    a, b, c, d = cos, -sin, sin, cos
  if abs(b) > abs(a):
    return True, c < 0, b < 0
  return False, a < 0, d < 0


def _oriented(image: np.ndarray, transpose: bool, flip_x: bool, flip_y: bool) -> np.ndarray:
  if transpose:
    image = image.swapaxes(0, 1)
  image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
  return np.ascontiguousarray(image)
