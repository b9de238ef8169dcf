"""KEEP's batches: shapes, which frames, alignment, determinism, evaluation."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_prep.helpers import texture
from vsr_jax.data_prep import batching, face_pipeline
from vsr_jax.data_prep.clip import Clip
from vsr_jax.data_prep.face_degrade import PRESETS, Degradation, degrade
from vsr_jax.errors import UserError
from vsr_jax.faces import align
from vsr_jax.faces.align import TEMPLATE
from vsr_jax.images import encode_image

SIZE = 64  # of the faces; the real size where it matters
GENTLE = Degradation(sigma_x=(0.5, 1), sigma_y=(0.5, 1), noise=(0, 1), crf=(1, 5))


def clip_of(name: str, frames: Sequence[np.ndarray], landmarks=()) -> Clip:
  return Clip(name, len(frames), {"sharp": [encode_image(x) for x in frames]}, landmarks=landmarks)


def numbered_clip(name: str, length: int, size: int = SIZE, red: int = 0) -> Clip:
  """Aligned frames of one colour: green tells the frame, red the clip."""
  frames = [np.full((size, size, 3), (red, 4 * i, 0), np.uint8) for i in range(length)]
  return clip_of(name, frames)


def textured_clip(name: str, length: int, size: int = SIZE, landmarks=()) -> Clip:
  frames = [texture(size, size, 3 * i) for i in range(length)]
  return clip_of(name, frames, landmarks)


SOURCE = [numbered_clip("anna", 60, red=50), numbered_clip("ben", 8, red=150)]
LENGTHS = [60, 8]


def clips(source=SOURCE, **changes):
  options = {"seed": 3, "size": SIZE, "num_frames": 4, "degradation": GENTLE}
  return face_pipeline.clips(source, **options | changes)


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def places(points, matrix):
  return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def landmarks_of(turn: float, zoom: float, shift: tuple[float, float], size: int) -> np.ndarray:
  """The template's points turned (radians), zoomed and shifted about the middle."""
  points = TEMPLATE * (size / 512)
  cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
  return (points - size / 2) @ np.array([[cos, sin], [-sin, cos]]) + size / 2 + np.array(shift)


def test_batches_of_all_three_stages_have_the_released_shapes():
  source = [textured_clip("anna", 9, 512, landmarks=np.tile(TEMPLATE, (9, 1, 1)))]
  images = batching.batch(face_pipeline.images(source, seed=0), 4)
  assert {name: (x.shape, x.dtype.name) for name, x in images[0].items()} == {
    "gt": ((4, 512, 512, 3), "uint8")
  }
  batches = batching.batch(face_pipeline.clips(source, seed=0), 2)
  assert {name: (x.shape, x.dtype.name) for name, x in batches[0].items()} == {
    "gt": ((2, 8, 512, 512, 3), "uint8"),
    "lq": ((2, 8, 128, 128, 3), "uint8"),
  }


def test_every_frame_is_an_image_of_an_epoch():
  samples = face_pipeline.images(SOURCE, seed=1, size=SIZE, epochs=2)
  colours = [tuple(samples[i]["gt"][0, 0]) for i in range(len(samples))]
  expected = [(50, 4 * i, 0) for i in range(60)] + [(150, 4 * i, 0) for i in range(8)]
  assert sorted(colours[:68]) == sorted(colours[68:]) == sorted(expected)
  assert colours[:68] != colours[68:]


def test_training_clips_have_one_interval_and_either_direction():
  samples = clips()
  seen = collections.Counter()
  for i in range(200):
    green = samples[i]["gt"][:, 0, 0, 1].astype(int) // 4
    steps = np.diff(green)
    assert (steps == steps[0]).all()
    clip = "anna" if samples[i]["gt"][0, 0, 0, 0] == 50 else "ben"
    seen[clip, int(steps[0])] += 1
  anna_steps = {step: n for (clip, step), n in seen.items() if clip == "anna"}
  assert sorted(anna_steps) == [*range(-6, 0), *range(1, 7)]
  # Of 8 frames, 4 span at most an interval of 2: the others do not fit.
  assert {step for clip, step in seen if clip == "ben"} == {-2, -1, 1, 2}
  backwards = sum(n for step, n in anna_steps.items() if step < 0) / sum(anna_steps.values())
  assert abs(backwards - 0.5) < 4 * 0.5 / np.sqrt(sum(anna_steps.values()))


