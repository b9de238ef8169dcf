"""The text files that go with VFHQ: which clips there are, and five landmarks by frame.

  global_meta_info.txt     one line per clip: CLIP/FRAMES
  meta_info/CLIP.txt       one line per frame: FRAME.png x1 y1 x2 y2 x3 y3 x4 y4 x5 y5

The points are the eyes' centres, the nose's tip and the mouth's corners, left before right as
seen, in pixels of the 512x512 frame. Lines of a clip's file that do not begin with 0 are notes,
such as `FPS: 25.0`, which gives the rate. This is the format that KEEP was released with.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.guards import is_name, read_text

FOLDER, GLOBAL = "meta_info", "global_meta_info.txt"
LIMIT = 64 << 20  # bytes of a file, enough for half a million frames
_LARGEST = 1e6  # coordinate or rate
_DIGITS = 8  # a clip's number of frames has fewer digits
_SHOWN = 80  # characters of a wrong line that an error shows, at most


class ClipMeta(NamedTuple):
  """A clip's file: frames per second (0 if not stated), float32 [5 2] by frame's file name."""

  fps: float
  landmarks: dict[str, np.ndarray]


def read_clip(path: pathlib.Path) -> ClipMeta:
  """Reads `meta_info/CLIP.txt`; see `parse_clip`.

  Raises:
    UserError: the file is no such text.
    OSError: the file cannot be read.
  """
  return parse_clip(read_text(path, LIMIT), path)


def parse_clip(text: str, label: object) -> ClipMeta:
  """Reads the text of `meta_info/CLIP.txt`.

  Args:
    text: the whole file.
    label: the file's name for errors.

  Raises:
    UserError: a line is wrong, or a frame comes twice; the line's number is named.
  """
  fps, landmarks = 0.0, {}
  for number, line in enumerate(text.splitlines(), 1):
    words = line.split()
    if not line.startswith("0"):
      if words and words[0].upper().startswith("FPS"):
        fps = max(0.0, _number(words[-1], f"{label}:{number}"))
      continue
    if len(words) != 11:
      raise UserError(
        f"{label}:{number}: {len(words)} words instead of a frame's name and 10 coordinates; "
        "get or make the file again"
      )
    if words[0] in landmarks:
      frame = words[0][:_SHOWN]
      raise UserError(f"{label}:{number}: frame {frame} comes twice; get or make the file again")
    points = [_number(word, f"{label}:{number}") for word in words[1:]]
    landmarks[words[0]] = np.array(points, np.float32).reshape(5, 2)
  return ClipMeta(fps, landmarks)


def _number(word: str, label: str) -> float:
  try:
    value = float(word)
  except ValueError:
    value = float("nan")
  if not abs(value) < _LARGEST:
    raise UserError(f"{label}: {word[:_SHOWN]!r} is not a number; get or make the file again")
  return value


def format_clip(landmarks: Mapping[str, np.ndarray], fps: float = 0) -> str:
  """The text of `meta_info/CLIP.txt`; `parse_clip` gives the values back, to 0.001 pixels.

  Args:
    landmarks: float32 [5 2], (x, y) in pixels, by frame's file name, which begins with 0.
    fps: frames per second, noted in the first line unless it is 0.
  """
  lines = [f"FPS: {fps:g}"] if fps else []
  for name, points in landmarks.items():
    lines.append(" ".join([name, *(f"{value:.3f}" for value in np.ravel(points))]))
  return "\n".join(lines) + "\n"


def read_global(path: pathlib.Path) -> dict[str, int]:
  """Reads `global_meta_info.txt`: number of frames by clip.

  Raises:
    UserError: a line is wrong, or a clip comes twice.
  """
  lengths = {}
  for number, line in enumerate(read_text(path, LIMIT).splitlines(), 1):
    if not line.strip():
      continue
    name, _, length = line.strip().rpartition("/")
    name = name.rpartition("/")[2]
    if not is_name(name) or not (length.isdecimal() and len(length) < _DIGITS):
      shown = line.strip()[:_SHOWN]
      raise UserError(f"{path}:{number}: {shown!r} is not CLIP/FRAMES; mend or remove it")
    if name in lengths:
      raise UserError(f"{path}:{number}: clip {name} comes twice; remove one of the lines")
    lengths[name] = int(length)
  return lengths
