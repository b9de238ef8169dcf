"""Tracks: cuts on made and real clips, who is who, gaps, smoothing, choice.

hamilton_detections.npz: the faces that MTCNN (facenet-pytorch 2.6.0) finds in the 275 frames of
face_recognition's short_hamilton_clip.mp4 (MIT): four shots, the second and third of the same
person from two sides, the last with four people beside each other.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from tests.vsr_jax.clips import moving_waves
from vsr_jax import video
from vsr_jax.faces import align, tracks
from vsr_jax.faces.detections import Detections

HAMILTON_CUTS = [20, 82, 211]


def face(x: float, y: float, size: float) -> tuple[np.ndarray, np.ndarray]:
  """Box and landmarks of a face as wide as `size` around (x, y)."""
  box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2])
  return box, (align.TEMPLATE - 256) * (size / 256) + [x, y]


def detections(*faces) -> Detections:
  boxes, landmarks = zip(*(face(*f) for f in faces), strict=True) if faces else ((), ())
  return Detections(
    np.float32(boxes).reshape(-1, 4),
    np.ones(len(faces), np.float32),
    np.float32(landmarks).reshape(-1, 5, 2),
  )


def hamilton() -> list[Detections]:
  with np.load(Path(__file__).parent / "hamilton_detections.npz") as file:
    ends = np.cumsum(file["counts"].astype(int))[:-1]
    parts = [np.split(file[key], ends) for key in ("boxes", "scores", "landmarks")]
  return [Detections(*part) for part in zip(*parts, strict=True)]


def centers(track: tracks.Track) -> np.ndarray:
  return (track.boxes[:, :2] + track.boxes[:, 2:]) / 2


# Cuts


def thumbnails(frames) -> list[np.ndarray]:
  return [tracks.thumbnail(frame) for frame in frames]


def scene(seed: int, count: int, speed: float = 0, noise: float = 0) -> np.ndarray:
  """A texture that moves by `speed` pixels a frame, uint8 [count 90 160 3]."""
  rng = np.random.default_rng(seed)
  texture = cv2.GaussianBlur(rng.normal(0, 1, (90, 160 + int(speed * count) + 1, 3)), None, 8)
  texture = 128 + 40 * texture / texture.std()
  moved = [texture[:, int(speed * t) :][:, :160] for t in range(count)]
  return np.stack(moved + rng.normal(0, noise, np.shape(moved))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("speed", [0, 3, 5])
@pytest.mark.parametrize("first", [1, 2, 20])
def test_finds_a_cut(speed, first):
  clip = np.concatenate([scene(1, first, speed, 4), scene(2, 20, speed, 4)])
  assert tracks.cuts(thumbnails(clip)) == [first]


@pytest.mark.parametrize("speed", [0, 3, 30, 80])
def test_motion_is_no_cut(speed):
  assert tracks.cuts(thumbnails(scene(1, 40, speed, 8))) == []


def test_the_start_of_fast_motion_is_no_cut():
  still, moving = scene(1, 20), scene(1, 20, 30)
  assert tracks.cuts(thumbnails(np.concatenate([still, moving]))) == []


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_no_cut(length):
  clip = scene(1, 30, 1)
  clip[15 : 15 + length] = clip[15 : 15 + length] // 4 + 190
  assert tracks.cuts(thumbnails(clip)) == []


def test_a_dissolve_and_a_fade_are_no_cuts():
  part = np.linspace(0, 1, 25)[:, None, None, None]
  clip = (scene(1, 25) * (1 - part) + scene(2, 25) * part).astype(np.uint8)
  assert tracks.cuts(thumbnails(clip)) == []
  assert tracks.cuts(thumbnails((scene(1, 25) * part).astype(np.uint8))) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_clips_have_no_cuts(count):
  assert tracks.cuts(thumbnails(moving_waves(count))) == []


def test_cuts_of_a_real_clip(shared):
  path = shared / "data" / "faces" / "facerecognition_short_hamilton_clip.mp4"
  with video.open_reader(str(path)) as reader:
    assert tracks.cuts([tracks.thumbnail(frame.image) for frame in reader]) == HAMILTON_CUTS


@pytest.mark.slow
def test_no_cut_in_single_shots(shared):
  """And one where two of them are joined."""
  clips = sorted((shared / "data").glob("*/*.mp4"))
  kept = {}
  for path in clips:
    if "hamilton" in path.name or path.parent.name == "faces_low_quality":
      continue
    with video.open_reader(str(path), 0, 150) as reader:
      kept[path.name] = [tracks.thumbnail(frame.image) for frame in reader]
  assert len(kept) > 10
  assert {name: found for name, images in kept.items() if (found := tracks.cuts(images))} == {}
  for a, b in itertools.pairwise(kept):
    assert tracks.cuts(kept[a][:40] + kept[b][:40]) == [min(40, len(kept[a]))], (a, b)


# Tracks


def test_one_person_is_one_track():
  frames = [detections((100 + 3 * t, 80, 50)) for t in range(30)]
  (track,) = tracks.follow(frames, sigma=0)
  assert (track.start, track.stop) == (0, 30)
  assert track.found.all()
  expected = np.stack([d.landmarks[0] for d in frames])
  np.testing.assert_allclose(track.landmarks, expected, atol=1e-3)  # float32
  assert track.landmarks.dtype == track.boxes.dtype == np.float32


def test_misses_are_interpolated():
  frames = [
    detections((100 + 2 * t, 80 + t, 50)) if t not in (4, 5, 6, 15) else detections()
    for t in range(20)
  ]
  (track,) = tracks.follow(frames, sigma=0)
  assert np.flatnonzero(~track.found).tolist() == [4, 5, 6, 15]
  time = np.arange(20)
  np.testing.assert_allclose(centers(track), np.stack([100 + 2 * time, 80 + time], 1), atol=1e-3)


@pytest.mark.parametrize(("missed", "count"), [(12, 1), (13, 2)])
def test_a_long_gap_ends_a_track(missed, count):
  frames = [detections((100, 80, 50))] * 20 + [detections()] * missed
  found = tracks.follow(frames + [detections((100, 80, 50))] * 20, max_gap=12)
  assert len(found) == count
  assert found[-1].stop == 40 + missed
  assert found[0].stop == (40 + missed if count == 1 else 20)  # no frames after the last sight


def test_a_cut_ends_a_track():
  frames = [detections((100, 80, 50))] * 20
  first, second = tracks.follow(frames, cuts=[8])
  assert (first.start, first.stop, second.start, second.stop) == (0, 8, 8, 20)


def test_a_late_face_starts_a_track():
  frames = [detections((100, 80, 50), *[(300, 90, 40)] * (t >= 12)) for t in range(30)]
  first, second = tracks.follow(frames)
  assert (first.start, second.start, second.stop) == (0, 12, 30)
  np.testing.assert_allclose(centers(second), np.tile([300, 90], (18, 1)), atol=1e-3)


@pytest.mark.parametrize("occluded", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rise", [0, 10])
def test_people_who_cross_stay_who_they_are(occluded, reverse, rise):
  """At the same size; with one hidden behind the other for up to nine frames."""
  rng = np.random.default_rng(0)
  frames = []
  for t in range(60):
    noise = rng.normal(0, 1, (2, 2))
    a = (100 + 5 * t + noise[0, 0], 100 + noise[0, 1], 50)
    b = (395 - 5 * t + noise[1, 0], 100 + rise + noise[1, 1], 50)
    hidden = occluded and abs(a[0] - b[0]) < 50
    faces = [a] if hidden else [b, a] if reverse ^ (t % 2) else [a, b]
    frames.append(detections(*faces))
  found = tracks.follow(frames, sigma=0)
  assert len(found) == 2
  for track in found:
    steps = np.diff(centers(track)[:, 0])
    assert len(track.found) == 60
    assert (np.sign(steps) == np.sign(steps[0])).mean() > 0.9  # noise may turn a step round
    assert abs(centers(track)[-1, 0] - centers(track)[0, 0]) > 280


def test_a_far_or_much_larger_face_is_someone_else():
  near = [detections((100, 80, 50))] * 10
  for other in ((160, 80, 50), (100, 80, 120)):
    found = tracks.follow(near + [detections(other)] * 10)
    assert [(track.start, track.stop) for track in found] == [(0, 10), (10, 20)]


def test_false_finds_are_dropped():
  frames = [detections((100, 80, 50), *[(300, 90, 40)] * (t in (5, 6))) for t in range(20)]
  assert len(tracks.follow(frames)) == 1
  assert len(tracks.follow(frames, min_found=2)) == 2
  flicker = [detections(*[(100, 80, 50)] * (t % 3 == 0)) for t in range(40)]
  assert tracks.follow(flicker) == []
  small = [detections((100, 80, 8))] * 20  # eyes 4 pixels apart
  assert tracks.follow(small) == []
  assert len(tracks.follow(small, min_eye_distance=3)) == 1


def test_one_frame_and_no_faces():
  (track,) = tracks.follow([detections((100, 80, 50))])
  assert (track.start, track.stop) == (0, 1)
  np.testing.assert_allclose(track.landmarks[0], face(100, 80, 50)[1], atol=1e-4)
  assert tracks.follow([]) == []
  assert tracks.follow([detections()] * 9, cuts=[4]) == []
  short = tracks.follow([detections((100, 80, 50))] * 5, cuts=[2, 3])
  assert [(t.start, t.stop) for t in short] == [(0, 2), (2, 3), (3, 5)]


def test_landmarks_are_smoothed_as_released():
  """gaussian_filter1d after interpolation, sigma 5, mirrored at both ends; boxes are not."""
  rng = np.random.default_rng(5)
  places = np.cumsum(rng.normal(0, 2, (40, 2)), 0) + 200
  frames = [detections((*p, 60)) if t != 10 else detections() for t, p in enumerate(places)]
  (track,) = tracks.follow(frames)
  raw = np.stack([face(*p, 60)[1] for p in places])
  raw[10] = (raw[9] + raw[11]) / 2
  n, sigma = len(raw), 5
  offsets = np.arange(-4 * sigma, 4 * sigma + 1)
  weights = np.exp(-0.5 * (offsets / sigma) ** 2)
  index = np.arange(n)[:, None] + offsets
  index = np.where(index < 0, -1 - index, index)
  index = np.where(index >= n, 2 * n - 1 - index, index)
  expected = np.einsum("nokc,o->nkc", raw[index], weights / weights.sum())
  np.testing.assert_allclose(track.landmarks, expected, atol=1e-3)
  np.testing.assert_allclose(expected, gaussian_filter1d(raw, 5, axis=0), atol=1e-9)
  np.testing.assert_allclose(centers(track)[3], places[3], atol=1e-3)


def test_real_clip():
  found = tracks.follow(hamilton(), HAMILTON_CUTS)
  long = {(t.start, t.stop): t for t in found if len(t.found) >= 60}
  assert set(long) == {(82, 211), (211, 275)}
  assert sum((t.start, t.stop) == (211, 275) for t in found) == 4  # the four beside each other
  assert not any(t.start < cut < t.stop for t in found for cut in HAMILTON_CUTS)
  speaker = long[82, 211]
  assert speaker.found.mean() > 0.9
  # He leans about, but never by more than a quarter of his face's height between frames.
  assert np.abs(np.diff(centers(speaker), axis=0)).max() < 30
  chosen = tracks.choose_parts(found, "largest", 360, 640)
  times = np.concatenate([np.arange(t.start, t.stop) for t in chosen])
  assert len(set(times)) == len(times) > 250
  assert (82, 211) in [(t.start, t.stop) for t in chosen]


def test_real_people_who_cross():
  """The speaker and his mirror image walk past each other, with the detector's own noise."""
  frames = []
  for t, d in enumerate(hamilton()[100:200]):
    one = int(np.argmax(np.ptp(d.boxes[:, ::2], axis=1)))
    box, landmarks = d.boxes[one], d.landmarks[one]
    shift = np.float32([4 * t - 300, 0])
    mirrored = landmarks[[1, 0, 2, 4, 3]] * [-1, 1] + [440, 0] - shift
    faces = [(box + np.tile(shift, 2), landmarks + shift)]
    faces.append((np.r_[440 - box[2], box[1], 440 - box[0], box[3]] - np.tile(shift, 2), mirrored))
    boxes, points = zip(*faces[:: 1 if t % 2 else -1], strict=True)
    frames.append(Detections(np.float32(boxes), np.ones(2, np.float32), np.float32(points)))
  found = tracks.follow(frames, sigma=0)
  assert len(found) == 2
  ways = sorted(centers(track)[-1, 0] - centers(track)[0, 0] for track in found)
  assert ways[0] < -250
  assert ways[1] > 250


