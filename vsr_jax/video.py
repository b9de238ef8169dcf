"""Video files and folders of frames <-> uint8 RGB frames, as a stream in constant memory.

The one door to codecs: PyAV behind it reads any common container, image files or a folder of them,
and writes H.264 (mp4, mkv, mov) or PNG frames. Frames keep their times, the output its source's
sound; what is written appears under its name only once it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import queue
import threading
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

import numpy as np

from vsr_jax import files, frames_folder
from vsr_jax.errors import UserError
from vsr_jax.files import naming
from vsr_jax.video_decode import VideoFile, VideoInfo
from vsr_jax.video_encode import CONTAINERS, open_video

T = TypeVar("T")

_IMAGE_OUTPUTS = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Frame:
  """One frame of a clip.

  Attributes:
    image: uint8 RGB [h w 3], upright.
    time: seconds after the clip's first frame.
    index: its number in the clip, from 0.
  """

  image: np.ndarray
  time: Fraction
  index: int


class Reader(Iterator[Frame]):
  """The frames of a clip, in order; made by `open_reader`.

  Attributes:
    info: the clip's `VideoInfo`; it describes the whole clip whatever the range.
    warning: None, or after the last frame one line that tells why the rest of the clip is missing.
  """

  def __init__(self, path: str, start: int, stop: int | None):
    self.warning: str | None = None
    self._lock = threading.Lock()  # a thread may be reading when another one closes
    self._source = _open_source(path)
    self.info: VideoInfo = self._source.info
    self._frames = self._read(start, stop)
    try:
      self._first = next(self._frames, None)
      if self._first is None:
        raise UserError(f"{path}: ends before frame {start}; ask for frames that it has")
    except BaseException:
      self.close()
      raise

  def __next__(self) -> Frame:
    with self._lock:
      if self._first is not None:
        frame, self._first = self._first, None
        return frame
      return next(self._frames)

  def __enter__(self) -> Reader:
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def close(self) -> None:
    """Closes the file; there are no more frames then."""
    with self._lock:
      self._first = None
      self._frames.close()
      self._source.close()

  def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
    frames = enumerate(self._source.frames())
    for index, (time, load) in itertools.islice(frames, start, stop):
      yield Frame(load(), time, index)
    if self._source.warning:
      self.warning = self._source.warning
      warnings.warn(self.warning, stacklevel=1)


def open_reader(path: str, start: int = 0, stop: int | None = None) -> Reader:
  """Opens a clip for reading frame by frame; use it as a context manager.

  Takes video files of any container and codec that FFmpeg knows, folders of image files (PNG, JPEG,
  BMP, TIFF, WebP; frame2 before frame10; 25 frames a second) and single image files. Frames are
  turned upright, alpha is dropped, more than 8 bits are rounded; see `video_decode` for colour.

  Args:
    path: the file or folder.
    start: number of the first frame wanted; the ones before it are decoded but not converted.
    stop: number of the frame to stop before, or None for all.

  Returns:
    The reader; the file is open and its first wanted frame decoded.

  Raises:
    UserError: the clip is missing, unreadable, no video, or has none of the frames wanted. Later,
      from iteration: an image file of a folder is damaged or differs in size.

  Warns:
    UserWarning: after the last good frame of a damaged or truncated file.
  """
  if start < 0 or (stop is not None and stop <= start):
    raise UserError(f"{path}: frames {start}:{stop} are none; the first is 0, the end left out")
  return Reader(path, start, stop)


def probe(path: str) -> VideoInfo:
  """Tells what is known of a clip from its header and first frame; raises as `open_reader`."""
  with open_reader(path) as reader:
    return reader.info


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
  """Runs an iterator in a thread, ahead of its consumer.

  Args:
    items: what to iterate over.
    depth: how many items at most are made before they are asked for.

  Yields:
    The items; an exception of theirs arrives in its place. When the consumer stops early the
    thread ends after the item it is at.
  """
  made: queue.SimpleQueue = queue.SimpleQueue()
  slots = threading.Semaphore(depth)
  stopped = threading.Event()

  def work():
    iterator = iter(items)
    try:
      while slots.acquire() and not stopped.is_set():
        made.put((next(iterator), None))
    except BaseException as e:  # StopIteration too: the consumer has to hear of it
      made.put((None, e))

  thread = threading.Thread(target=work, name="prefetch", daemon=True)
  thread.start()
  try:
    while True:
      item, error = made.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      slots.release()
      yield item
  finally:
    stopped.set()
    slots.release()
    thread.join()


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

  def write(self, image: np.ndarray, time: Fraction | None = None) -> None:
    """Hands over the next frame.

    Args:
      image: uint8 RGB [h w 3] of the size that was announced; not to be changed afterwards.
      time: seconds, growing: a `Frame`'s time, so that pictures and sound stay together. None:
        the frames written so far at the nominal rate.

    Raises:
      ValueError: the image has another shape or type.
      OSError: an earlier frame could not be written (ENOSPC: the disk is full).
    """
    image = np.ascontiguousarray(image)
    if image.shape != self._shape or image.dtype != np.uint8:
      raise ValueError(f"{image.dtype} {image.shape} is not a uint8 frame of shape {self._shape}")
    if self._error:
      raise self._error
    self._frames.put((image, self._count / self._rate if time is None else time))
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
    self._stop()
    self._sink.abort()

  def _stop(self) -> None:
    if self._thread.is_alive():
      self._frames.put(None)
      self._thread.join()

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
    source: the clip that the frames come from: its sound between the first and the last frame
      written comes along, its pixel aspect too, and it is not overwritten.
    quality: H.264's constant rate factor, 1 (best) to 51; 0 is lossless RGB.

  Yields:
    The `Writer`.

  Raises:
    UserError: see `check_output`.
    OSError: the disk is full (ENOSPC), or writing failed otherwise.
  """
  check_output(path, source and source.path)
  target, suffix = os.path.realpath(path), _output_form(path)
  files.remove_left(*os.path.split(target), frames_folder.remove)
  part = files.part_name(target)
  writer = None
  try:
    with naming(path):
      if not suffix:
        sink = frames_folder.FolderSink(part)
      elif suffix in CONTAINERS:
        sink = open_video(part, suffix, height, width, frame_rate, quality, source)
      else:
        sink = frames_folder.ImageSink(part, suffix, path)
    writer = Writer(sink, path, height, width, frame_rate)
    yield writer
    writer.finish()
    with naming(path):
      if suffix:
        os.replace(part, target)
      else:
        files.replace_folder(part, target, frames_folder.remove_frames)
  except BaseException:
    if writer:
      writer.abort()
    frames_folder.remove(part)
    raise


