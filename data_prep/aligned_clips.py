"""Writes clip sets (see `clip_set.py`) of aligned faces: sharp frames, and landmarks by frame."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vsr_jax import files
from vsr_jax.data_prep import clip_set, meta_info
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.guards import check_within, is_name, remove_within
from vsr_jax.images import encode_image
from vsr_jax.locks import locked


class Origin(NamedTuple):
  """What a clip is made from, which tells whether it has to be made again.

  Attributes:
    name: the clip's.
    path: the picture or video, absolute.
    settings: of the command that makes it; whatever JSON can hold.
  """

  name: str
  path: str
  settings: dict[str, Any]


@contextlib.contextmanager
def writing(out: pathlib.Path) -> Iterator[list[dict[str, Any]]]:
  """A context in which `add` writes clips into a set; gives the entries of those there already.

  Args:
    out: the set's folder; made if it is missing.

  Raises:
    UserError: the folder cannot be written, another run is writing there, or it is another set.
  """
  for folder in (SHARP, meta_info.FOLDER):  # in these clips are replaced
    check_within(out, out / folder)
  files.check_folder(out)
  with locked(out):
    entries = clip_set.read_finished(out)
    if other := [entry["name"] for entry in entries if not entry.get("aligned")]:
      raise UserError(f"{out}: clip {other[0]} is no aligned face; use another folder")
    for folder in (SHARP, meta_info.FOLDER):
      files.make_folder(out / folder)
      files.remove_left(out / folder)
    yield entries


def missing(
  out: pathlib.Path, entries: list[dict[str, Any]], origins: Iterable[Origin]
) -> list[Origin]:
  """The origins of which a set has no clip yet, or one made with other settings.

  Raises:
    UserError: a name cannot be that of a clip or comes twice, or the set has a clip of another
      source under it.
  """
  found: dict[str, Origin] = {}
  for origin in origins:
    if not is_name(f"{origin.name}.txt"):
      raise UserError(f"{origin.path}: its name cannot be that of a clip; rename it")
    if origin.name in found:
      other = found[origin.name].path
      raise UserError(f"{origin.path}: named like {other}; rename one, clips need unique names")
    for entry in entries:
      clip_set.check_origin(out, entry["name"], origin._asdict(), entry["origin"])
    found[origin.name] = origin
  done = [entry["origin"] for entry in entries]
  return [origin for origin in found.values() if origin._asdict() not in done]


def add(
  out: pathlib.Path,
  entries: list[dict[str, Any]],
  origin: Origin,
  frames: Iterable[np.ndarray],
  landmarks: np.ndarray,
  rate: float,
) -> None:
  """Writes a clip, whole or not at all, in a context of `writing`.

  Args:
    out: the set's folder.
    entries: those of the set, to which the clip's is added, replacing an older one.
    origin: the clip's.
    frames: t of uint8 RGB [n n 3].
    landmarks: [t 5 2], (x, y) in pixels of the frames.
    rate: frames per second; 0 if unknown.

  Raises:
    ValueError: there are no frames, or not as many as landmarks.
    OSError: the clip cannot be written.
  """
  target = out / SHARP / origin.name
  part = pathlib.Path(files.part_name(target))
  names, height, width = [], 0, 0
  try:
    part.mkdir()
    for image in frames:
      names.append(f"{len(names):08d}.png")
      height, width = image.shape[:2]
      with files.naming(part / names[-1]):
        (part / names[-1]).write_bytes(encode_image(image))
    if not names:
      raise ValueError(f"clip {origin.name} has no frames")
    points = dict(zip(names, landmarks, strict=True))
    entry = {
      "name": origin.name,
      "frames": len(names),
      "rate": rate,
      "height": height,
      "width": width,
      "aligned": True,
      "origin": origin._asdict(),
    }
    _remove_older(out, entries, origin.name)
    os.replace(part, target)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise
  write_whole(out / meta_info.FOLDER / f"{origin.name}.txt", meta_info.format_clip(points, rate))
  entries.append(entry)
  entries.sort(key=lambda entry: entry["name"])
  clip_set.write_index(out, entries)


def _remove_older(out: pathlib.Path, entries: list[dict[str, Any]], name: str) -> None:
  """Takes a clip out of the index first, then removes its frames, even if no index lists it."""
  kept = [entry for entry in entries if entry["name"] != name]
  if len(kept) < len(entries):
    entries[:] = kept
    clip_set.write_index(out, entries)
  remove_within(out, out / SHARP / name)
