"""Alignment: the fit against known similarities, its fallbacks, and the crop."""

from __future__ import annotations

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vsr_jax.faces import align


def similarity(scale: float, angle: float, x: float, y: float) -> np.ndarray:
  """The map frame -> crop that shrinks by `scale`, turns and brings (x, y) to the crop's centre."""
  c, s = scale * np.cos(angle), scale * np.sin(angle)
  matrix = np.array([[c, -s, 0], [s, c, 0]])
  matrix[:, 2] = 255.5 - matrix[:, :2] @ [x, y]
  return matrix


def move(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
  return points @ matrix[:, :2].T + matrix[:, 2]


def landmarks_of(matrix: np.ndarray) -> np.ndarray:
  return move(align.invert(matrix), align.TEMPLATE)


@hypothesis.given(
  st.floats(0.1, 8), st.floats(-np.pi, np.pi), st.floats(-500, 5000), st.floats(-500, 5000)
)
def test_finds_the_similarity(scale, angle, x, y):
  matrix = similarity(scale, angle, x, y)
  for robust in (True, False):
    found, fallback = align.fit(landmarks_of(matrix)[None], robust=robust)
    # OpenCV refines its fit to about 1e-6 of the image's coordinates, here up to 5000 times 8.
    np.testing.assert_allclose(move(found[0], landmarks_of(matrix)), align.TEMPLATE, atol=0.05)
    assert not fallback.any()
  assert align.scale(matrix) == pytest.approx(scale)


def test_one_wrong_landmark_changes_nothing():
  matrix = similarity(1.5, 0.1, 300, 200)
  points = np.repeat(landmarks_of(matrix)[None], 5, 0)
  points[np.arange(5), np.arange(5)] += [12, -9]  # a different one each time; 22 pixels of the crop
  found, fallback = align.fit(points)
  np.testing.assert_allclose(found, np.repeat(matrix[None], 5, 0), atol=1e-2)
  assert not fallback.any()
  plain, _ = align.fit(points, robust=False)
  assert np.abs(plain - matrix).max() > 0.5


def test_is_deterministic():
  points = align.TEMPLATE + np.random.default_rng(0).normal(0, 8, (20, 5, 2))
  np.testing.assert_array_equal(align.fit(points)[0], align.fit(points)[0])
  np.testing.assert_array_equal(align.fit(points[7:8])[0][0], align.fit(points)[0][7])


def test_plain_fit_is_the_least_squares_one():
  rng = np.random.default_rng(1)
  points = align.TEMPLATE + rng.normal(0, 20, (5, 2))
  (matrix,), _ = align.fit(points[None], robust=False)
  rows = [[(x, -y, 1, 0), (y, x, 0, 1)] for x, y in points]
  a, b, tx, ty = np.linalg.lstsq(np.reshape(rows, (10, 4)), align.TEMPLATE.ravel())[0]
  np.testing.assert_allclose(matrix, [[a, -b, tx], [b, a, ty]], atol=1e-9)


def test_inverse():
  matrices = np.stack([similarity(0.3, 2, 9, -7), similarity(4, -1, 1000, 20)])
  for matrix, inverse in zip(matrices, align.invert(matrices), strict=True):
    np.testing.assert_allclose(inverse, cv2.invertAffineTransform(matrix), rtol=1e-9, atol=1e-9)


def test_crop_size_scales_the_template():
  (matrix,), _ = align.fit(align.TEMPLATE[None], size=128)
  np.testing.assert_allclose(matrix, [[0.25, 0, 0], [0, 0.25, 0]], atol=1e-6)


def test_profile_falls_back_to_all_landmarks():
  """Seen from the side the landmarks lie on one line, where the robust fit turns by 41 degrees."""
  profile = align.TEMPLATE * [0, 1] + [100, 0]
  raw, _ = cv2.estimateAffinePartial2D(profile, align.TEMPLATE, method=cv2.LMEDS)
  assert np.degrees(np.arctan2(raw[1, 0], raw[0, 0])) > 40
  (matrix,), (fallback,) = align.fit(profile[None])
  assert fallback
  assert abs(np.arctan2(matrix[1, 0], matrix[0, 0])) < np.radians(5)
  assert 0.8 < align.scale(matrix) < 1.25


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_impossible_landmarks_take_the_nearest_frame(value):
  rng = np.random.default_rng(3)
  points = align.TEMPLATE + rng.normal(0, 1, (6, 1, 2))
  points[[0, 3]] = value
  matrices, fallback = align.fit(points)
  assert fallback.tolist() == [True, False, False, True, False, False]
  np.testing.assert_array_equal(matrices[0], matrices[1])
  np.testing.assert_array_equal(matrices[3], matrices[2])
  with pytest.raises(ValueError, match="apart"):
    align.fit(points[:1])
  with pytest.raises(ValueError, match="apart"):
    align.fit(points[:0])


def test_wrong_shape_is_refused():
  with pytest.raises(ValueError, match=r"\(5, 2\)"):
    align.fit(align.TEMPLATE)


@hypothesis.given(st.integers(0, 2**32 - 1))
def test_any_landmarks_give_a_finite_fit(seed):
  rng = np.random.default_rng(seed)
  points = rng.normal(0, 10.0 ** rng.uniform(-1, 3), (4, 5, 2)) + rng.uniform(-100, 2000, 2)
  points = points * rng.choice([0, 1], 2, p=[0.2, 0.8])
  try:
    matrices, _ = align.fit(points)
  except ValueError:
    return
  assert np.isfinite(matrices).all()
  assert (align.scale(matrices) > 0).all()


def test_crop_shows_the_frame_and_grey_beyond():
  y, x = np.mgrid[:100, :120]
  frame = np.stack([2 * x, 2 * y, x + y], -1).astype(np.uint8)
  matrix = similarity(4, 0, 0, 50)  # the face's centre on the frame's left edge
  face = align.align(frame, matrix)
  assert face.shape == (512, 512, 3)
  assert face.dtype == np.uint8
  np.testing.assert_array_equal(face[:, :250], np.broadcast_to(align.BORDER, (512, 250, 3)))
  u, v = 400, 300
  at = move(align.invert(matrix), np.array([u, v]))
  np.testing.assert_allclose(face[v, u], [2 * at[0], 2 * at[1], at.sum()], atol=1)  # rounding


def test_equals_the_released_crop():
  """That warps BGR images, with (135, 133, 132) around."""
  frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
  matrix = similarity(3, 0.2, 40, 30)
  bgr = cv2.warpAffine(frame[..., ::-1], matrix, (512, 512), borderValue=(135, 133, 132))
  np.testing.assert_array_equal(align.align(frame, matrix), bgr[..., ::-1])


@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (720, 1281)])
def test_frames_of_any_size(shape):
  frames = [np.full((*shape, 3), value, np.uint8) for value in (10, 200)]
  matrices = np.stack([similarity(0.5, 0.3, shape[1] / 2, shape[0] / 2)] * 2)
  faces = align.align_frames(frames, matrices)
  assert faces.shape == (2, 512, 512, 3)
  for frame, matrix, face in zip(frames, matrices, faces, strict=True):
    np.testing.assert_array_equal(face, align.align(frame, matrix))


def test_a_crop_much_smaller_than_the_face_has_no_aliases():
  """Stripes finer than the crop's pixels turn grey; coarse ones stay where they are."""
  x = np.arange(512)
  fine = np.where(x % 2 == 0, 255, 0).astype(np.uint8)
  coarse = np.rint(127.5 + 100 * np.sin(2 * np.pi * (x + 0.5) / 128)).astype(np.uint8)
  matrix = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])  # keeps the frame's corner
  frames = [np.broadcast_to(line[None, :, None], (512, 512, 3)) for line in (fine, coarse)]
  grey, waves = (align.align_reduced(np.ascontiguousarray(f), matrix, 128) for f in frames)
  assert np.abs(grey[4:-4, 4:-4].astype(int) - 127).max() <= 3
  want = 127.5 + 100 * np.sin(2 * np.pi * (np.arange(128) + 0.5) / 32)
  assert np.abs(waves[64, 4:-4, 0] - want[4:-4]).max() < 2
  same = np.array([[1.0, 0, 3], [0, 1, -2]])
  moved = align.align_reduced(np.ascontiguousarray(frames[1]), same, 512)
  np.testing.assert_array_equal(moved[:500, 3:], frames[1][:500, :-3])
