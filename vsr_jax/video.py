"""Video files and folders of frames <-> uint8 RGB frames, as a stream in constant memory.

The one door to codecs: PyAV behind it reads any common container, image files or a folder of them,
and writes H.264 (mp4, mkv, mov) or PNG frames. Frames keep their times, the output its source's
sound; what is written appears under its name only once it is complete.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from vsr_jax import files, frames_folder, spool, threads
from vsr_jax.errors import UserError
from vsr_jax.files import naming
from vsr_jax.images import MAX_PIXELS
from vsr_jax.images import read_image as read_image
from vsr_jax.outputs import check_output as check_output
from vsr_jax.outputs import holds_one_frame as holds_one_frame
from vsr_jax.outputs import output_form
from vsr_jax.threads import prefetch as prefetch
from vsr_jax.video_decode import VideoInfo
from vsr_jax.video_encode import CONTAINERS, VideoSink
from vsr_jax.video_source import open_source


@dataclasses.dataclass(frozen=True)
class Frame:
  """One frame of a clip.

  Attributes:
    image: uint8 RGB [h w 3], upright.
    time: seconds after the clip's first frame.
    index: its number in the clip, from 0.
    duration: seconds that it stands: up to the next frame, or as long as the file says of the last
      one; None of a `Frame` that was made without.
    name: of an image file: the name that it gets as a PNG; None of a video's.
    is_context: whether it was not asked for, but for its neighbours' sake.
  """

  image: np.ndarray
  time: Fraction
  index: int
  duration: Fraction | None = None
  name: str | None = None
  is_context: bool = False


class Reader(Iterator[Frame]):
  """The frames of a clip, in order; made by `open_reader`.

  Attributes:
    info: the clip's `VideoInfo`; it describes the whole clip whatever the range.
    warning: None, or after the last frame one line that tells why the rest of the clip is missing.
    lead: how many frames come before the first one wanted, for its context.
  """

  def __init__(
    self,
    path: str,
    wanted: tuple[int, int | None],
    context: tuple[int, int],
    copy: str | None,
    deinterlace: bool,
    max_pixels: int,
  ):
    self.warning: str | None = None
    self._lock = threading.Lock()  # a thread may be reading when another one closes
    self._range, self._context = wanted, context
    self._ahead: collections.deque[Frame] = collections.deque()  # up to the first one wanted
    self._frames = self._source = None
    self._closing = contextlib.ExitStack()
    try:
      if copy is None:
        copy = self._closing.enter_context(spool.copied(path))
      threads.interruptible(self._open, path, copy, deinterlace, max_pixels)
    except BaseException:
      self.close()
      raise
    self.info: VideoInfo = self._source.info

  def __next__(self) -> Frame:
    return threads.interruptible(self._next)

  def __enter__(self) -> Reader:
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file; there are no more frames then."""
    if self._lock.acquire(timeout=threads.PATIENCE):  # else it is left to a read that never ends
      try:
        self._ahead.clear()
        if self._frames:
          self._frames.close()
        if self._source:
          self._source.close()
      finally:
        self._lock.release()
    self._closing.close()

  def _open(self, path: str, copy: str | None, deinterlace: bool, max_pixels: int) -> None:
    with self._lock:
      self._source = open_source(path, copy, deinterlace, max_pixels)
      self._frames = self._read()
      for frame in self._frames:
        self._ahead.append(frame)
        if not frame.is_context:
          self.lead = len(self._ahead) - 1
          return
      raise UserError(f"{path}: ends before frame {self._range[0]}; ask for frames that it has")

  def _next(self) -> Frame:
    with self._lock:
      if self._ahead:
        return self._ahead.popleft()
      return next(self._frames)

  def _read(self) -> Iterator[Frame]:
    (start, stop), (before, after) = self._range, self._context
    end = None if stop is None else stop + after
    # One frame ahead, whose time tells how long the one before it stands.
    held = None
    for index, (time, load) in enumerate(self._source.frames()):
      if held and (frame := self._frame(*held, time)):
        yield frame
      if index == end:
        return
      held = (index, time, load) if index >= start - before else None
    if held and (frame := self._frame(*held, self._source.end)):
      yield frame
    if held and stop is not None and held[0] + 1 >= stop:  # all that was wanted
      return
    if self._source.warning:
      self.warning = self._source.warning
      warnings.warn(self.warning, stacklevel=1)

  def _frame(
    self, index: int, time: Fraction, load: Callable[[], np.ndarray], end: Fraction | None
  ) -> Frame | None:
    """A frame; None where a neighbour of those wanted cannot be read."""
    start, stop = self._range
    is_context = index < start or (stop is not None and index >= stop)
    known = end is not None and end > time
    duration = end - time if known else 1 / self._source.info.frame_rate
    name = self._source.names[index] if self._source.names else None
    try:
      return Frame(load(), time, index, duration, name, is_context)
    except UserError:
      if is_context:
        return None
      raise


