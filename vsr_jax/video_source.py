"""Which of the two a clip is: a video file, or image files."""

from __future__ import annotations

import os
import stat

from vsr_jax.errors import UserError
from vsr_jax.frames_folder import ImageFiles
from vsr_jax.image_headers import read_header
from vsr_jax.images import SUFFIXES
from vsr_jax.video_decode import VideoFile


def open_source(
  path: str, copy: str | None, deinterlace: bool, max_pixels: int
) -> VideoFile | ImageFiles:
  """Opens a video file, a folder of images or an image; the arguments are `video.open_reader`'s.

  Raises:
    UserError: it is missing, empty, or cannot be read; or see the classes.
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
  """Whether a file that begins so is a GIF or an APNG, which FFmpeg reads as videos."""
  header = read_header(begin)
  if header is None:
    return False
  return header.kind == "GIF" or (header.kind == "PNG" and header.pictures > 1)
