"""The command that makes landmarks for data sets that lack them."""

from __future__ import annotations

import functools
import os
import re
import shutil

import numpy as np
import pytest
import skimage.data

from tests.data_prep.helpers import write_png
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax.data_prep import landmarks, meta_info
from vsr_jax.faces.detector import make_detector
from vsr_jax.faces.tracks import Track

PHOTO = skimage.data.astronaut()[:256, 80:336]


def write_frames(folder, count, first=0):
  """Frames of the photo, moving two pixels a frame; the first ones show no face."""
  for i in range(count):
    image = np.roll(PHOTO, 2 * i, axis=1) if i >= first else np.full_like(PHOTO, 90)
    write_png(folder / f"{i:08d}.png", image)


@pytest.fixture
def run(run_main):
  return functools.partial(run_main, landmarks.main)


def test_landmarks_of_folders_and_videos(run, tmp_path):
  write_frames(tmp_path / "set/Clip+a", 5)
  encode(tmp_path / "video.mkv", np.stack([PHOTO] * 4), "ffv1", "bgr0", rate=30)
  out = tmp_path / "out"
  said = run(tmp_path / "set", tmp_path / "video.mkv", "--out", out, "--sigma", "0")
  assert "landmarks of 2 clips; 0 skipped" in said.out
  assert meta_info.read_global(out / meta_info.GLOBAL) == {"Clip+a": 5, "video": 4}
  folder, clip = (
    meta_info.parse_clip((out / f"meta_info/{name}.txt").read_text(), name)
    for name in ("Clip+a", "video")
  )
  assert (folder.fps, clip.fps) == (0, 30)
  want = make_detector()(PHOTO).landmarks[0]
  np.testing.assert_allclose(clip.landmarks["00000003.png"], want, atol=0.01)
  moved = [folder.landmarks[f"{i:08d}.png"] for i in range(5)]
  np.testing.assert_allclose(moved[4] - moved[0], np.tile([8, 0], (5, 1)), atol=4)


def test_a_clip_that_cannot_be_used_is_named_and_the_others_are_made(run, tmp_path):
  write_frames(tmp_path / "set/good", 4, first=1)
  encode(tmp_path / "waves.mkv", moving_waves(4, 96, 96), "ffv1", "bgr0")
  (tmp_path / "broken.mp4").write_bytes(b"no video")
  out = tmp_path / "out"
  said = run(tmp_path / "set", tmp_path / "waves.mkv", tmp_path / "broken.mp4", "--out", out)
  assert "landmarks of 1 clips; 2 skipped" in said.out
  assert "skipped waves:" in said.out
  assert "no face found" in said.out
  assert "skipped broken:" in said.out
  found = meta_info.parse_clip((out / "meta_info/good.txt").read_text(), "good").landmarks
  assert len(found) == 4  # also of the frame before the face is there
  assert os.listdir(out / "meta_info") == ["good.txt"]


def test_a_rerun_leaves_what_is_there(run, tmp_path):
  write_frames(tmp_path / "set/a", 3)
  run(tmp_path / "set", "--out", tmp_path)
  file = tmp_path / "meta_info/a.txt"
  text = file.read_text()
  file.write_text(text + "note\n")
  run(tmp_path / "set", "--out", tmp_path)
  assert file.read_text() == text + "note\n"


def test_clips_in_zips_are_those_of_the_folders(run, tmp_path):
  write_frames(tmp_path / "set/Clip+a", 3)
  write_frames(tmp_path / "set/Clip+b", 2)
  shutil.make_archive(str(tmp_path / "zips/part"), "zip", tmp_path / "set")
  run(tmp_path / "set", "--out", tmp_path / "one")
  said = run(tmp_path / "zips", "--out", tmp_path / "two")
  assert "landmarks of 2 clips; 0 skipped" in said.out
  for name in (meta_info.GLOBAL, "meta_info/Clip+a.txt", "meta_info/Clip+b.txt"):
    assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_a_second_run_adds_its_clips_to_the_list(run, tmp_path):
  write_frames(tmp_path / "one/a", 2)
  write_frames(tmp_path / "two/b", 3)
  (tmp_path / "global_meta_info.txt").write_text("VFHQ/given/7\n")
  for name in ("one", "two"):
    run(tmp_path / name, "--out", tmp_path)
  assert meta_info.read_global(tmp_path / meta_info.GLOBAL) == {"given": 7, "a": 2, "b": 3}


@pytest.mark.parametrize(
  ("make", "pattern"),
  [
    (lambda path: None, "no clip got landmarks"),
    (lambda path: path.mkdir(), "holds no frames and no clips"),
    (lambda path: [write_frames(path / x / "same", 1) for x in "ab"], "named like .*unique names"),
    (lambda path: write_png(path / "frame1.png", PHOTO), "does not begin with 0"),
  ],
)
def test_bad_input(run, tmp_path, make, pattern):
  make(tmp_path / "in")
  said = run(tmp_path / "in", "--out", tmp_path / "out", code=2)
  assert re.search(pattern, said.err)


def test_frames_beyond_the_tracks_take_the_nearest_ones():
  def track(start, values):
    points = np.broadcast_to(np.float32(values)[:, None, None], (len(values), 5, 2))
    return Track(start, points, np.zeros((len(values), 4)), np.ones(len(values), bool))

  got = landmarks.spread([track(1, [1, 2]), track(6, [6])], 8)[:, 0, 0]
  np.testing.assert_array_equal(got, [1, 1, 2, 2, 2, 6, 6, 6])


def test_a_folder_that_holds_itself_ends(tmp_path):
  write_png(tmp_path / "clips" / "a" / "0000.png", np.zeros((8, 8, 3), np.uint8))
  for name in ("one", "two"):
    (tmp_path / "clips" / name).symlink_to(tmp_path / "clips")
  assert [source.name for source in landmarks.find_clips([tmp_path / "clips"])] == ["a"]
