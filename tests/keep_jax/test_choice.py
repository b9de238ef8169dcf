"""Which faces are restored: by number, size, score, sharpness, and by what is in front of them."""

from __future__ import annotations

import functools
from fractions import Fraction

import cv2
import numpy as np
import pytest

from keep_jax import restore
from keep_jax.choice import Choice
from keep_jax.faces import find_faces, restore_faces
from tests.keep_jax.test_restore import PHOTO, encode_lossless, read, two_people
from vsr_jax import video
from vsr_jax.faces import align, occlusion, sharpness
from vsr_jax.faces.detections import Detections

FAR, NEAR = (110, 80, 60), (190, 120, 100)  # x, y, size of faces that touch


def detector(*people, scores=None):
  """Finds people at their places, x, y and size in pixels, whatever the frame."""
  places = np.float32([[x, y] for x, y, _ in people])
  sizes = np.float32([size for *_, size in people])
  boxes = np.concatenate([places - sizes[:, None] / 2, places + sizes[:, None] / 2], 1)
  points = np.float32((align.TEMPLATE - [256, 300]) / 256) * sizes[:, None, None] / 1.2
  scores = np.float32([1] * len(people) if scores is None else scores)
  return lambda _: Detections(boxes, scores, points + places[:, None])


def paint(frames):
  """A network that paints face 0 red, face 1 green and others yellow."""
  colours = [(200, 0, 0), (0, 200, 0), (200, 200, 0)]
  for faces in frames:
    yield {i: np.broadcast_to(np.uint8(colours[i]), face.shape) for i, face in faces.items()}


def restored(faces, count):
  """The last of some frames, in which red and green are nothing but what was painted."""
  blue = np.zeros((240, 320, 3), np.uint8)
  blue[::8, :, 2] = 255  # not grey
  frames = (video.Frame(blue, Fraction(i, 25), i) for i in range(count))
  return list(restore_faces(frames, faces, paint, size=64))[-1].image


def painted(people, choice="all", count=4):
  """The faces that the choice leaves, and the last frame with what is painted there."""
  frames = np.zeros((count, 240, 320, 3), np.uint8)
  faces, _ = find_faces(frames, detector(*people), choice, size=64)
  return faces, restored(faces, count)


def head(face):
  points = np.stack(np.meshgrid(np.arange(320), np.arange(240)), -1)
  matrix = face.matrix(0)
  return occlusion.head_radius(points @ matrix[:, :2].T + matrix[:, 2], 64)


@pytest.mark.parametrize("order", [1, -1])
def test_a_nearer_face_is_painted_over_the_farther_one(order):
  """Whichever of them the detector tells first."""
  faces, image = painted((FAR, NEAR)[::order])
  (far, red), (near, green) = list(zip(faces, (image[..., 0], image[..., 1]), strict=True))[::order]
  assert ((head(far) < 0.9) & (head(near) < 0.9)).sum() > 50
  assert not red[head(near) < 0.9].any()
  assert (green[head(near) < 0.5] > 190).all()
  assert not green[(head(far) < 0.9) & (head(near) > 1.1)].any()
  assert (red[(head(far) < 0.5) & (head(near) > 1.1)] > 190).all()


def test_a_nearer_face_that_is_left_alone_is_not_painted_over():
  faces, image = painted((FAR, NEAR), Choice(numbers=[0]))
  assert not image[head(faces[1]) < 0.9, :2].any()
  assert (image[(head(faces[0]) < 0.5) & (head(faces[1]) > 1.1), 0] > 190).all()
  assert faces[1].skip_reason == "not named"


def test_what_is_no_face_covers_nobody():
  detect = detector(FAR, NEAR, scores=[0.99, 0.8])
  frames = np.zeros((3, 240, 320, 3), np.uint8)
  faces, _ = find_faces(frames, detect, Choice("all", min_score=0.9), size=64)
  assert [face.skip_reason for face in faces] == ["", "scores below 0.9"]
  assert [face.score for face in faces] == pytest.approx([0.99, 0.8])
  assert restored(faces, 3)[head(faces[1]) < 0.9, 0].any()


def test_a_face_half_hidden_is_left_alone():
  behind = 140, 70, 60
  faces, image = painted((behind, NEAR))
  assert [len(face.frames) for face in faces] == [0, 4]
  assert faces[0].skip_reason == "hidden behind another"
  assert not image[..., 0].any()
  assert (image[head(faces[1]) < 0.5, 1] > 190).all()


def test_a_face_is_left_alone_while_it_is_hidden():
  """It passes behind another, and is restored before and after."""
  step = {}

  def detect(frame):
    t = step["t"] = step.get("t", -1) + 1
    return detector((40 + 2 * t, 110, 50), (160, 110, 100))(frame)

  faces, count = find_faces(np.zeros((120, 240, 320, 3), np.uint8), detect, "all", size=64)
  assert count == 120
  assert [len(face.matrices) for face in faces] == [120, 120]
  hidden = np.setdiff1d(np.arange(120), faces[0].frames)
  assert 25 < hidden[0] < 50
  assert 70 < hidden[-1] < 95
  assert (np.diff(hidden) == 1).all()
  assert faces[1].frames.tolist() == list(range(120))


def test_numbers_do_not_depend_on_the_choice():
  people = FAR, (250, 60, 40), (60, 190, 90)
  wanted = {
    Choice("all"): [0, 1, 2],
    Choice("largest"): [2],
    Choice("all", min_face=50): [0, 2],
    Choice("all", min_face=70): [2],
    Choice(numbers=(1,)): [1],
    Choice(numbers=(0, 2)): [0, 2],
    Choice("largest", min_face=100): [],
  }
  for choice, numbers in wanted.items():
    faces, image = painted(people, choice)
    assert [i for i, face in enumerate(faces) if len(face.frames)] == numbers, choice
    centres = [(face.track.boxes[0, :2] + face.track.boxes[0, 2:]) / 2 for face in faces]
    np.testing.assert_allclose(centres, [person[:2] for person in people])
    assert [i for i, (x, y, _) in enumerate(people) if image[y, x, :2].any()] == numbers


