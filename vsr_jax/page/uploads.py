"""What visitors of the page give: clips, and choices that become options of the restore commands.

Nothing that a visitor sends becomes a path, a name of a file or the text of an option: clips get
names of ours, and choices are looked up in what is offered.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from vsr_jax import files, images, video
from vsr_jax.errors import UserError
from vsr_jax.image_headers import read_header

AUTOMATIC = "automatic"
TILES = (AUTOMATIC, "64", "96", "128", "192", "256")
FACES = ("largest", "all")
_FILTER = "lanczos"
# What enlarges the background in KEEP's restore command, which finds them in the same way.
BACKGROUNDS = (
  _FILTER,
  "realesrgan",
  *sorted(metadata.entry_points(group="vsr_jax.enlargers").names),
)
LARGEST_SCALE = 4.0

# What errors call the file, too.
_CLIP, _PICTURE = "the uploaded file", "the uploaded picture.png"
_FIRST = "first.jpg"


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a visitor may ask for.

  Attributes:
    megabytes: an upload's size.
    seconds: the length of what is restored at once.
    pixels: in a frame of an upload.
    minutes: how long a job may take.
    gigabytes: the memory that a job may take.
    waiting: jobs that wait for the one that runs.
    kept: minutes after which uploads and results are deleted.
  """

  megabytes: float = 100
  seconds: float = 30
  pixels: int = 1920 * 1080
  minutes: float = 60
  gigabytes: float = 16
  waiting: int = 8
  kept: float = 60


@dataclasses.dataclass(frozen=True)
class Upload:
  """A clip or picture that a visitor gave.

  Attributes:
    folder: its own, with the file and a picture of its first frame in it.
    name: of the file.
    info: what it is.
  """

  folder: pathlib.Path
  name: str
  info: video.VideoInfo

  @property
  def first(self) -> str:
    """The path of the picture."""
    return str(self.folder / _FIRST)

  @property
  def seconds(self) -> float | None:
    """How long the clip is, by its header; None for a picture, or if it does not say."""
    count = None if self.info.is_folder else self.info.frame_count
    return None if count is None else float(count / self.info.frame_rate)

  def describe(self) -> str:
    """The clip in a line."""
    size = f"{self.info.width}x{self.info.height}"
    if self.info.is_folder:
      return f"a picture of {size}"
    parts = [size, f"{float(self.info.frame_rate):.4g} frames/s"]
    if self.seconds is not None:
      parts += [f"{self.info.frame_count} frames", f"{self.seconds:.1f} s"]
    return ", ".join([*parts, "with sound" if self.info.has_audio else "without sound"])


def checked(sent: str, root: pathlib.Path) -> pathlib.Path:
  """The path of an upload that a browser names, checked to be one: root/SHA-256/name, a file.

  Raises:
    UserError: it is something else.
  """
  path = pathlib.Path(os.path.realpath(sent))
  is_place = re.fullmatch(r"[0-9a-f]{64}", path.parent.name) and path.is_file()
  if not is_place or path.parent.parent != pathlib.Path(os.path.realpath(root)):
    raise UserError("the file did not arrive; drop it anew")
  return path


def take_upload(path: pathlib.Path, root: pathlib.Path, limits: Limits) -> Upload:
  """Copies an upload into a folder of its own, under a name of ours, and looks into it.

  Args:
    path: where the server has put it.
    root: the folder that gets the new one.
    limits: what it may be.

  Raises:
    UserError: it is too large, or no clip or picture that can be read; nothing is left of the copy.
  """
  size = path.stat().st_size / 1e6
  if size > limits.megabytes:
    raise UserError(
      f"the file has {size:.1f} MB, and this page takes {limits.megabytes:g}; give a smaller one"
    )
  with path.open("rb") as file:
    header = read_header(file.read(2**20))
  is_picture = header is not None and header.kind != "GIF" and header.pictures == 1
  name = _PICTURE if is_picture else _CLIP
  folder = root / f"clip_{secrets.token_hex(16)}"
  folder.mkdir(mode=0o700)
  try:
    shutil.copyfile(path, folder / name)
    with video.open_reader(str(folder / name), max_pixels=limits.pixels) as reader:
      first = images.encode_image(next(reader).image, ".jpg")
      (folder / _FIRST).write_bytes(first)
      return Upload(folder, name, reader.info)
  except BaseException as e:
    files.remove(str(folder))
    if isinstance(e, UserError):  # it names the file with the folder, which the visitor never saw
      raise UserError(str(e).replace(f"{folder}{os.sep}", "")) from e
    raise


def restore_options(
  system: str, chosen: Mapping[str, Any], weights: Mapping[str, str | None]
) -> list[str]:
  """The options of a system's restore command for what a visitor chose.

  Args:
    system: "fmanet" or "keep".
    chosen: by name: weights, tile and deinterlace; for KEEP also faces, strength, scale, background
      and skip_sharp.
    weights: the checkpoints that are offered, by name; None is the one that ships.

  Raises:
    UserError: a choice is none of those offered.
  """
  checkpoint = weights[_offered(chosen["weights"], weights, "weights")]
  options = [f"--checkpoint={checkpoint}"] if checkpoint else []
  options += ["--deinterlace"] if chosen["deinterlace"] is True else []
  tile = _offered(chosen["tile"], TILES, "tile")
  if system == "fmanet":
    return options + ([] if tile == AUTOMATIC else [f"--tile={tile}"])
  options.append(f"--faces={_offered(chosen['faces'], FACES, 'faces')}")
  options.append(f"--fidelity={_between(chosen['strength'], 0, 1, 'strength'):g}")
  options.append(f"--upscale={_between(chosen['scale'], 1, LARGEST_SCALE, 'scale'):g}")
  options += ["--skip-sharp"] if chosen["skip_sharp"] is True else []
  model = _offered(chosen["background"], BACKGROUNDS, "background")
  options.append(f"--background-model={model}")
  if model != _FILTER and tile != AUTOMATIC:
    options.append(f"--background-tile={tile}")
  return options


def frame_options(upload: Upload, start: Any, stop: Any, limits: Limits) -> list[str]:
  """The options for the part of a clip from second `start` to second `stop`.

  Raises:
    UserError: it is longer than a visitor may ask for, or empty.
  """
  options = [f"--max-pixels={limits.pixels}"]
  if upload.info.is_folder:
    return options
  first, last = _between(start, 0, 1e6, "from"), _between(stop, 0, 1e6, "to")
  if not first < last:
    raise UserError(f"from {first:g} s to {last:g} s: holds no frame; the end must be later")
  if last - first > limits.seconds + 1e-6:
    raise UserError(
      f"from {first:g} s to {last:g} s: this page restores at most {limits.seconds:g} s at once; "
      "take a shorter part"
    )
  rate = float(upload.info.frame_rate)
  begin = math.floor(first * rate + 1e-3)
  return [*options, f"--frames={begin}:{max(begin + 1, math.ceil(last * rate - 1e-3))}"]


def _offered(value: Any, offered: Sequence[str] | Mapping[str, Any], what: str) -> str:
  if not isinstance(value, str) or value not in offered:
    raise UserError(f"{what}: this is not offered; choose one of {', '.join(offered)}")
  return value


def _between(value: Any, least: float, most: float, what: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
    raise UserError(f"{what}: give a number from {least:g} to {most:g}")
  return float(value)