def open_reader(
  path: str,
  start: int = 0,
  stop: int | None = None,
  *,
  context: tuple[int, int] = (0, 0),
  max_pixels: int = MAX_PIXELS,
  copy: str | None = None,
  deinterlace: bool = False,
) -> Reader:
  """Opens a clip for reading frame by frame; use it as a context manager.

  Takes video files of the containers in `video_open`, folders of image files (PNG, JPEG, BMP, TIFF,
  WebP; frame2 before frame10; 25 frames a second), single image files, and pipes, which are copied
  first. Frames are turned upright, alpha is dropped, more than 8 bits are rounded; see
  `video_filters` for colour.

  Args:
    path: the file, folder or pipe, `-` for standard input.
    start: number of the first frame wanted; the ones before it are decoded but not converted.
    stop: number of the frame to stop before, or None for all.
    context: how many frames before `start`, and from `stop` on, are read, too, as far as they are
      there and can be read; they are marked `is_context`.
    max_pixels: of a frame; larger ones are refused before they are decoded.
    copy: where `spool.copied` has put a pipe's content; who reads a pipe twice needs it.
    deinterlace: make whole pictures of fields; for video files.

  Returns:
    The reader, its first wanted frame decoded. A read that waits ends with Ctrl-C or SIGTERM.

  Raises:
    UserError: the clip is missing, unreadable, no video, or has none of the frames wanted. Later,
      from iteration: an image file of a folder is damaged or differs in size.

  Warns:
    UserWarning: after the last good frame of a damaged or truncated file.
  """
  if start < 0 or (stop is not None and stop <= start):
    raise UserError(f"{path}: frames {start}:{stop} are none; the first is 0, the end left out")
  return Reader(path, (start, stop), context, copy, deinterlace, max_pixels)


def probe(path: str, max_pixels: int = MAX_PIXELS) -> VideoInfo:
  """Tells what is known of a clip from its header and first frame; raises as `open_reader`."""
  with open_reader(path, max_pixels=max_pixels) as reader:
    return reader.info