@given(st.data())
@settings(max_examples=200)
def test_drawn_frames_lie_in_the_clip_and_around_the_centre_where_they_fit(data):
  num_frames = data.draw(st.integers(1, 8))
  length = data.draw(st.integers(num_frames, 80))
  centre = data.draw(st.integers(0, length - 1))
  rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
  frames = face_pipeline.draw_frames(rng, length, centre, num_frames, (1, 2, 5), 0.5)
  assert len(frames) == num_frames
  assert 0 <= frames.min() <= frames.max() < length
  ordered = np.sort(frames)
  step = ordered[1] - ordered[0] if num_frames > 1 else 1
  assert step in (1, 2, 5)
  first = centre - num_frames // 2 * step
  if num_frames > 1 and 0 <= first <= length - 1 - step * (num_frames - 1):
    assert ordered[num_frames // 2] == centre


def test_low_quality_is_the_degradation_of_the_same_frames():
  # Grey: H.264 halves the resolution of colours, which at this size would be most of the distance.
  frames = [texture(SIZE, SIZE, 3 * i)[..., 1:2].repeat(3, -1) for i in range(30)]
  gentle = clips([clip_of("anna", frames)], intervals=(3,))[5]
  reduced = np.stack([cv2.resize(f, (16, 16), interpolation=cv2.INTER_AREA) for f in gentle["gt"]])
  distance = np.abs(reduced[:, None].astype(int) - gentle["lq"][None]).mean((2, 3, 4))
  assert distance.argmin(1).tolist() == [0, 1, 2, 3]
  # Blurred by up to a pixel, reduced in another way, noise of up to one level: near.
  assert distance.diagonal().max() < 6


def test_the_blur_of_aligned_faces_is_in_parts_of_the_face():
  train, points = PRESETS["train"], landmarks_of(0.0, 1.0, (0, 0), 512)[None]
  small = face_pipeline.degradation_of(clip_of("anna", []), train, 128)
  assert (small.sigma_x, small.sigma_y, small.kernel_size) == ((0.5, 2.5), (0.5, 2.5), 5)
  assert face_pipeline.degradation_of(clip_of("anna", []), train, 512) is train
  # Frames of 512 pixels are degraded before they are aligned at any size.
  assert face_pipeline.degradation_of(clip_of("anna", [], points), train, 128) is train


def aligned(image: np.ndarray, points: np.ndarray) -> np.ndarray:
  clip = clip_of("anna", [image], points[None])
  return face_pipeline.align(image, face_pipeline.fit(clip, [0], 512, image.shape[:2])[0], 512, 1)


@pytest.mark.parametrize("zoom", [0.8, 1.3])
def test_alignment_leads_the_landmarks_to_the_template(zoom):
  points = landmarks_of(0.3, zoom, (20, -15), 512)
  image = np.zeros((512, 512, 3), np.float32)
  y, x = np.mgrid[:512, :512]
  for k, (px, py) in enumerate(points[[0, 1, 4]]):  # a spot of a colour at three of them
    image[..., k] = 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 50)
  got = aligned(np.rint(image).astype(np.uint8), points)
  for k, place in enumerate(TEMPLATE[[0, 1, 4]]):
    left, top = np.rint(place).astype(int) - 30  # around it, without border
    spot = got[top : top + 61, left : left + 61, k].astype(float)
    row, column = scipy.ndimage.center_of_mass(spot)
    # The warp's coordinates are multiples of 1/32 pixel, the image's levels whole.
    np.testing.assert_allclose([left + column, top + row], place, atol=0.1)


def test_what_lies_beyond_the_frame_is_grey():
  points = landmarks_of(0, 1, (100, 0), 512)
  got = aligned(np.zeros((512, 512, 3), np.uint8), points)
  assert tuple(got[200, -1]) == face_pipeline.BORDER
  assert not got[200, 200].any()


def test_good_and_low_quality_frames_are_aligned_alike():
  points = np.stack([landmarks_of(0.1 * np.sin(i), 0.9, (3 * i, -i), 256) for i in range(12)])
  source = [textured_clip("anna", 12, 256, points.astype(np.float32))]
  sample = clips(source, size=256)[1]
  assert sample["lq"].shape == (4, 64, 64, 3)
  for good, low in zip(sample["gt"], sample["lq"], strict=True):
    enlarged = cv2.resize(low, (256, 256), interpolation=cv2.INTER_CUBIC)
    inside = np.s_[70:190, 70:190, 1]
    _, moved = cv2.findTransformECC(
      good[inside], enlarged[inside], np.eye(2, 3, dtype=np.float32), cv2.MOTION_TRANSLATION
    )
    # `align` leaves 1.5 pixels' offset between the grids out: (1.5, 1.5) less itself turned by up
    # to 0.1 and enlarged by 1/0.9 is 0.3. Aligned by another frame's points it would be 2 or more.
    assert np.hypot(*moved[:, 2]) < 0.5


