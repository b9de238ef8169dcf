"""Damaged and hostile data sets: one line that names the file, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys

import numpy as np
import pytest

from tests.data_prep.built_sets import mutants
from tests.data_prep.helpers import write_clip_set, write_flow
from vsr_jax.data_prep import array_record, clip_set, flow_store, prepare
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, STREAMS
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError


@pytest.fixture
def labelled(tmp_path):
  """A clip set with labels, within a folder that also has a file of somebody else's."""
  (tmp_path / "outside.array_record").write_bytes(b"precious")
  root = tmp_path / "set"
  write_clip_set(root, {"beach": 5})
  write_flow(root, "beach", 5, 3, 1.0)
  return root


def change(path, edit):
  value = json.loads(path.read_text())
  edit(value)
  path.write_text(json.dumps(value))


@pytest.mark.parametrize(
  "name",
  ["../../outside", "../beach", "/etc/passwd", "beach/../../../outside", "..", "alley", "a\0b"],
)
def test_labels_lie_in_their_folder_under_their_clips_name(labelled, tmp_path, name):
  index = labelled / "flow" / flow_store.INDEX
  name = name.replace("/etc", str(tmp_path))
  change(index, lambda x: x["clips"]["beach"].update(file=f"{name}.array_record"))
  with pytest.raises(UserError, match=r"labels\.json: .*python -m vsr_jax.data_prep\.flow_labels"):
    open_clips(labelled, num_frames=3, need_flow=True)
  with pytest.raises(UserError, match=r"labels\.json: "):
    flow_store.drop_labels(labelled / "flow", "beach")
  assert (tmp_path / "outside.array_record").read_bytes() == b"precious"
  assert (labelled / "flow" / "beach.array_record").exists()
  change(index, lambda x: x.update(clips={name: {**x["clips"]["beach"], "file": name}}))
  with pytest.raises(UserError, match=r"labels\.json: "):
    flow_store.open_labels(labelled / "flow")


@pytest.mark.parametrize("name", ["../../outside", "/etc", "..", "", "a\0b", 3, None])
def test_clips_lie_in_their_set(labelled, name):
  change(labelled / clip_set.INDEX, lambda x: x["clips"][0].update(name=name))
  with pytest.raises(
    UserError, match=r"clips\.json: not the index .* is .*not a (plain name|text without NUL)"
  ):
    open_clips(labelled)


@pytest.mark.parametrize(
  "edit",
  [
    {"frames": -1},
    {"frames": 2.5},
    {"frames": 10**30},
    {"rate": "24"},
    {"rate": 1e999},
    {"height": 0},
    {"origin": 3},
    {"origin": {"name": "../x", "path": "y", "settings": {}}},
    {"other": 1},
  ],
  ids=str,
)
def test_values_of_an_index_are_checked(labelled, edit):
  change(labelled / clip_set.INDEX, lambda x: x["clips"][0].update(edit))
  with pytest.raises(UserError, match=r"clips\.json: not the index of a clip set .*; prepare"):
    clip_set.read_index(labelled)


