"""The command that animates portraits: rendering, the clip set, bad input; who is trained on."""

from __future__ import annotations

import functools
import json

import cv2
import numpy as np
import pytest

from tests.data_prep.helpers import texture, write_png
from vsr_jax.data_prep import animate, face_pipeline, head_motion, show
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.faces import align, detector
from vsr_jax.faces.detections import Detections, none_found

SIDE = 96


def motion(frames=3, amplitude=1.0, **curves):
  made = head_motion.draw(
    np.random.default_rng(5), head_motion.template(), frames, amplitude=amplitude
  )
  for name in head_motion.LIGHT:
    made.curves[name][:] = 0
  for name, value in curves.items():
    made.curves[name][:] = value
  return made


def write_stills(folder, splits):
  """Portraits of a texture and their index; `splits` by file name."""
  for i, name in enumerate(splits):
    write_png(folder / name, texture(SIDE, SIDE, 17 * i))
  lines = ["file,split,licence", *(f'{name},{its},"CC0, made"' for name, its in splits.items())]
  (folder / animate.INDEX).write_text("\n".join(lines) + "\n")


@pytest.fixture
def stills(tmp_path):
  folder = tmp_path / "stills"
  write_stills(folder, {"anna.png": "train", "ben.png": "train", "cleo.png": "validation"})
  return folder


@pytest.fixture
def run(run_main, monkeypatch):
  """Runs the command with a detector that finds no face, hence without compiling one."""
  monkeypatch.setattr(detector, "make_detector", lambda: lambda _: none_found())
  return functools.partial(run_main, animate.main)


def frames_of(folder):
  return {
    clip.name: clip.decode_all(SHARP, range(clip.length))
    for clip in open_clips(folder, streams=(SHARP,)).clips
  }


def test_a_shift_is_rendered_to_a_fraction_of_a_pixel():
  for size in (SIDE, SIDE // 2):
    made = motion(amplitude=0, camera_x=0.3 / SIDE, camera_y=-1.45 / SIDE)
    want = texture(SIDE, SIDE, 0.3, -1.45).astype(np.float32)
    want = cv2.resize(want, (size, size), interpolation=cv2.INTER_AREA)
    (found, *_) = animate.render(texture(SIDE, SIDE), made, size)
    inner = slice(4, -4)
    assert np.abs(found[inner, inner] - want[inner, inner]).max() <= 2  # 0.1 pixel


def test_rendered_landmarks_are_where_they_are_said_to_be():
  side, size = 256, 128
  made = motion(frames=5, amplitude=1.5, blink=0.0)
  places = side * made.landmarks - 0.5
  y, x = np.mgrid[:side, :side]
  still = np.zeros((side, side, 3), np.uint8)
  for i, (px, py) in enumerate(places[:3]):  # the mouth moves too unevenly for round dots
    still[..., i] = np.rint(250 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18))
  points = size * head_motion.moved_landmarks(made) - 0.5
  y, x = np.mgrid[:size, :size]
  for frame, said in zip(animate.render(still, made, size), points, strict=True):
    weights = frame.astype(float)
    seen = np.stack([(weights * grid[..., None]).sum((0, 1)) for grid in (x, y)], -1)
    seen /= weights.sum((0, 1))[:, None]
    np.testing.assert_allclose(seen, said[:3], atol=0.2)


def test_beyond_the_border_the_picture_goes_on():
  still = np.full((SIDE, SIDE, 3), (200, 150, 100), np.uint8)
  for frame in animate.render(still, motion(amplitude=2, camera_x=0.2, camera_roll=0.3), 64):
    np.testing.assert_array_equal(frame, np.broadcast_to(still[0, 0], (64, 64, 3)))


def test_the_command_makes_an_aligned_clip_set_of_one_split(run, stills, tmp_path):
  out = tmp_path / "out"
  said = run(stills, out, "--frames", 9, "--size", 64, "--strip", tmp_path / "strip.png")
  assert "2 clips, 18 frames" in said.out
  clips = open_clips(out, streams=None).clips
  assert [clip.name for clip in clips] == ["anna", "ben"]
  clip = clips[0]
  assert (clip.length, clip.rate, clip.aligned, clip.sizes) == (9, 25, True, {SHARP: (64, 64)})
  assert len(clip.landmarks) == 9
  assert np.abs(clip.landmarks[0] - align.TEMPLATE / 8).max() < 8
  strip = show.sheet(clips)
  assert (tmp_path / "strip.png").stat().st_size > 1000 < strip.size
  sample = face_pipeline.clips(clips, seed=0, num_frames=4, intervals=(1, 2), size=64)[0]
  assert sample["gt"].shape == (4, 64, 64, 3)
  in_set = frames_of(out)
  assert any((sample["gt"][0] == frame).all() for all_ in in_set.values() for frame in all_)
  with pytest.raises(UserError, match="aligned at another size than 32x32"):
    face_pipeline.images(clips, seed=0, size=32)[0]


