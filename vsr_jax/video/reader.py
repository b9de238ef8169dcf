"""Reads a clip, be it a video file or image files, frame by frame."""

from __future__ import annotations

import collections
import contextlib
import os
import stat
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction

import numpy as np

from vsr_jax import threads
from vsr_jax.errors import UserError
from vsr_jax.frames import Frame
from vsr_jax.image_headers import read_header
from vsr_jax.images import MAX_PIXELS, SUFFIXES
from vsr_jax.video import spool
from vsr_jax.video.decode import VideoFile, VideoInfo
from vsr_jax.video.frames_folder import ImageFiles


class Reader(Iterator[Frame]):
  """The frames of a clip, in order; made by `open_reader`.

  Attributes:
    info: the clip's `VideoInfo`; it describes the whole clip, not the range that is read.
    warning: one line on why the rest of the clip is missing, set after the last frame; or None.
    lead: how many context frames come before the first one wanted.
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
    self._ahead: collections.deque[Frame] = collections.deque()  # read already, for context
    self._frames: Generator[Frame, None, None] | None = None
    self._source: VideoFile | ImageFiles | None = None
    self._closing = contextlib.ExitStack()
    try:
      if copy is None:
        copy = self._closing.enter_context(spool.copied(path))
      threads.interruptible(self._open, path, copy, deinterlace, max_pixels)
    except BaseException:
      self.close()
      raise

  def __next__(self) -> Frame:
    return threads.interruptible(self._next)

  def __enter__(self) -> Reader:
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file; iteration then yields no more frames."""
    if self._lock.acquire(timeout=threads.PATIENCE):  # else a read blocks, and keeps the file open
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
      source = self._source = _open_source(path, copy, deinterlace, max_pixels)
      self.info = source.info
      self._frames = self._read(source)
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
      assert self._frames is not None  # since `_open`
      return next(self._frames)

  def _read(self, source: VideoFile | ImageFiles) -> Generator[Frame, None, None]:
    (start, stop), (before, after) = self._range, self._context
    end = None if stop is None else stop + after
    # One frame is read ahead, because its time ends the duration of the one before it.
    held = None
    for index, (time, load) in enumerate(source.frames()):
      if held and (frame := self._frame(source, *held, time)):
        yield frame
      if index == end:
        return
      held = (index, time, load) if index >= start - before else None
    if held and (frame := self._frame(source, *held, source.end)):
      yield frame
    if held and stop is not None and held[0] + 1 >= stop:  # all wanted frames were read
      return
    if source.warning:
      self.warning = source.warning
      warnings.warn(self.warning, stacklevel=1)

  def _frame(
    self,
    source: VideoFile | ImageFiles,
    index: int,
    time: Fraction,
    load: Callable[[], np.ndarray],
    end: Fraction | None,
  ) -> Frame | None:
    """Makes the `Frame`, which lasts until `end`; None where a context frame cannot be read."""
    start, stop = self._range
    is_context = index < start or (stop is not None and index >= stop)
    duration = end - time if end is not None and end > time else 1 / source.info.frame_rate
    name = source.names[index] if source.names else None
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

  Takes video files of the containers in `containers`, folders of image files (PNG, JPEG, BMP, TIFF,
  WebP; frame2 before frame10; 25 frames per second), single image files, and pipes, which are
  copied first. Frames are turned upright, alpha is dropped, more than 8 bits are rounded; see
  `filters` for colour.

  Args:
    path: the file, folder or pipe, `-` for standard input.
    start: number of the first frame wanted; the ones before it are decoded but not converted.
    stop: number of the frame to stop before, or None for all.
    context: how many frames before `start`, and how many from `stop` on, are read, too, as far as
      they exist and can be read; they are marked `is_context`.
    max_pixels: the most pixels in a frame; larger ones are refused before they are decoded.
    copy: where `spool.copied` has put a pipe's content, needed to read it twice; None to copy it.
    deinterlace: whether to make whole pictures of fields; for video files.

  Returns:
    The reader; the file is open and its first wanted frame decoded. Ctrl-C and SIGTERM end a read
    even while it waits for a slow disk.

  Raises:
    UserError: the clip is missing, unreadable, no video, or has none of the frames wanted. Later,
      during iteration: an image file of a folder is damaged or differs in size.

  Warns:
    UserWarning: after the last good frame of a damaged or truncated file.
  """
  if start < 0 or (stop is not None and stop <= start):
    raise UserError(f"{path}: frames {start}:{stop} are none; the first is 0, the end left out")
  return Reader(path, (start, stop), context, copy, deinterlace, max_pixels)


def read_frames(
  path: str | os.PathLike[str], start: int = 0, stop: int | None = None
) -> np.ndarray:
  """The frames of a short clip as one array; a long one is better read by `open_reader`.

  Args:
    path, start, stop: as of `open_reader`.

  Returns:
    uint8 RGB [t h w 3], with fewer frames than asked for where the clip is shorter.

  Raises:
    UserError: see `open_reader`.
  """
  with open_reader(os.fspath(path), start, stop) as reader:
    return np.stack([frame.image for frame in reader])


def probe(path: str, max_pixels: int = MAX_PIXELS) -> VideoInfo:
  """Returns a clip's properties from its header and first frame; raises as `open_reader` does."""
  with open_reader(path, max_pixels=max_pixels) as reader:
    return reader.info


def _open_source(
  path: str, copy: str | None, deinterlace: bool, max_pixels: int
) -> VideoFile | ImageFiles:
  """Opens a video file, a folder of images or an image; the arguments are `video.open_reader`'s.

  Raises:
    UserError: the file is missing, empty, or cannot be read; or see `VideoFile` and `ImageFiles`.
  """
  file = copy or path
  if not os.path.exists(file):
    raise UserError(f"{path}: no such file or folder; check the path")
  try:
    if os.path.isdir(file):
      return ImageFiles(path, max_pixels)
    if stat.S_ISCHR(os.stat(file).st_mode):
      raise UserError(f"{path}: is a device; give a video file or a folder of frames")
    with open(file, "rb") as f:
      begin = f.read(2**20)
    if not begin:
      raise UserError(f"{path}: is empty; replace it")
    if file.lower().endswith(SUFFIXES) and not _is_animation(begin):
      return ImageFiles(path, max_pixels)
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
  return VideoFile(path, copy=copy, deinterlace=deinterlace, max_pixels=max_pixels)


def _is_animation(begin: bytes) -> bool:
  """Whether a file with this beginning is a GIF or an APNG, which FFmpeg reads as videos."""
  header = read_header(begin)
  if header is None:
    return False
  return header.kind == "GIF" or (header.kind == "PNG" and header.pictures > 1)
