"""A built data set made by bytes: what `data_prep.build` writes, without TensorFlow."""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vsr_jax.data_prep import array_record, built
from vsr_jax.data_prep.clip import Clip
from vsr_jax.images import encode_image

STREAMS = ("sharp", "sharp_bicubic", "blur_bicubic")
LENGTHS = {"alley": 4, "beach": 3}  # frames by clip
H, W = 24, 32


def varint(number: int) -> bytes:
  number %= 1 << 64
  parts = []
  while number > 127:
    parts.append(number & 127 | 128)
    number >>= 7
  return bytes([*parts, number])


def message(field: int, content: bytes) -> bytes:
  """A field of a protocol buffer that has a length."""
  return bytes([field << 3 | 2]) + varint(len(content)) + content


def example(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
  """A serialized tf.train.Example of byte strings, floats and integers."""
  entries = b""
  for name, values in features.items():
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
      feature = message(2, message(1, values.astype("<f4").tobytes()))
    elif isinstance(values, np.ndarray):
      feature = message(3, message(1, b"".join(map(varint, values.tolist()))))
    else:
      feature = message(1, b"".join(message(1, value) for value in values))
    entries += message(1, message(1, name.encode()) + message(2, feature))
  return message(1, entries)


def frame(seed: int, scale: int) -> bytes:
  y, x = np.mgrid[: scale * H, : scale * W]
  image = np.stack([x + seed, y, x + y], -1).astype(np.uint8)
  return encode_image(image)


def features_of(name: str, length: int) -> dict[str, Sequence[bytes] | np.ndarray]:
  scales = {"sharp": 4, "sharp_bicubic": 1, "blur_bicubic": 1}
  return {
    "name": [name.encode()],
    "fps": np.float32([24]),
    "num_frames": np.int64([length]),
    "landmarks": np.arange(length * 10, dtype=np.float32),
    **{stream: [frame(i, scales[stream]) for i in range(length)] for stream in STREAMS},
  }


def write_built(folder: pathlib.Path, examples: Sequence[bytes] | None = None) -> None:
  """Writes a data set of one shard.

  Args:
    folder: such as data/reds/x4/1.0.0; it is made.
    examples: the records; those of `LENGTHS` unless given.
  """
  if examples is None:
    examples = [example(features_of(name, length)) for name, length in LENGTHS.items()]
  sizes = {"sharp": [4 * H, 4 * W], "sharp_bicubic": [H, W], "blur_bicubic": [H, W]}
  clips = [
    {
      "name": name,
      "frames": length,
      "fps": 24.0,
      "sizes": sizes,
      "bytes": 1000,
      "landmarks_crc32": zlib.crc32(np.arange(length * 10, dtype=np.float32)),
    }
    for name, length in LENGTHS.items()
  ]
  _write(folder, "train", examples, clips, [])


def write_built_clips(
  folder: pathlib.Path,
  clips: Sequence[Clip],
  split: str = "train",
  skipped: Sequence[Mapping[str, str]] = (),
) -> None:
  """Writes a data set of one shard that holds other clips, without landmarks."""
  examples, entries = [], []
  for clip in clips:
    features = {
      "name": [clip.name.encode()],
      "fps": np.float32([24]),
      "num_frames": np.int64([clip.length]),
      "landmarks": np.zeros(0, np.float32),
      **{stream: list(clip.streams[stream]) for stream in STREAMS},
    }
    examples.append(example(features))
    sizes = {stream: clip.sizes[stream] for stream in STREAMS}
    entry = {"name": clip.name, "frames": clip.length, "fps": 24.0, "sizes": sizes, "bytes": 1000}
    entries.append(entry)
  _write(folder, split, examples, entries, skipped)


def _write(
  folder: pathlib.Path,
  split: str,
  examples: Sequence[bytes],
  clips: Sequence[Mapping[str, Any]],
  skipped: Sequence[Mapping[str, str]],
) -> None:
  folder.mkdir(parents=True)
  with array_record.writing(str(folder / built.shard_name("reds", split, 0, 1))) as write:
    for data in examples:
      write(data)
  index = {split: {"clips": clips, "skipped": skipped, "streams": STREAMS}}
  (folder / built.INDEX).write_text(json.dumps(index))
  splits = [{"name": split, "shardLengths": [str(len(clips))], "numBytes": "1000"}]
  (folder / built.INFO).write_text(json.dumps({"name": "reds", "splits": splits}))


def mutants(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
  """A file's content damaged in so many ways: flipped bits, other bytes, cut, zeroed, doubled."""
  for i in range(count):
    rng = np.random.default_rng((seed, i))
    damaged, start = bytearray(data), int(rng.integers(len(data)))
    size = int(rng.integers(1, 64))
    match i % 5:
      case 0:
        damaged[start] ^= 1 << int(rng.integers(8))
      case 1:
        damaged[start : start + size] = rng.bytes(len(damaged[start : start + size]))
      case 2:
        del damaged[start:]
      case 3:
        damaged[start : start + 50 * size] = bytes(len(damaged[start : start + 50 * size]))
      case 4:
        damaged[start:start] = damaged[start : start + size]
    yield bytes(damaged)