def test_clips_are_a_function_of_seed_name_and_take(run, stills, tmp_path):
  def made(name, *arguments):
    run(stills, tmp_path / name, "--frames", 2, "--size", 32, *arguments)
    return frames_of(tmp_path / name)

  first, same = made("a"), made("b", "--count", 1)
  np.testing.assert_array_equal(first["anna"], same["anna"])
  assert same.keys() == {"anna"}
  other, takes = made("c", "--seed", 1), made("d", "--takes", 2)
  assert (first["anna"] != other["anna"]).any()
  assert sorted(takes) == ["anna_take0", "anna_take1", "ben_take0", "ben_take1"]
  np.testing.assert_array_equal(takes["anna_take0"], first["anna"])
  assert (takes["anna_take1"] != first["anna"]).any()


def test_a_rerun_keeps_clips_and_replaces_those_of_other_settings(run, stills, tmp_path):
  out = tmp_path / "out"
  arguments = stills, out, "--size", 32, "--frames"
  run(*arguments, 2)
  frame = out / "sharp/anna/00000000.png"
  before = frame.stat().st_mtime_ns
  assert "2 were there" in run(*arguments, 2).out
  assert frame.stat().st_mtime_ns == before
  assert "0 were there" in run(*arguments, 3).out
  assert {name: len(frames) for name, frames in frames_of(out).items()} == {"anna": 3, "ben": 3}
  assert not list(out.rglob("*.part"))


def test_the_landmarks_of_the_still_are_found_or_those_of_the_template():
  photo = np.zeros((100, 100, 3), np.uint8)
  near = 100 * head_motion.template() - 0.5 + [1, -2]

  def finds(*faces):
    boxes = np.zeros((len(faces), 4), np.float32)
    scores = np.ones(len(faces), np.float32)
    return lambda _: Detections(boxes, scores, np.array(faces, np.float32))

  found = animate.find_landmarks(photo, finds(near + 30, near))
  np.testing.assert_allclose(100 * found - 0.5, near, atol=1e-4)
  for detect in (finds(near + 30), lambda _: none_found()):
    np.testing.assert_array_equal(animate.find_landmarks(photo, detect), head_motion.template())


@pytest.mark.parametrize(
  ("fault", "told"),
  [
    (lambda f: (f / "index.csv").unlink(), "index.csv: missing"),
    (lambda f: (f / "index.csv").write_text("name,split\na,train\n"), "has no column file"),
    (lambda f: (f / "index.csv").write_text("file,split\n../a,train\n"), "index.csv:2: not a file"),
    (lambda f: (f / "index.csv").write_text("file,split\na,train\na,train\n"), "comes twice"),
    (lambda f: (f / "index.csv").write_text('file,split\n"a,train\n'), "not CSV"),
    (lambda f: (f / "index.csv").write_bytes(b"\xff\xfe"), "index.csv: not a text"),
    (lambda f: (f / "anna.png").write_bytes(b"\x89PNG\r\n\x1a\nshort"), "anna.png: not a readable"),
    (lambda f: (f / "anna.png").unlink(), "anna.png: missing, though the index lists it"),
    (lambda f: write_png(f / "anna.png", texture(90, 96)), "anna.png: 96x90 is no aligned"),
  ],
)
def test_bad_stills_are_named(run, stills, tmp_path, fault, told):
  fault(stills)
  said = run(stills, tmp_path / "out", "--frames", 1, "--size", 32, code=2)
  assert told in said.err
  assert said.err.count("\n") == said.err.count("animating") + 1 or "animating" in said.err


def test_wrong_arguments_are_named(run, stills, tmp_path):
  out = tmp_path / "out"
  for arguments, told in (
    (["--split", "test"], "has no split test, only train, validation"),
    (["--size", "8"], "--size 8: must be 16 to 1024"),
    (["--amplitude", "nan"], "--amplitude nan"),
    (["--strip", "strip.jpg"], "the strip is a .png"),
    (["--names", stills / "none.txt"], "no such list of names"),
  ):
    assert told in run(stills, out, *arguments, code=2).err
  names = tmp_path / "names.txt"
  names.write_text("ben\ncleo\n")
  assert "cleo is no portrait of this split" in run(stills, out, "--names", names, code=2).err
  names.write_text("ben.png\n")
  run(stills, out, "--names", names, "--frames", 1, "--size", 32)
  assert list(frames_of(out)) == ["ben"]


def test_a_set_of_another_kind_is_left_alone(run, stills, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  origin = {"name": "beach", "path": "beach.mp4", "settings": {}}
  (out / "clips.json").write_text(
    json.dumps({"clips": [{"name": "beach", "frames": 3, "origin": origin}]})
  )
  assert "beach is no aligned face" in run(stills, out, code=2).err
  other = tmp_path / "other"
  write_stills(other, {"anna.png": "train"})
  good = tmp_path / "good"
  run(stills, good, "--frames", 1, "--size", 32)
  assert "made from" in run(other, good, "--frames", 1, "--size", 32, code=2).err
