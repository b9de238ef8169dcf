"""The file: a zip archive of programs, weights and a manifest.

manifest.json         what the file is, and how its programs run over a clip
weights.safetensors   arrays by name; stored, not compressed
NAME.jax_export       a program, a function of the weights and of its inputs
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax import export

import vsr_jax
from vsr_jax import files, guards, json_files, paths, safetensors_files, torch_files
from vsr_jax.errors import UserError
from vsr_jax.exported import programs

FORMAT = 1
_MANIFEST, _WEIGHTS, _PROGRAM = "manifest.json", "weights.safetensors", "{}.jax_export"
_MAX_MANIFEST, _MAX_PROGRAM, _MAX_PARTS = 2**20, 2**27, 16  # bytes, bytes, number
_DATE = (1980, 1, 1, 0, 0, 0)  # of all parts: equal contents give equal files
_WANTED = "a file that fmanet_jax.export or keep_jax.export wrote"

_SIDE = json_files.integer(1, 2**16)
_WINDOWS = json_files.fields({"height": _SIDE, "width": _SIDE, "scale": _SIDE, "radius": _SIDE})
_RECURSION = json_files.fields(
  {
    "size": _SIDE,
    "window": json_files.integer(2, 1000),
    "look_ahead": json_files.integer(0, 998),
    "attend_first_frame": json_files.truth,
    "causal": json_files.truth,
  }
)
# The programs of a file, by how they run over a clip; see `streams`.
PROGRAMS = {"windows": ("features", "window"), "recursion": ("see", "flow", "gains", "step")}
_FIELDS = json_files.fields(
  {
    "format": json_files.integer(1, FORMAT),
    "system": json_files.text,
    "dtype": json_files.text,
    "platforms": json_files.array(json_files.text, 1, len(programs.PLATFORMS)),
    "versions": json_files.mapping(json_files.text, json_files.text),
  },
  {"windows": _WINDOWS, "recursion": _RECURSION},
)


class Contents(NamedTuple):
  """What a file holds.

  Attributes:
    manifest: see docs/export.md; it has "windows" or "recursion", by how its programs are run.
    programs: by name.
    weights: by name, float32.
  """

  manifest: dict[str, Any]
  programs: dict[str, export.Exported]
  weights: dict[str, np.ndarray]


def write(
  path: str | os.PathLike[str],
  entries: Mapping[str, Any],
  lowered: Mapping[str, export.Exported],
  weights: Mapping[str, np.ndarray],
) -> int:
  """Writes a file.

  Args:
    path: its place; what was there is replaced.
    entries: the manifest's system and dtype, and windows or recursion.
    lowered: programs by name, all for the same platforms.
    weights: arrays by name, float32.

  Returns:
    The file's size in bytes.

  Raises:
    OSError: the file cannot be written; what was there is unchanged.
  """
  versions = {"vsr_jax": vsr_jax.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
  platforms = list(next(iter(lowered.values())).platforms)
  manifest = {"format": FORMAT, **entries, "platforms": platforms, "versions": versions}
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as archive:
    _add(archive, _MANIFEST, json.dumps(manifest, indent=1).encode())
    for name, program in lowered.items():
      _add(archive, _PROGRAM.format(name), program.serialize())
    _add(archive, _WEIGHTS, safetensors_files.encode(weights), zipfile.ZIP_STORED)
  files.write_whole(paths.place(path), content.getvalue())
  return content.tell()


def _add(
  archive: zipfile.ZipFile,
  name: str,
  data: bytes | bytearray,
  compression: int = zipfile.ZIP_DEFLATED,
) -> None:
  info = zipfile.ZipInfo(name, _DATE)
  info.external_attr = 0o644 << 16  # what `unzip` gives it for permissions
  archive.writestr(info, bytes(data), compression)


def read(path: str | os.PathLike[str]) -> Contents:
  """Reads a file, which is not trusted; JAX's backends are not started.

  Raises:
    UserError: it is missing, damaged, something else, or of a newer format; its weights are not
      finite; its programs are for other platforms than it states; or flatbuffers is not installed.
  """
  programs.check_installed()
  with (
    guards.reading(os.fspath(path), "exported file", _WANTED),
    torch_files.open_regular(os.fspath(path)) as file,
    torch_files.open_zip(file) as archive,
  ):
    infos = archive.infolist()
    parts = {info.filename: info for info in infos}
    if _MANIFEST not in parts:
      raise UserError(f"{path}: a zip file of something else; give {_WANTED}")
    if len(parts) < len(infos) or len(infos) > _MAX_PARTS:
      raise ValueError("it has more parts than it can")
    manifest = _check_manifest(path, _part(archive, parts[_MANIFEST], _MAX_MANIFEST))
    (form,) = PROGRAMS.keys() & manifest.keys()
    names = {name: parts.get(_PROGRAM.format(name)) for name in PROGRAMS[form]}
    stored = parts.get(_WEIGHTS)
    if stored is None or None in names.values():
      raise ValueError("a part is missing")
    size = os.fstat(file.fileno()).st_size  # weights are stored, so that they cannot be larger
    weights = safetensors_files.decode(_part(archive, stored, size))
    guards.check_finite(weights, os.fspath(path))
    data = {name: _part(archive, part, _MAX_PROGRAM) for name, part in names.items() if part}
  try:
    contents = Contents(manifest, {name: programs.read(x) for name, x in data.items()}, weights)
  except Exception as e:  # JAX raises any type for what it does not know
    made, reason = (guards.shorten(x, 160) for x in (manifest["versions"].get("jax", "?"), str(e)))
    raise UserError(
      f"{path}: its programs cannot be read ({reason}); they are of jax {made} and this is jax "
      f"{jax.__version__}: export again, or install that one"
    ) from e
  _check_platforms(path, contents)
  return contents


def _check_manifest(path: str | os.PathLike[str], data: bytes) -> dict[str, Any]:
  newer = json_files.parse(data, json_files.fields({"format": json_files.integer(1)}, more=True))
  if newer["format"] > FORMAT:
    raise UserError(
      f"{path}: of format {newer['format']}, and this version of vsr_jax reads up to {FORMAT}; "
      "update it"
    )
  manifest = json_files.parse(data, _FIELDS)
  if len(PROGRAMS.keys() & manifest.keys()) != 1:
    raise ValueError("its manifest does not say how it runs")
  recursion = manifest.get("recursion")
  if recursion and recursion["look_ahead"] >= recursion["window"]:
    raise ValueError("its manifest's look_ahead is not below its window")
  return manifest


def _check_platforms(path: str | os.PathLike[str], contents: Contents) -> None:
  stated = contents.manifest["platforms"]
  for name, program in contents.programs.items():
    if sorted(program.platforms) != sorted(stated):
      found, wanted = (guards.shorten(", ".join(x)) for x in (program.platforms, stated))
      raise UserError(
        f"{path}: its manifest states programs for {wanted}, and {name!r} is for {found}; "
        "export again"
      )


def _part(archive: zipfile.ZipFile, part: zipfile.ZipInfo, limit: int) -> bytes:
  """The bytes of a part, whose CRC-32 `zipfile` checks."""
  if part.file_size > limit:
    raise ValueError(f"its {part.filename[:80]} is larger than it can be")
  return archive.read(part)
