"""Reads clips of releases whole, and checks them, for a builder to write."""

from __future__ import annotations

import pathlib
from fractions import Fraction

import numpy as np

from vsr_jax import image_headers, images
from vsr_jax.data_prep.builders.releases import ReleasedClip, TextLandmarks, read_landmarks
from vsr_jax.data_prep.clip import Clip
from vsr_jax.data_prep.folders import BadClip, FileStream
from vsr_jax.errors import UserError
from vsr_jax.guards import is_name
from vsr_jax.ops.resize import resize_bicubic


def verified_size(data: bytes, label: object) -> tuple[int, int]:
  """Reads the (height, width) of an encoded frame, and checks that it is undamaged.

  For a PNG every chunk's checksum is verified, which is far cheaper than decoding
  it; a JPEG, which has none, is decoded.

  Args:
    data: the file.
    label: the file's name for the error.

  Raises:
    BadClip: the frame is damaged or neither PNG nor JPEG.
  """
  header = image_headers.read_header(data)
  if header is None or header.kind not in ("PNG", "JPEG"):
    raise BadClip(f"{label} is damaged or neither PNG nor JPEG")
  if fault := image_headers.damage(data):
    raise BadClip(f"{label} {fault}")
  try:
    images.check_header(header, label)
    if header.kind == "JPEG":
      images.decode_image(data, label)
  except UserError as e:
    raise BadClip(str(e)) from e
  return images.image_size(data, label)


def read_clip(clip: ReleasedClip) -> Clip:
  """Reads a clip's parts, checks that they belong together, and makes the derived streams.

  Returns:
    The clip, with its encoded frames in memory, unchanged; derived streams are encoded anew.

  Raises:
    BadClip: streams of unequal length or of other frames, frames of several sizes, a damaged
      frame, or landmarks that do not fit.
  """
  _check_names(clip)
  frames, sizes = {}, {}
  for stream, listed in clip.streams.items():
    frames[stream], sizes[stream] = _read_stream(listed)
  for stream, size in clip.size.items():
    if sizes[stream] != size:
      raise BadClip(
        f"{clip.streams[stream]}: {_size_text(sizes[stream])} instead of {_size_text(size)} pixels"
      )
  for (large, small), ratio in clip.ratios.items():
    if sizes[large] != tuple(ratio * side for side in sizes[small]):
      raise BadClip(
        f"{clip.streams[large]}: frames of {_size_text(sizes[large])}, which are not {ratio} times "
        f"the {_size_text(sizes[small])} of {clip.streams[small]}"
      )
  for stream, (source, factor) in clip.derived.items():
    frames[stream] = [_reduce(data, factor) for data in frames[source]]
    height, width = sizes[source]
    sizes[stream] = -(-height // factor), -(-width // factor)
  rate, points = clip.rate, np.zeros((0, 5, 2), np.float32)
  first = next(iter(clip.streams.values()))
  if clip.landmarks:
    found_rate, points = read_landmarks(TextLandmarks(*clip.landmarks, first.names))
    rate = found_rate or clip.rate
  kept = clip.kept or (*clip.streams, *clip.derived)
  streams = {stream: frames[stream] for stream in kept}
  return Clip(clip.name, len(first), streams, rate, {s: sizes[s] for s in kept}, points)


def _check_names(clip: ReleasedClip) -> None:
  if not (is_name(clip.name) and is_name(f"{clip.name}.array_record") and clip.name.isprintable()):
    raise BadClip(f"{clip.name[:80]!r} cannot be the name of files")
  first, *others = clip.streams.values()
  for other in others:
    if len(other.names) != len(first.names):
      raise BadClip(f"{first} has {len(first.names)} frames, {other} {len(other.names)}")
    for one, two in zip(first.names, other.names, strict=True):
      if pathlib.PurePath(one).stem != pathlib.PurePath(two).stem:
        raise BadClip(f"{first} has a frame {one} where {other} has {two}")
  if clip.length is not None and len(first.names) != clip.length:
    raise BadClip(f"{first} has {len(first.names)} frames instead of {clip.length}")
  if not first.names:
    raise BadClip(f"{first} has no frames")


def _read_stream(stream: FileStream) -> tuple[list[bytes], tuple[int, int]]:
  frames: list[bytes] = []
  size: tuple[int, int] | None = None
  for i, data in enumerate(stream):
    path = stream.path(i)
    found = verified_size(data, path)
    if size is not None and found != size:
      raise BadClip(
        f"{path} has {_size_text(found)} pixels, the frames before it {_size_text(size)}"
      )
    size = found
    frames.append(data)
  assert size is not None  # `_check_names` found frames
  return frames, size


def _size_text(size: tuple[int, int]) -> str:
  return f"{size[1]}x{size[0]}"


def _reduce(data: bytes, factor: int) -> bytes:
  image = images.decode_image(data, "a frame")
  return images.encode_image(resize_bicubic(image, Fraction(1, factor)))