def run_prepare(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
  prepare.main()


def commit(out):
  """What `prepare` does when a new clip beach is made, with no worker."""
  origin = {"name": "beach", "path": "/films/beach.mp4", "settings": {}}
  beside = out / "beach.part"
  for stream in STREAMS:
    (beside / "beach" / stream).mkdir(parents=True)
  prepare._commit(out, origin, beside, [{"name": "beach", "frames": 1, "origin": origin}], [])


def test_a_new_clip_takes_the_place_of_the_old_one(labelled):
  commit(labelled)
  assert not list((labelled / "sharp" / "beach").iterdir())
  assert not (labelled / "flow" / "beach.array_record").exists()


@pytest.mark.parametrize("folder", ["sharp", "blur_bicubic", "flow"])
def test_nothing_is_removed_through_a_link_that_leads_out(labelled, tmp_path, monkeypatch, folder):
  (labelled / folder).rename(tmp_path / "elsewhere")
  (labelled / folder).symlink_to(tmp_path / "elsewhere")
  before = sorted((tmp_path / "elsewhere").rglob("*"))
  with pytest.raises(UserError, match=f"set/{folder}: a link leads out of .*set"):
    run_prepare(monkeypatch, tmp_path / "film.mp4", "--out", labelled)
  assert open_clips(labelled).clips  # reading through it is the owner's wish
  with pytest.raises(UserError, match="a link leads out"):
    commit(labelled)
  assert [path for path in before if not path.exists()] == []


def test_of_a_linked_clip_the_link_is_removed(labelled, tmp_path):
  clip = labelled / "sharp" / "beach"
  clip.rename(tmp_path / "elsewhere")
  clip.symlink_to(tmp_path / "elsewhere")
  commit(labelled)
  assert not clip.is_symlink()
  assert len(list((tmp_path / "elsewhere").iterdir())) == 5


def test_a_clip_without_origin_is_not_replaced(labelled, tmp_path, monkeypatch):
  with pytest.raises(UserError, match="clip beach has no origin in its index; use another --out"):
    run_prepare(monkeypatch, tmp_path / "film.mp4", "--out", labelled)


def test_a_pipe_is_no_frame(labelled, caplog):
  frame = labelled / "sharp" / "beach" / "00000002.png"
  frame.unlink()
  os.mkfifo(frame)  # opening it would not end
  with pytest.raises(UserError, match="no usable clip"):
    open_clips(labelled)
  assert "00000002.png is no file" in caplog.text


@pytest.mark.parametrize("size", [(0, 32), (24, 0), (2**31, 32)])
def test_a_frame_without_size_is_damaged(labelled, caplog, size):
  frame = labelled / "blur_bicubic" / "beach" / "00000000.png"
  data = bytearray(frame.read_bytes())
  data[16:24] = b"".join(side.to_bytes(4, "big") for side in size)
  frame.write_bytes(data)
  with pytest.raises(UserError, match="no usable clip"):
    open_clips(labelled)
  assert "00000000.png " in caplog.text


def test_a_frame_that_became_damaged_is_told_in_one_line(labelled, capfd):
  (clip,) = open_clips(labelled).clips
  blurry, sharp = (clip.streams[stream].path(1) for stream in (BLUR_BICUBIC, SHARP))
  data = blurry.read_bytes()
  for damaged in mutants(data[:-12], 20):
    blurry.write_bytes(damaged + data[-12:])
    with pytest.raises(UserError, match=r"00000001\.png: cannot be decoded"):
      clip.decode(BLUR_BICUBIC, 1)
  assert capfd.readouterr().err == ""
  blurry.write_bytes(sharp.read_bytes())
  with pytest.raises(UserError, match=r"00000001\.png: has 128x96 pixels, not the 32x24 of its"):
    clip.decode(BLUR_BICUBIC, 1)


def read_all(root):
  """Every label of the clip, as a trainer reads them; damage is told or does not matter."""
  array_record._records.cache_clear()
  array_record._open.cache_clear()
  (clip,) = open_clips(root, num_frames=3, need_flow=True).clips
  return np.stack([clip.flow.read(centre, 3) for centre in range(5)])


def test_damaged_labels_are_never_used(labelled):
  path = labelled / "flow" / "beach.array_record"
  good, data = read_all(labelled), path.read_bytes()
  used = 5 * (2 * 24 * 32 * 2 * 2 + 48)  # bytes of the records; the rest is indexes and zeros
  rng = np.random.default_rng(0)
  told = []
  for _ in range(30):
    damaged = bytearray(data)
    damaged[rng.integers(used)] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      np.testing.assert_array_equal(read_all(labelled), good)
    except UserError as e:
      told.append(str(e))
  assert len(told) >= 28
  remedy = r".*/beach\.array_record: .*python -m vsr_jax.data_prep\.flow_labels"
  assert [text for text in told if not re.fullmatch(remedy, text)] == []


def test_labels_that_are_no_flow_are_not_written(labelled):
  for wrong in (np.nan, np.inf, 1e5):
    with pytest.raises(UserError, match="clip alley: the flow of frame 0 is not finite or above"):
      write_flow(labelled, "alley", 3, 3, wrong)
  assert not (labelled / "flow" / "alley.array_record").exists()


def released(tmp_path, data: bytes) -> flow_store.ReleasedFlow:
  names = ("00000000", "00000001", "00000002")
  for neighbour in (names[0], names[2]):
    (tmp_path / f"{names[1]}_{neighbour}.npy").write_bytes(data)
  return flow_store.ReleasedFlow(tmp_path, names, 4, 6)


def npy(tmp_path, array) -> bytes:
  np.save(tmp_path / "x.npy", array, allow_pickle=True)
  return (tmp_path / "x.npy").read_bytes()


def test_released_labels_are_read(tmp_path):
  flow = np.arange(48, dtype=np.float32).reshape(4, 6, 2)
  labels = released(tmp_path, npy(tmp_path, flow))
  np.testing.assert_array_equal(labels.read(1, 3), [flow, 0 * flow, flow])


GOOD = np.ones((4, 6, 2), np.float32)
LIE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 2), }"


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (np.ones((2,), np.float32), r"float32 \[2\] instead of float32 \[4, 6, 2\]"),
    (np.ones((6, 4, 2), np.float32), "instead of"),
    (np.full((4, 6, 2), np.nan, np.float32), "not finite"),
    (np.full((4, 6, 2), "text"), "instead of|more than"),
    (np.ones((4, 6, 2), np.int64), "int64"),
    (np.array([[None]]), "instead of"),
    (b"", "not an array"),
    (b"\x93NUMPY\x09\x00", "not an array"),
    (b"\x93NUMPY\x01\x00" + len(LIE).to_bytes(2, "little") + LIE.encode(), "instead of"),
    (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "not an array"),
    (b"PK\x03\x04" + bytes(100), "not an array"),
    ("short", "cut short"),
    ("long", "cut short, or longer"),
    ("huge", "more than"),
  ],
  ids=str,
)
def test_released_labels_that_are_no_flow_are_refused(tmp_path, wrong, message):
  good = npy(tmp_path, GOOD)
  texts = {"short": good[:-1], "long": good + b"x", "huge": good + bytes(1 << 20)}
  if isinstance(wrong, np.ndarray):
    wrong = npy(tmp_path, wrong)
  labels = released(tmp_path, texts.get(wrong, wrong) if isinstance(wrong, str) else wrong)
  with pytest.raises(UserError, match=rf"00000001_00000000\.npy: .*({message}).*; get it again"):
    labels.read(1, 3)


def test_a_pickle_in_a_label_is_not_run(tmp_path):
  class Bad:
    def __reduce__(self):
      return (pathlib.Path.touch, (tmp_path / "ran",))

  labels = released(tmp_path, npy(tmp_path, np.array([[Bad()]])))
  with pytest.raises(UserError, match=r"\.npy: cannot read"):
    labels.read(1, 3)
  assert not (tmp_path / "ran").exists()