def test_each_frame_has_its_own_landmarks():
  points = np.stack([landmarks_of(0, 1, (4 * i, 0), SIZE) for i in range(8)]).astype(np.float32)
  # The content moves with the landmarks, so that aligned frames all look the same.
  frames = [texture(SIZE, SIZE, 4 * i) for i in range(8)]
  sample = clips([clip_of("anna", frames, points)], intervals=(1, 2))[0]
  middle = sample["gt"][:, 20:44, 8:30].astype(int)
  assert np.abs(middle - middle[:1]).max() <= 8  # interpolation; a frame's motion makes 100


def test_training_aligns_as_restoring_does_also_where_the_fit_goes_astray():
  points = np.stack([landmarks_of(0, 1, (2 * i, 0), 512) for i in range(3)])
  points[1, :, 0] = 256  # a profile: the landmarks lie on one line
  points[2] = 256  # no face: the nearest frame's alignment is taken
  clip = clip_of("anna", [texture(512, 512, 2 * i) for i in range(3)], points)
  matrices = face_pipeline.fit(clip, [2, 1, 0], 512, (512, 512))
  want, fallback = align.fit(points[::-1], 512)
  np.testing.assert_array_equal(matrices, want)
  assert fallback.tolist() == [True, True, False]
  np.testing.assert_array_equal(matrices[0], matrices[1])


def test_same_seed_same_batches_for_any_hosts_and_workers():
  whole = batching.batch(clips(), 4)
  parts = [batching.batch(clips(), 4, rows=rows) for rows in ((0, 1), (2, 3))]
  for step in range(3):
    shared = np.concatenate([part[step]["lq"] for part in parts])
    np.testing.assert_array_equal(shared, whole[step]["lq"])
  assert (batching.batch(clips(seed=4), 4)[0]["gt"] != whole[0]["gt"]).any()


def test_resuming_in_the_middle_of_an_epoch_gives_the_same_next_batch():
  batches = batching.batch(batching.mix([clips(), clips(seed=4)], [2, 1]), 2)
  fingerprint = batching.fingerprint(LENGTHS, 2, 3)
  with batching.BatchReader(batches, fingerprint=fingerprint) as iterator:
    for _ in range(3):
      next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(2)]
  with batching.BatchReader(batches, workers=2, fingerprint=fingerprint) as iterator:
    iterator.set_state(state)
    for batch in expected:
      assert_equal(batch, next(iterator))


def test_sources_mix_by_weight_and_stay_deterministic():
  one = clips([numbered_clip("a", 20, red=10)], seed=1)
  other = clips([numbered_clip("b", 9, red=200)], seed=2, degradation=PRESETS["mild"])
  mixed = batching.mix([one, other], [0.75, 0.25])
  reds = [int(mixed[i]["gt"][0, 0, 0, 0]) for i in range(40)]
  assert (reds.count(10), reds.count(200)) == (30, 10)
  assert_equal(mixed[17], batching.mix([one, other], [0.75, 0.25])[17])


