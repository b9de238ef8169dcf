"""Parts of records: equal to what the libraries that define the formats read."""

from __future__ import annotations

import errno
import pathlib

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_jax import files
from vsr_jax.data_prep import array_record
from vsr_jax.data_prep.array_record import Span
from vsr_jax.errors import UserError

BLOCK = 1 << 16


def write(path, records, options=array_record.WRITER_OPTIONS):
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  for data in records:
    writer.write(data)
  writer.close()
  return str(path)


# Sizes about a block's, where headers fall between and into the parts of a chunk.
SIZES = st.one_of(
  st.integers(0, 200),
  st.integers(BLOCK - 200, BLOCK + 200),
  st.integers(2 * BLOCK - 200, 2 * BLOCK + 200),
)


@settings(max_examples=60)
@given(sizes=st.lists(SIZES, min_size=1, max_size=5), seed=st.integers(0, 100))
def test_records_are_those_written(tmp_path_factory, sizes, seed):
  rng = np.random.default_rng(seed)
  records = [rng.bytes(size) for size in sizes]
  path = write(tmp_path_factory.mktemp("records") / "x.array_record", records)
  reader = array_record_module.ArrayRecordReader(path)
  for i, data in enumerate(records):
    assert array_record.record(path, i).read() == data
    assert reader.read([i])[0] == data
  reader.close()


@pytest.fixture(scope="module")
def big(tmp_path_factory):
  data = np.random.default_rng(0).bytes(5 * BLOCK)
  folder = tmp_path_factory.mktemp("big")
  return data, array_record.record(write(folder / "x.array_record", [b"first", data]), 1)


@settings(max_examples=100)
@given(
  start=st.integers(0, 5 * BLOCK), size=st.one_of(st.integers(0, 99), st.integers(0, 4 * BLOCK))
)
def test_any_part_of_a_record(big, start, size):
  data, span = big
  size = min(size, len(data) - start)
  part = Span(span.path, array_record._advance(span.start, start), size)
  assert part.read() == data[start : start + size]


def test_more_records_than_there_are(tmp_path):
  path = write(tmp_path / "x.array_record", [b"one", b"two"])
  with pytest.raises(UserError, match=r"x\.array_record: .*make it again"):
    array_record.record(path, 99)


def test_a_file_written_otherwise_is_refused(tmp_path):
  path = write(tmp_path / "x.array_record", [b"abc" * 1000], "group_size:1")  # compressed
  with pytest.raises(UserError, match=r"not written by data_prep; make"):
    array_record.record(path, 0)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch, size):
  path = tmp_path / "x.array_record"
  path.write_bytes(b"before")
  (tmp_path / "x.part").symlink_to("/dev/full")
  monkeypatch.setattr(files, "part_name", lambda path: str(tmp_path / "x.part"))

  def fill():
    with array_record.writing(str(path)) as add:
      add(bytes(size))
      add(bytes(size))

  with pytest.raises(OSError, match="No space left") as error:
    fill()
  assert error.value.errno == errno.ENOSPC
  assert [p.name for p in tmp_path.iterdir()] == ["x.array_record"]
  assert path.read_bytes() == b"before"


def test_a_file_cut_short_is_refused(tmp_path):
  path = write(tmp_path / "x.array_record", [b"abc" * 100_000])
  whole = (tmp_path / "x.array_record").read_bytes()
  (tmp_path / "short.array_record").write_bytes(whole[:150_000])
  span = array_record.record(str(tmp_path / "short.array_record"), 0)
  with pytest.raises(UserError, match="cut short"):
    span.read()
  assert array_record.record(path, 0).read() == b"abc" * 100_000


def test_numbers_and_byte_strings_of_an_example(tmp_path):
  import tensorflow as tf  # takes seconds

  numbers = [0, 1, 127, 128, 300, 2**40, -1, -(2**63)]
  values = {
    "ints": tf.train.Feature(int64_list=tf.train.Int64List(value=numbers)),
    "floats": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, -3.25])),
    "texts": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"", b"ab\0", b"c" * 70_000])),
    "none": tf.train.Feature(bytes_list=tf.train.BytesList(value=[])),
  }
  example = tf.train.Example(features=tf.train.Features(feature=values))
  path = write(tmp_path / "x.array_record", [b"other", example.SerializeToString()])
  parsed = array_record.parse_example(array_record.record(path, 1))
  assert parsed["ints"].tolist() == numbers
  assert parsed["floats"].tolist() == [0.5, -3.25]
  assert [span.read() for span in parsed["texts"]] == [b"", b"ab\0", b"c" * 70_000]
  assert parsed["none"] == []
