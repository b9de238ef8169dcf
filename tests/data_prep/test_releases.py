"""Clips in zips and folders: what is found and read, and what is said of bad ones."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tracemalloc
import zipfile
from fractions import Fraction

import numpy as np
import pytest

from tests.data_prep.built_sets import mutants
from tests.data_prep.layouts import archive, damage, png
from vsr_jax.data_prep import folders
from vsr_jax.data_prep.builders import reading, releases
from vsr_jax.data_prep.builders.releases import ReleasedClip
from vsr_jax.data_prep.folders import BadClip, MissingError
from vsr_jax.errors import UserError
from vsr_jax.images import decode_image, encode_image
from vsr_jax.ops.resize import resize_bicubic


@pytest.fixture(params=[True, False], ids=["zip", "folder"])
def place(request, tmp_path):
  """Two clips of three frames, and what should be left alone."""
  with archive(tmp_path, "set", request.param) as write:
    for clip in ("b", "a"):
      for i in (2, 0, 1):
        write(f"set/clips/{clip}/{i:04d}.png", png(i, 8, 12))
    write("set/clips/a/.hidden.png", b"")
    write("set/clips/notes.txt", b"")
    write("__MACOSX/set/clips/c/0000.png", b"")
  return folders.locate(tmp_path, "set", origin="somewhere")


def test_clips_are_found_by_their_folders_names(place):
  found = folders.find_streams(place, r"clips/(?P<clip>\w)")
  assert list(found) == ["a", "b"]
  assert found["a"].names == ("0000.png", "0001.png", "0002.png")
  assert folders.read_file(place, f"{found['a'].folder}/0001.png") == png(1, 8, 12)
  assert folders.find_streams(place, r"(?P<clip>clips)") == {}


def clip_of(place, **changes):
  found = folders.find_streams(place, r"clips/(?P<clip>\w)")
  return dataclasses.replace(ReleasedClip("a", 24.0, {"sharp": found["a"]}), **changes)


def test_frames_are_read_as_they_are(place):
  data = reading.read_clip(clip_of(place, length=3, size={"sharp": (8, 12)}))
  assert data.streams == {"sharp": [png(i, 8, 12) for i in range(3)]}
  assert (data.rate, data.sizes, data.landmarks.shape) == (24.0, {"sharp": (8, 12)}, (0, 5, 2))


def test_reductions_are_matlabs(place):
  clip = clip_of(place, derived={"small": ("sharp", 4)}, kept=("small",))
  data = reading.read_clip(clip)
  assert list(data.streams) == ["small"]
  assert data.sizes == {"small": (2, 3)}
  frame = decode_image(png(1, 8, 12), "x")
  made = decode_image(data.streams["small"][1], "x")
  np.testing.assert_array_equal(made, resize_bicubic(frame, Fraction(1, 4)))


def test_a_zip_is_preferred_to_a_folder(tmp_path):
  for zipped in (False, True):
    with archive(tmp_path, "set", zipped) as write:
      write("x/0.png", png(0, 8, 8))
  assert folders.locate(tmp_path, "set", origin="there").name == "set.zip"
  (tmp_path / "set.zip").unlink()
  assert folders.locate(tmp_path, "set", origin="there").name == "set"
  (tmp_path / "set").rename(tmp_path / "other")
  assert folders.locate(tmp_path, "set", "other", origin="there").name == "other"


def test_a_missing_archive_is_named_with_its_origin(tmp_path):
  with pytest.raises(MissingError, match=r"neither set\.zip nor a folder set; get it from there"):
    folders.locate(tmp_path, "set", origin="there")


def test_a_zip_cut_short_is_named(tmp_path):
  with archive(tmp_path, "set", True) as write:
    write("x/0.png", png(0, 8, 8))
  whole = (tmp_path / "set.zip").read_bytes()
  (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"cut\.zip: not a whole zip .*; download it again"):
    folders.list_files(tmp_path / "cut.zip")


def test_two_clips_of_one_name_are_named(tmp_path):
  for folder in ("one", "two"):
    (tmp_path / folder / "a").mkdir(parents=True)
    (tmp_path / folder / "a" / "0.png").write_bytes(b"")
  with pytest.raises(UserError, match=r"two/a: a clip a is in .*one/a too; remove one"):
    folders.find_streams(tmp_path, r"(?P<clip>\w)")


def test_missing_clips_are_counted_and_named():
  with pytest.raises(UserError, match=r"set: 5 of 8 clips are missing \(3 4 5 \.\.\.\); extract"):
    releases.check_complete(pathlib.Path("set"), "012", "01234567", "there")
  releases.check_complete(pathlib.Path("set"), "0123", "012", "there")


def rewrite(place, name, data):
  """Replaces a file, or removes it if there are no data."""
  if place.is_dir():
    (place / name).unlink() if data is None else (place / name).write_bytes(data)
    return
  with zipfile.ZipFile(place) as z:
    files = {entry: z.read(entry) for entry in z.namelist()}
  files = {**files, name: data}
  with zipfile.ZipFile(place, "w") as z:
    for entry, content in files.items():
      if content is not None:
        z.writestr(entry, content)
  folders._open_zip.cache_clear()


FRAME = "set/clips/a/0001.png"


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (damage(png(1, 8, 12)), r"a/0001\.png is damaged"),
    (png(1, 8, 12)[:-20], r"a/0001\.png is cut short"),
    (png(1, 8, 12)[:30], r"a/0001\.png is cut short"),
    (b"", r"a/0001\.png is damaged or neither PNG nor JPEG"),
    (png(1, 8, 16), r"a/0001\.png has 16x8 pixels, the frames before it 12x8"),
  ],
)
def test_a_bad_frame_is_named(place, data, message):
  clip = clip_of(place)
  rewrite(place, FRAME, data)
  with pytest.raises(BadClip, match=message):
    reading.read_clip(clip)


def test_a_frame_that_went_away_is_named(place):
  clip = clip_of(place)
  rewrite(place, FRAME, None)
  with pytest.raises(BadClip, match=r"a/0001\.png is missing"):
    reading.read_clip(clip)


def test_a_zips_wrong_checksum_is_named(tmp_path):
  with archive(tmp_path, "set", True) as write:
    write("clips/a/0000.png", png(0, 8, 12))
  path = tmp_path / "set.zip"
  data = path.read_bytes()
  path.write_bytes(data.replace(png(0, 8, 12)[60:70], b"\0" * 10))
  with pytest.raises(BadClip, match=r"a/0000\.png is damaged \(Bad CRC-32"):
    reading.read_clip(clip_of(path))


def test_streams_of_unequal_length_are_named(place):
  found = folders.find_streams(place, r"clips/(?P<clip>\w)")
  short = dataclasses.replace(found["b"], names=found["b"].names[:2])
  clip = ReleasedClip("a", 24.0, {"sharp": found["a"], "blur": short})
  with pytest.raises(BadClip, match=r"clips/a has 3 frames, .*clips/b 2"):
    reading.read_clip(clip)
  other = dataclasses.replace(found["b"], names=("0000.png", "0001.png", "0003.png"))
  clip = ReleasedClip("a", 24.0, {"sharp": found["a"], "blur": other})
  with pytest.raises(BadClip, match=r"has a frame 0002\.png where .* has 0003\.png"):
    reading.read_clip(clip)


def test_what_a_clip_should_be_is_held(place):
  with pytest.raises(BadClip, match="clips/a has 3 frames instead of 100"):
    reading.read_clip(clip_of(place, length=100))
  with pytest.raises(BadClip, match="clips/a: 12x8 instead of 512x512 pixels"):
    reading.read_clip(clip_of(place, size={"sharp": (512, 512)}))
  found = folders.find_streams(place, r"clips/(?P<clip>\w)")
  pair = {"sharp": found["a"], "small": found["b"]}
  with pytest.raises(BadClip, match="frames of 12x8, which are not 4 times the 12x8"):
    reading.read_clip(ReleasedClip("a", 24.0, pair, ratios={("sharp", "small"): 4}))
  with pytest.raises(BadClip, match="has no frames"):
    reading.read_clip(ReleasedClip("a", 24.0, {"sharp": dataclasses.replace(found["a"], names=())}))


def test_landmarks_belong_to_frames_by_name(place, tmp_path):
  lines = [f"{i:04d}.png " + " ".join(str(10 * i + k) for k in range(10)) for i in (2, 0, 1)]
  (tmp_path / "a.txt").write_text("FPS: 25\n" + "\n".join(lines))
  data = reading.read_clip(clip_of(place, rate=0, landmarks=(tmp_path, "a.txt")))
  assert data.rate == 25
  np.testing.assert_array_equal(data.landmarks.reshape(3, 10)[:, 0], [0, 10, 20])
  (tmp_path / "a.txt").write_text("\n".join(lines[:2]))
  with pytest.raises(BadClip, match=r"a\.txt has no landmarks of frame 0001\.png"):
    reading.read_clip(clip_of(place, landmarks=(tmp_path, "a.txt")))
  (tmp_path / "a.txt").write_text("0001.png 3")
  with pytest.raises(BadClip, match=r"a\.txt:1: 2 words"):
    reading.read_clip(clip_of(place, landmarks=(tmp_path, "a.txt")))
  with pytest.raises(BadClip, match=r"b\.txt is missing"):
    reading.read_clip(clip_of(place, landmarks=(tmp_path, "b.txt")))


def test_jpegs_are_taken_and_checked():
  frame = np.full((16, 24, 3), 90, np.uint8)
  data = encode_image(frame, ".jpg")
  assert reading.verified_size(data, "x") == (16, 24)
  with pytest.raises(BadClip, match="x is damaged"):
    reading.verified_size(data[:-10], "x")


def zip_of(path, edit=None, method=zipfile.ZIP_DEFLATED):
  """A zip of clips a and b, of two frames each; `edit` changes its bytes."""
  frames = {f"clips/{clip}/{i:04d}.png": png(i, 8, 12) for clip in "ab" for i in range(2)}
  with zipfile.ZipFile(path, "w", method) as z:
    for name, data in frames.items():
      z.writestr(name, data)
  if edit:
    path.write_bytes(edit(path.read_bytes()))
  return path


def in_directory(name: str, offset: int, value: bytes):
  """Changes some bytes of a file's entry in the directory at a zip's end."""

  def edit(data):
    start = data.rindex(name.encode()) - 46 + offset
    return data[:start] + value + data[start + len(value) :]

  return edit


MEMBER = "clips/a/0001.png"


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (in_directory(MEMBER, 8, b"\x01\x00"), "encrypted"),
    (in_directory(MEMBER, 8, b"\x40\x00"), "damaged"),
    (in_directory(MEMBER, 10, b"\x63\x00"), "otherwise than by deflate"),
    (in_directory(MEMBER, 10, b"\x0c\x00"), "otherwise than by deflate"),  # bzip2
    (in_directory(MEMBER, 16, b"abcd"), "damaged .Bad CRC"),
    (in_directory(MEMBER, 20, b"\x09\x00\x00\x00"), "damaged"),  # packed size
    (in_directory(MEMBER, 24, b"\xff\xff\xff\x7f"), "which no frame is"),  # size
    (in_directory(MEMBER, 24, b"\x05\x00\x00\x00"), "damaged"),
    (in_directory(MEMBER, 42, b"\xff\xff\xff\x00"), "damaged"),  # its place
    (in_directory(MEMBER, 42, b"\x00\x00\x00\x00"), "damaged"),
  ],
  ids=lambda x: x if isinstance(x, str) else "edit",
)
def test_a_bad_file_of_a_zip_is_named_and_the_others_are_read(tmp_path, edit, message):
  place = zip_of(tmp_path / "set.zip", edit)
  found = folders.find_streams(place, r"clips/(?P<clip>\w)")
  with pytest.raises(BadClip, match=rf"set\.zip/clips/a/0001\.png.*{message}"):
    reading.read_clip(ReleasedClip("a", 24.0, {"sharp": found["a"]}))
  assert (
    len(reading.read_clip(ReleasedClip("b", 24.0, {"sharp": found["b"]})).streams["sharp"]) == 2
  )


@pytest.mark.parametrize("told", [50_000_000, 1000])
def test_a_bomb_is_not_unpacked(tmp_path, told):
  with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as z:
    z.writestr(MEMBER, bytes(50_000_000))
  edit = in_directory(MEMBER, 24, told.to_bytes(4, "little"))
  (tmp_path / "set.zip").write_bytes(edit((tmp_path / "set.zip").read_bytes()))
  tracemalloc.start()
  with pytest.raises(BadClip, match=r"0001\.png"):
    folders.read_file(tmp_path / "set.zip", MEMBER)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 10_000_000


def test_names_that_lead_elsewhere_are_but_names(tmp_path):
  (tmp_path / "in").mkdir()
  with zipfile.ZipFile(tmp_path / "in" / "set.zip", "w") as z:
    z.writestr("../../clips/a/0000.png", png(0, 8, 12))
    z.writestr("/clips/../0000.png", png(0, 8, 12))
  found = folders.find_streams(tmp_path / "in" / "set.zip", "(?P<clip>[^/]+)")
  for name, frames in found.items():
    clip = ReleasedClip(name, 24.0, {"sharp": frames})
    if name == "a":
      assert reading.read_clip(clip).streams["sharp"] == [png(0, 8, 12)]
    else:
      with pytest.raises(BadClip, match=r"'\.\.' cannot be the name of files"):
        reading.read_clip(clip)
  assert [path.name for path in tmp_path.rglob("*")] == ["in", "set.zip"]


@pytest.mark.parametrize("name", ["x" * 250, "a\nb", "\udce9"])
def test_a_clip_that_cannot_be_named_is_bad(place, name):
  with pytest.raises(BadClip, match="cannot be the name of files"):
    reading.read_clip(dataclasses.replace(clip_of(place), name=name))


@pytest.mark.parametrize("keep", [10, 60, -10])
def test_what_is_no_zip_is_named(tmp_path, keep):
  place = zip_of(tmp_path / "set.zip", lambda data: data[:keep])
  with pytest.raises(UserError, match=r"set\.zip: not a whole zip"):
    folders.list_files(place)


def test_mutants_of_a_zip_are_told(tmp_path):
  whole = zip_of(tmp_path / "whole.zip").read_bytes()
  good = [png(i, 8, 12) for i in range(2)]
  told = 0
  for i, data in enumerate(mutants(whole, 100)):
    place = tmp_path / f"{i}.zip"
    place.write_bytes(data)
    try:
      for name, frames in folders.find_streams(place, r"clips/(?P<clip>\w)").items():
        read = reading.read_clip(ReleasedClip(name, 24.0, {"x": frames})).streams["x"]
        assert set(read) <= set(good)  # one whose name was damaged is not found
    except (BadClip, UserError):
      told += 1
  assert told > 50


def test_a_folder_that_holds_itself_ends(tmp_path):
  write = tmp_path / "set" / "clips" / "a"
  write.mkdir(parents=True)
  (write / "0000.png").write_bytes(png(0, 8, 12))
  (write / "again").symlink_to(tmp_path / "set")
  (write / "other").symlink_to(tmp_path / "set")
  (tmp_path / "set" / "link").symlink_to(write)
  assert folders.list_files(tmp_path / "set").keys() == {"clips/a", "link"}


def test_a_pipe_among_frames_is_bad(tmp_path):
  (tmp_path / "set").mkdir()
  os.mkfifo(tmp_path / "set" / "0000.png")
  with pytest.raises(BadClip, match=r"0000\.png: not a file"):
    folders.read_file(tmp_path / "set", "0000.png")


@pytest.mark.parametrize("data", [b"\xff\xfe" * 10, b"0000.png " + b"9" * 100_000], ids=len)
def test_landmarks_that_are_no_text_are_bad(place, tmp_path, data):
  (tmp_path / "a.txt").write_bytes(data)
  with pytest.raises(BadClip, match=r"a\.txt") as error:
    reading.read_clip(clip_of(place, landmarks=(tmp_path, "a.txt")))
  assert len(str(error.value)) < 300