def test_evaluation_shows_each_frame_once_in_order():
  batches = face_pipeline.evaluation_batches(
    SOURCE, low_quality=GENTLE, batch_size=2, chunk=25, size=SIZE
  )
  assert len(batches) == 2
  shapes = {name: x.shape for name, x in batches[0].items()}
  assert shapes == {
    "gt": (2, 25, SIZE, SIZE, 3),
    "lq": (2, 25, SIZE // 4, SIZE // 4, 3),
    "mask": (2, 25),
    "clip": (2,),
  }
  seen = []
  for b in batches:
    for gt, mask, clip in zip(*(b[k] for k in ("gt", "mask", "clip")), strict=True):
      seen += [(int(clip), int(x)) for x in gt[mask][:, 0, 0, 1] // 4]
      assert (gt[~mask] == gt[mask][-1:]).all()
  assert seen == [(0, i) for i in range(60)] + [(1, i) for i in range(8)]


def test_evaluation_of_every_15th_frame():
  batches = face_pipeline.evaluation_batches(
    [*SOURCE, numbered_clip("cleo", 50, red=200)],
    low_quality=GENTLE,
    chunk=3,
    interval=15,
    size=SIZE,
  )
  seen = [(int(b["clip"][0]), [int(x) // 4 for x in b["gt"][0, :, 0, 0, 1]]) for b in batches]
  assert seen == [
    (0, [0, 15, 30]),
    (0, [45, 45, 45]),
    (1, [0, 0, 0]),
    (2, [0, 15, 30]),
    (2, [45, 45, 45]),
  ]
  assert [int(b["mask"].sum()) for b in batches] == [3, 1, 1, 3, 1]
  every = face_pipeline.evaluation_batches(SOURCE[:1], low_quality=GENTLE, chunk=60, size=SIZE)
  np.testing.assert_array_equal(batches[0]["lq"][0], every[0]["lq"][0, [0, 15, 30]])


def test_evaluation_fills_up_for_all_hosts_alike():
  parts = [
    face_pipeline.evaluation_batches(
      SOURCE, low_quality=GENTLE, chunk=20, size=SIZE, batch_size=3, rows=(row,)
    )
    for row in range(3)
  ]
  assert [len(part) for part in parts] == [2, 2, 2]  # 4 chunks
  masks = [[int(b["mask"].sum()) for b in part] for part in parts]
  assert masks == [[20, 8], [20, 0], [20, 0]]


def test_evaluation_degrades_whole_clips_always_alike():
  source = [textured_clip("anna", 10), textured_clip("ben", 10)]
  options = {"low_quality": PRESETS["mild"], "size": SIZE}
  by_fours = face_pipeline.evaluation_batches(source, chunk=4, **options)
  at_once = face_pipeline.evaluation_batches(source[::-1], chunk=10, **options)
  one = np.concatenate([by_fours[i]["lq"][0][by_fours[i]["mask"][0]] for i in range(3)])
  np.testing.assert_array_equal(one, at_once[1]["lq"][0])
  good = at_once[1]["gt"][0]
  assert (degrade(good, np.random.default_rng(0), PRESETS["mild"]) != one).any()


def test_evaluation_takes_low_quality_frames_that_are_there():
  small = [encode_image(np.full((16, 16, 3), i, np.uint8)) for i in range(5)]
  clip = Clip("anna", 5, {**textured_clip("anna", 5).streams, "lq": small})
  (batch,) = face_pipeline.evaluation_batches([clip], low_quality="lq", chunk=5, size=SIZE)
  assert batch["lq"][0, :, 3, 3, 0].tolist() == [0, 1, 2, 3, 4]


def broken(**changes):
  return [dataclasses.replace(textured_clip("anna", 8), **changes)]


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (broken(streams={"other": [b""] * 8}), "clip anna has no stream sharp, only other"),
    (
      broken(streams={"sharp": [b"no image"] * 8}),
      r"clip anna, frame \d of sharp: cannot be",
    ),
    (broken(streams={"sharp": [b""] * 8}), r"clip anna, frame \d of sharp: cannot be"),
    (broken(landmarks=np.zeros((3, 5, 2))), r"clip anna, frame \d: has no landmarks|are no face"),
    (broken(landmarks=np.zeros((8, 5, 2))), "clip anna: its landmarks are no face"),
    (
      broken(landmarks=np.stack([landmarks_of(0, 1, (20 * i, 0), SIZE) for i in range(8)])),
      r"clip anna, frame [2-7]: its landmarks leave the frame of 64x64; make landmarks again",
    ),
    (
      [textured_clip("anna", 8, 72)],
      r"clip anna, frame \d: 72x72 without landmarks is no aligned",
    ),
    ([textured_clip("anna", 8, 60)], "clip anna: frames of 60x60 cannot be reduced by 4"),
  ],
)
def test_a_clip_that_cannot_be_used_is_named(source, message):
  with pytest.raises(UserError, match=message) as error:
    clips(source, intervals=(1,))[0]
  assert "\n" not in str(error.value)


def test_a_worker_passes_the_name_on():
  batches = batching.batch(clips(broken(streams={"sharp": [b"no image"] * 8})), 1)
  with (
    batching.BatchReader(batches, workers=1) as iterator,
    pytest.raises(UserError, match="clip anna, frame"),
  ):
    next(iterator)


def test_impossible_requests_are_told():
  with pytest.raises(UserError, match="no clip has the 4 frames"):
    clips([numbered_clip("anna", 3), numbered_clip("ben", 0)])
  with pytest.raises(UserError, match="no clip has the 10 frames"):
    clips([numbered_clip("anna", 9)] * 2, intervals=(3,))
  with pytest.raises(UserError, match="intervals"):
    clips(intervals=())
  with pytest.raises(UserError, match="no clip has a frame"):
    face_pipeline.evaluation_batches([numbered_clip("anna", 0)], low_quality=GENTLE)
  ended = dataclasses.replace(SOURCE[1], length=900)
  with pytest.raises(UserError, match="ends before frame"):
    face_pipeline.images([ended], seed=0, size=SIZE, epochs=1)[0]
