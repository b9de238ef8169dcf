"""Damaged and hostile built data sets: one line that names the file, in bounded memory and time."""

from __future__ import annotations

import itertools
import json
import struct

import numpy as np
import pytest

from tests.data_prep import built_sets
from tests.data_prep.built_sets import LENGTHS, STREAMS, example, features_of, message, mutants
from vsr_jax.data_prep import array_record, built, show
from vsr_jax.data_prep.clip import check_frames
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError

SHARD = built.shard_name("reds", "train", 0, 1)
_versions = itertools.count(2)


@pytest.fixture
def folder(tmp_path):
  place = tmp_path / "reds" / "x4" / "1.0.0"
  built_sets.write_built(place)
  return place


def read_all(folder):
  """What trainers, evaluators and `show` read; records that were read before are read anew."""
  array_record._records.cache_clear()
  array_record._open.cache_clear()
  built._read.cache_clear()
  source = built.Records(folder, "train")
  found = [source[i] for i in range(len(source))]
  for clip in found:
    for stream, length in zip(STREAMS, itertools.repeat(LENGTHS[clip.name]), strict=False):
      clip.decode_all(stream, range(length))
  opened = open_clips(folder)
  for clip in opened.clips:
    check_frames(clip)
  show.print_statistics(opened, "train")
  show.sheet(found)
  return found


def test_what_was_written_is_read(folder):
  for clip, (name, length) in zip(read_all(folder), LENGTHS.items(), strict=True):
    features = features_of(name, length)
    assert (clip.name, clip.length, clip.rate) == (name, length, 24)
    np.testing.assert_array_equal(np.ravel(clip.landmarks), features["landmarks"])
    assert {stream: list(clip.streams[stream]) for stream in STREAMS} == {
      stream: features[stream] for stream in STREAMS
    }


@pytest.mark.parametrize("name", [SHARD, built.INDEX, built.INFO])
def test_damage_is_told_or_does_not_matter(folder, name):
  good = [np.array(clip.landmarks) for clip in read_all(folder)]
  data = (folder / name).read_bytes()
  refused = 0
  used = data if name != SHARD else data[:60_000]  # what lies behind is an index and zeros
  for damaged in mutants(used, 60):
    (folder / name).write_bytes(damaged + data[len(used) :])
    try:
      found = read_all(folder)
    except UserError:
      refused += 1
    else:
      for landmarks, clip in zip(good, found, strict=True):
        np.testing.assert_array_equal(landmarks, clip.landmarks)
  assert refused > 40


def rebuilt(folder, examples):
  place = folder.parent / f"{next(_versions)}.0.0"
  built_sets.write_built(place, examples)
  return place


def changed(**changes):
  features = {**features_of("alley", 4), **changes}
  return example({name: x for name, x in features.items() if x is not None})


HUGE = b"\xff" * 9 + b"\x01"


@pytest.mark.parametrize(
  "record",
  [
    b"",
    b"\0" * 1000,
    b"\xff" * 1000,
    b"no example at all",
    b"\x0a" + HUGE + b"x",
    b"\x0a\xff",
    b"\x0a" + b"\x80" * 30,
    b"".join(message(1, b"") for _ in range(100_000)),
    message(1, b"".join(message(1, b"") for _ in range(100_000))),
    message(1, message(1, message(1, b"name"))),
    message(1, message(1, message(1, b"n" * 100_000) + message(2, b""))),
    changed(name=[b"beach"]),
    changed(name=[b"\xff\xfe"]),
    changed(name=[]),
    changed(name=None),
    changed(fps=np.float32([])),
    changed(fps=np.float32([25])),
    changed(num_frames=np.int64([5])),
    changed(num_frames=[b"4"]),
    changed(landmarks=np.float32(np.arange(39))),
    changed(landmarks=np.float32(np.arange(30))),
    changed(landmarks=np.full(40, np.nan, np.float32)),
    changed(landmarks=np.zeros(40, np.float32)),
    changed(landmarks=np.arange(40)),
    changed(sharp=[]),
    changed(sharp=[b""] * 4),
    changed(sharp=[b"x"] * 100_000),
    changed(sharp=features_of("alley", 4)["blur_bicubic"]),
    changed(blur_bicubic=[b"no image"] * 4),
    changed(blur_bicubic=[*features_of("alley", 4)["blur_bicubic"][:3], built_sets.frame(0, 2)]),
    changed(blur_bicubic=np.arange(4)),
    changed(blur_bicubic=None),
  ],
  ids=lambda record: f"{len(record)} bytes",
)
def test_a_record_that_is_not_the_clip_is_refused(folder, record):
  beach = example(features_of("beach", 3))
  with pytest.raises(UserError, match=r"alley|reds-train"):
    read_all(rebuilt(folder, [record, beach]))


@pytest.mark.parametrize("size", [2**62, 2**40, 10**9, 0, 3])
def test_a_chunk_that_tells_a_wrong_size_is_refused(folder, size):
  path = folder / SHARD
  data = bytearray(path.read_bytes())
  data[64 + 8 : 64 + 16] = struct.pack("<Q", size)
  path.write_bytes(data)
  with pytest.raises(UserError, match=r"reds-train.*; make it again"):
    read_all(folder)


def test_shards_of_other_lengths_are_refused(folder):
  info = json.loads((folder / built.INFO).read_text())
  for lengths in (["3"], ["999999"], ["-1"], ["x"], [2], ["9" * 5000], []):
    info["splits"][0]["shardLengths"] = lengths
    (folder / built.INFO).write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"(dataset_info|clips)\.json: "):
      built.Records(folder, "train")


@pytest.mark.parametrize("name", ["../x4", "/etc/x", "reds/x4/1.0.0", "", "..", "a\0b"])
def test_a_name_that_is_no_data_set_is_refused(tmp_path, name):
  with pytest.raises(UserError, match="not the name of a data set"):
    built.find_folder(name, tmp_path)
