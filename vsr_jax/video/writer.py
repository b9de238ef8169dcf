"""Writes a clip frame by frame; what is written appears under its name only once complete."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from vsr_jax import files, threads
from vsr_jax.files import naming
from vsr_jax.video import frames_folder
from vsr_jax.video.decode import VideoInfo
from vsr_jax.video.encode import CONTAINERS, VideoSink
from vsr_jax.video.outputs import check_output, output_form


class Writer:
  """Takes the frames of a clip, which another thread encodes; made by `open_writer`."""

  def __init__(self, sink: Any, path: str, height: int, width: int, frame_rate: Fraction):
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
      image: uint8 RGB [h w 3] of the size given to `open_writer`; not to be changed afterwards.
      time: seconds, increasing: a `Frame`'s time, so that pictures and sound stay together. None:
        the time that follows from the number of frames so far and the nominal rate.
      duration: seconds for which the last frame is shown; None: one frame at the nominal rate.
      name: the frame's unique file name in a folder; None: its number, 00000000.png.

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
    if not self._thread.is_alive():  # else it hangs in a read or write
      self._sink.abort()

  def _stop(self, patience: float | None = None) -> None:
    if self._thread.is_alive():
      self._frames.put(None, timeout=patience)
      self._thread.join(patience)

  def _work(self) -> None:
    for frame in iter(self._frames.get, None):
      if self._error is None:  # else drop frames, so that no `put` waits for ever
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

  The form follows from the name: .mp4, .mkv or .mov (H.264 with the source's sound), .png, .jpg or
  .jpeg (one frame), and a folder of PNG frames for a name without extension, one that ends with a
  slash or an existing folder. The output is written beside its place (see `files`) and moved there
  on leaving the block; when an exception leaves the block it is removed, and what was there stays.

  Args:
    path: the output.
    height: pixels.
    width: pixels.
    frame_rate: frames per second, nominal.
    source: the clip that the frames come from, which must not be the output. Its sound during these
      frames is copied, and subtitles, chapters, tags and pixel aspect where the container can.
    quality: H.264's constant rate factor, 1 (best) to 51; 0 is lossless RGB.

  Yields:
    The `Writer`.

  Raises:
    UserError: see `check_output`.
    OSError: the disk is full (ENOSPC), or writing failed otherwise.

  Warns:
    UserWarning: the container cannot hold all that the source does, or the sound is damaged.
  """
  check_output(path, source.path if source else None)
  target, suffix = os.path.realpath(path), output_form(path)
  files.remove_left(*os.path.split(target), frames_folder.remove)
  part = files.part_name(target)
  writer = None
  sink: frames_folder.FolderSink | VideoSink | frames_folder.ImageSink
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
