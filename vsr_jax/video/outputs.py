"""Checks where a clip may be written, and finds the kind of output that a name asks for."""

from __future__ import annotations

import os

from vsr_jax import files
from vsr_jax.errors import UserError
from vsr_jax.paths import local
from vsr_jax.video import frames_folder, spool
from vsr_jax.video.encode import CONTAINERS

_IMAGE_OUTPUTS = (".png", ".jpg", ".jpeg")


def check_output(path: str, source: str | None = None) -> None:
  """Checks, before any work is done, that a clip can be written.

  Args:
    path: the output, see `open_writer`.
    source: the clip that it is made from; None to leave out that check.

  Raises:
    UserError: the extension is unknown, the folder to write in does not exist or cannot be written,
      the output is the source or contains it, or what is there already must not be replaced: a
      folder with other files than frames of an earlier run, something that is no file, or what
      belongs to another user.
  """
  local(path)
  if path == spool.STDIN:
    raise UserError("-: frames are not written to standard output; name a file or a folder")
  suffix = output_form(path)
  target = os.path.realpath(path)
  parent = os.path.dirname(target)
  files.check_place(path)
  if source is not None:
    origin = os.path.realpath(source)
    both = os.path.exists(source) and os.path.exists(target)
    same = both and os.path.samefile(source, target)
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
  return output_form(path) in _IMAGE_OUTPUTS


def output_form(path: str) -> str:
  """The extension of a file to write, in lower case, or "" for a folder of frames.

  Raises:
    UserError: the extension is unknown.
  """
  suffix = os.path.splitext(path)[1].lower()
  if path.endswith(("/", os.sep)) or os.path.isdir(path) or not suffix:
    return ""
  if suffix not in (*CONTAINERS, *_IMAGE_OUTPUTS):
    known = ", ".join((*CONTAINERS, *_IMAGE_OUTPUTS))
    raise UserError(
      f"{path}: unknown kind of output {suffix}; use {known}, or end a folder's name with /"
    )
  return suffix