def test_unknown_numbers_are_refused():
  with pytest.raises(ValueError, match="no face track 3, its tracks are 0 to 1"):
    painted((FAR, NEAR), Choice(numbers=[0, 3]))


def test_sharp_faces_are_left_alone_for_the_whole_clip():
  """Sharp in two frames of three, it is not restored in the third either."""
  noise = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)
  fine, coarse = (cv2.GaussianBlur(noise, (0, 0), s)[..., None] for s in (0.8, 4))
  frames = np.full((6, 300, 600, 3), 90, np.uint8)
  frames[:, :, :300], frames[:, :, 300:] = fine, coarse
  frames[::3, :, :300] = coarse
  people = (150, 150, 220), (450, 150, 200)
  faces, _ = find_faces(frames, detector(*people), Choice("all", skip_sharp=True), size=64)
  assert faces[0].sharpness > sharpness.THRESHOLD > faces[1].sharpness
  assert [len(face.frames) for face in faces] == [0, 6]
  assert [face.skip_reason for face in faces] == ["sharp", ""]
  faces, _ = find_faces(frames, detector(*people), "all", size=64)
  assert [len(face.frames) for face in faces] == [6, 6]
  assert faces[0].sharpness is None
  # Where the largest is sharp, the next one is not restored in its stead.
  faces, _ = find_faces(frames, detector(*people), Choice(skip_sharp=True), size=64)
  assert [face.skip_reason for face in faces] == ["sharp", "another is larger"]


@pytest.fixture
def run(run_main):
  return functools.partial(run_main, restore.main)


@pytest.fixture
def pair(tmp_path):
  """Two people, the left one number 0 or 1, whichever the detector tells first."""
  return encode_lossless(tmp_path / "pair.mkv", two_people(3))


def test_faces_are_listed(run, pair, tmp_path):
  said = run(pair, "--list-faces", "--strip", tmp_path / "sheet.png", "--frames", "1:")
  heading, *lines = said.out.splitlines()
  assert heading.startswith("face  frames")
  assert [line.split()[:2] for line in lines] == [["0", "1:3"], ["1", "1:3"]]
  assert sorted(line.split()[7:][0] for line in lines) == ["no", "yes"]
  assert "(another is larger)" in said.out
  centres = sorted(int(line.split()[5].strip(",")) for line in lines)
  assert centres[0] < 256 < centres[1]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["pair.mkv", "sheet.png"]
  assert read(tmp_path / "sheet.png")[1].shape[1] == 2 * 256


def test_tracks_are_chosen_by_their_number(run, pair, tmp_path):
  changed = []
  _, frames = read(pair)
  for number in "0", "1", "0,1":
    out = tmp_path / number
    said = run(pair, out, "--no-network", "--tracks", number)
    assert f"{1 + number.count(',')} face track" in said.out
    halves = (read(out)[1] != frames).reshape(3, -1, 2, 256, 3).any((0, 1, 3, 4))
    changed.append(halves.tolist())
  assert sorted(changed[:2]) == [[False, True], [True, False]]
  assert changed[2] == [True, True]


def test_nobody_left_is_told(run, pair, tmp_path):
  said = run(pair, tmp_path / "out.mkv", "--no-network", "--quality", "0", "--min-face", "500")
  assert "pair.mkv: no face is to be restored; --list-faces tells why" in said.err
  assert "0 face tracks, 3 frames without a face" in said.out
  np.testing.assert_array_equal(read(tmp_path / "out.mkv")[1], read(pair)[1])


def test_a_clip_upside_down(run, tmp_path):
  clip = encode_lossless(tmp_path / "down.mkv", np.stack([PHOTO[::-1, ::-1]] * 3))
  said = run(clip, tmp_path / "out", "--no-network", "--save-crops", tmp_path / "crops")
  assert "1 face track, 0 frames without a face" in said.out
  crop = read(tmp_path / "crops" / "face_000_aligned")[1][0]
  upright, _ = find_faces([PHOTO], restore.detector.make_detector())
  want = align.align(PHOTO, upright[0].restored_matrix(0))
  assert np.abs(crop.astype(int) - want).mean() < 15


@pytest.mark.parametrize(
  ("flags", "pattern"),
  [
    (("out", "--no-network", "--tracks", "7"), "pair.mkv: no face track 7, its tracks are 0 to 1"),
    (("out", "--no-network", "--tracks", "0,x"), "'0,x' is not of the form 0,2"),
    (("out", "--no-network", "--min-face", "-1"), "--min-face -1: must be 0 or more"),
    (("out", "--no-network", "--min-score", "2"), "--min-score 2: must be 0 to 1"),
    (("out", "--no-network", "--aligned", "--skip-sharp"), "--skip-sharp is for whole frames"),
    (("out", "--no-network", "--aligned", "--tracks", "0"), "--tracks is for whole frames"),
    (("--list-faces", "--aligned"), "--list-faces is for whole frames"),
    (("--no-network",), "name an OUTPUT"),
  ],
)
def test_bad_choices_are_refused(run, pair, tmp_path, monkeypatch, flags, pattern):
  monkeypatch.chdir(tmp_path)
  line = run(pair, *flags, code=2).err.splitlines()[-1]
  assert pattern in line
  assert [p.name for p in tmp_path.iterdir()] == ["pair.mkv"]