def check_output(path: str, source: str | None = None) -> None:
  """Checks, before any work is done, that a clip can be written.

  Args:
    path: the output, see `open_writer`.
    source: the clip that it is made from.

  Raises:
    UserError: the extension is unknown, the folder to write in does not exist or cannot be written,
      the output is the source or contains it, or what is there already must not be replaced: a
      folder with other files than frames of an earlier run, something that is no file, or what
      belongs to somebody else.
  """
  suffix = _output_form(path)
  target = os.path.realpath(path)
  parent = os.path.dirname(target)
  files.check_place(path)
  if source is not None:
    origin = os.path.realpath(source)
    same = os.path.exists(target) and os.path.samefile(origin, target)
    if same or (not suffix and os.path.dirname(origin) == target):
      raise UserError(f"{path}: is the input; name another output")
    if os.path.isdir(origin) and parent == origin and os.path.exists(target):
      raise UserError(f"{path}: is a file of the input folder; name another output")
  if suffix:
    if os.path.lexists(target) and not os.path.isfile(target):
      raise UserError(f"{path}: is not a file that can be replaced; name another output")
  elif os.path.isdir(target):
    if not frames_folder.holds_only_frames(target):
      raise UserError(f"{path}: the folder holds other files; name a new or an empty folder")
  elif os.path.lexists(target):
    raise UserError(f"{path}: is a file, not a folder; name another output")


def holds_one_frame(path: str) -> bool:
  """Whether an output is a picture, going by its name."""
  return _output_form(path) in _IMAGE_OUTPUTS


def _output_form(path: str) -> str:
  """The extension of a file to write, in lower case, or "" for a folder of frames."""
  suffix = os.path.splitext(path)[1].lower()
  if path.endswith(("/", os.sep)) or os.path.isdir(path) or not suffix:
    return ""
  if suffix not in (*CONTAINERS, *_IMAGE_OUTPUTS):
    known = ", ".join((*CONTAINERS, *_IMAGE_OUTPUTS))
    raise UserError(
      f"{path}: unknown kind of output {suffix}; use {known}, or end a folder's name with /"
    )
  return suffix


def _open_source(path: str) -> VideoFile | frames_folder.ImageFiles:
  if not os.path.exists(path):
    raise UserError(f"{path}: no such file or folder; check the path")
  try:
    if os.path.isdir(path):
      return frames_folder.ImageFiles(path)
    with open(path, "rb") as f:
      if not f.read(1):
        raise UserError(f"{path}: is empty; replace it")
    if path.lower().endswith(frames_folder.IMAGE_SUFFIXES):
      return frames_folder.ImageFiles(path)
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
  return VideoFile(path)