class Writer:
  """Takes the frames of a clip; made by `open_writer`. A thread of its own encodes them."""

  def __init__(self, sink, path: str, height: int, width: int, frame_rate: Fraction):
    self._sink = sink
    self._path = path
    self._shape = (height, width, 3)
    self._rate = frame_rate
    self._count = 0
    self._error: BaseException | None = None
    self._frames: queue.Queue = queue.Queue(maxsize=2)
    self._thread = threading.Thread(target=self._work, name="video writer", daemon=True)
    self._thread.start()

  def write(
    self,
    image: np.ndarray,
    time: Fraction | None = None,
    duration: Fraction | None = None,
    name: str | None = None,
  ) -> None:
    """Hands over the next frame.

    Args:
      image: uint8 RGB [h w 3] of the size that was announced; not to be changed afterwards.
      time: seconds, growing: a `Frame`'s time, so that pictures and sound stay together. None:
        the frames written so far at the nominal rate.
      duration: seconds that it stands if it is the last one; None: a frame's at the nominal rate.
      name: of its file in a folder, not given twice; None: its number, 00000000.png and so on.

    Raises:
      ValueError: the image has another shape or type.
      OSError: an earlier frame could not be written (ENOSPC: the disk is full).
    """
    image = np.ascontiguousarray(image)
    if image.shape != self._shape or image.dtype != np.uint8:
      raise ValueError(f"{image.dtype} {image.shape} is not a uint8 frame of shape {self._shape}")
    if self._error:
      raise self._error
    time = self._count / self._rate if time is None else time
    named = (name,) if isinstance(self._sink, frames_folder.FolderSink) else ()
    self._frames.put((image, time, duration, *named))
    self._count += 1

  def finish(self) -> None:
    """Waits for the frames handed over and completes the file; `open_writer` calls it."""
    self._stop()
    if self._error:
      raise self._error
    with naming(self._path):
      self._sink.finish()

  def abort(self) -> None:
    """Drops the frames not yet written and closes the file; `open_writer` calls it."""
    self._error = self._error or RuntimeError("the writer was stopped")
    with contextlib.suppress(queue.Full):
      self._stop(threads.PATIENCE)
    if not self._thread.is_alive():  # else the file is left to a read or write that never ends
      self._sink.abort()

  def _stop(self, patience: float | None = None) -> None:
    if self._thread.is_alive():
      self._frames.put(None, timeout=patience)
      self._thread.join(patience)

  def _work(self) -> None:
    for frame in iter(self._frames.get, None):
      if self._error is None:  # else only make room, so that no `put` waits for ever
        try:
          with naming(self._path):
            self._sink.write(*frame)
        except BaseException as e:
          self._error = e


@contextlib.contextmanager
def open_writer(
  path: str,
  height: int,
  width: int,
  frame_rate: Fraction,
  *,
  source: VideoInfo | None = None,
  quality: int = 18,
) -> Iterator[Writer]:
  """Opens an output for writing frame by frame, as a context manager.

  The form follows from the name: .mp4, .mkv or .mov (H.264 with the source's sound), .png or .jpg
  (one frame), and a folder of PNG frames for a name without extension, one that ends with a slash
  or an existing folder. It is written beside (see `files`) and put in its place on leaving the
  block; when an exception leaves the block it is removed, and what was there stays.

  Args:
    path: the output.
    height: pixels.
    width: pixels.
    frame_rate: frames a second.
    source: the clip that the frames come from, which is not overwritten: its sound while they are
      shown comes along, and subtitles, chapters, tags and pixel aspect where the container can.
    quality: H.264's constant rate factor, 1 (best) to 51; 0 is lossless RGB.

  Yields:
    The `Writer`.

  Raises:
    UserError: see `check_output`.
    OSError: the disk is full (ENOSPC), or writing failed otherwise.

  Warns:
    UserWarning: the container does not take all of the source, or its sound is damaged.
  """
  check_output(path, source and source.path)
  target, suffix = os.path.realpath(path), output_form(path)
  files.remove_left(*os.path.split(target), frames_folder.remove)
  part = files.part_name(target)
  writer = None
  try:
    with naming(path):
      if not suffix:
        sink = frames_folder.FolderSink(part)
      elif suffix in CONTAINERS:
        sink = VideoSink(part, suffix, height, width, frame_rate, quality, source)
      else:
        sink = frames_folder.ImageSink(part, suffix, path)
    writer = Writer(sink, path, height, width, frame_rate)
    yield writer
    writer.finish()
    with naming(path):
      _put(part, target, is_file=bool(suffix))
  except BaseException:
    if writer:
      writer.abort()
    frames_folder.remove(part)
    raise


def _put(part: str, target: str, is_file: bool) -> None:
  if is_file:
    os.replace(part, target)
  else:
    files.replace_folder(part, target, frames_folder.remove_frames)