# Choice


def track(start: int, stop: int, size: float, x: float = 100) -> tracks.Track:
  n = stop - start
  box, points = face(x, 100, size)
  return tracks.Track(
    start,
    np.tile(np.float32(points), (n, 1, 1)),
    np.tile(np.float32(box), (n, 1)),
    np.ones(n, bool),
  )


def test_all_are_chosen():
  some = [track(0, 10, 50), track(2, 5, 90)]
  assert tracks.choose_parts(some, "all", 200, 200) == some
  assert (
    tracks.choose_parts([], "all", 200, 200) == tracks.choose_parts([], "largest", 200, 200) == []
  )


def test_largest_gives_one_face_a_frame():
  some = [track(0, 40, 50), track(10, 60, 60), track(5, 8, 190), track(70, 71, 10)]
  chosen = tracks.choose_parts(some, "largest", 200, 200)
  assert [(t.start, t.stop) for t in chosen] == [(0, 5), (5, 8), (8, 10), (10, 60), (70, 71)]
  assert [len(t.found) for t in chosen] == [5, 3, 2, 50, 1]
  assert chosen[1].boxes[0, 2] - chosen[1].boxes[0, 0] == pytest.approx(190)


def test_what_is_outside_does_not_count():
  inside, outside = track(0, 10, 50), track(0, 10, 80, x=-30)
  (chosen,) = tracks.choose_parts([outside, inside], "largest", 200, 200)
  np.testing.assert_array_equal(chosen.boxes, inside.boxes)


def test_unknown_choice_is_refused():
  with pytest.raises(ValueError, match="biggest"):
    tracks.choose_parts([], "biggest", 200, 200)
