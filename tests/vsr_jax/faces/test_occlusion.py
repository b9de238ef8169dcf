"""Who is in front of whom, and what that keeps from being painted."""

from __future__ import annotations

import numpy as np

from vsr_jax.faces import align, occlusion, paste

SIZE = 64  # of the crops here


def matrix(x: float, y: float, scale: float) -> np.ndarray:
  """Of an upright face around (x, y), `scale` pixels of the frame a pixel of a crop of SIZE."""
  return np.array([[1 / scale, 0, 32 - x / scale], [0, 1 / scale, 32 - y / scale]])


def plain(value: int) -> np.ndarray:
  return np.full((SIZE, SIZE, 3), value, np.uint8)


def radii(m: np.ndarray, height: int, width: int) -> np.ndarray:
  points = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
  return occlusion.head_radius(points @ m[:, :2].T + m[:, 2], SIZE)


def test_each_pixel_of_a_head_belongs_to_the_nearest():
  frame = plain(0)[:1, :1].repeat(200, 0).repeat(300, 1)
  far, near = matrix(110, 80, 1.5), matrix(180, 110, 2.5)
  in_far, in_near = (radii(m, 200, 300) < 0.9 for m in (far, near))
  off_near = radii(near, 200, 300) > 1.1
  pasted = paste.paste(frame, [plain(100), plain(200)], [far, near], apart=True)
  assert (in_far & in_near).sum() > 500
  alone = paste.paste(frame, [plain(200)], [near])
  np.testing.assert_array_equal(pasted[in_near], alone[in_near])
  # Of the far face the near one leaves what is to be seen, though its square reaches over it.
  seen = pasted[in_far & off_near]
  assert (seen == 100).mean() > 0.8
  assert seen.max() <= 100
  assert (paste.paste(frame, [plain(100), plain(200)], [far, near])[in_far] > 150).any()


def test_a_head_that_is_not_restored_is_not_painted_over():
  frame = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
  far, near = matrix(110, 80, 1.5), matrix(180, 110, 2.5)
  pasted = paste.paste(frame, [plain(100), None], [far, near], apart=True)
  in_near = radii(near, 200, 300) < 0.9
  np.testing.assert_array_equal(pasted[in_near], frame[in_near])
  assert (pasted != frame).any()
  alone = paste.paste(frame, [plain(100)], [far], apart=True)
  assert (alone[in_near] == 100).any()


def test_the_middle_one_of_three_hides_the_farthest_only():
  frame = np.zeros((200, 300, 3), np.uint8)
  ways = [matrix(100, 90, 1.0), matrix(140, 90, 1.5), matrix(190, 90, 2.0)]
  pasted = paste.paste(frame, [plain(80), plain(160), plain(240)], ways, apart=True)
  inside = [radii(m, 200, 300) < 0.9 for m in ways]
  outside = [radii(m, 200, 300) > 1.1 for m in ways]
  alone = paste.paste(frame, [plain(240)], ways[2:])
  np.testing.assert_array_equal(pasted[inside[2]], alone[inside[2]])
  assert pasted[inside[1] & outside[2]].max() == 160
  assert pasted[inside[0] & outside[1] & outside[2]].max() == 80


def test_heads_are_as_large_in_an_enlarged_frame():
  frame = np.zeros((100, 150, 3), np.uint8)
  ways = [matrix(55, 40, 0.75), matrix(90, 55, 1.25)]
  once = paste.paste(frame, [plain(100), plain(200)], ways, apart=True)
  twice = paste.paste(frame, [plain(100), plain(200)], ways, 2, apart=True)
  assert np.abs(twice[::2, ::2].astype(int) - once).mean() < 4


def test_faces_far_apart_are_pasted_as_ever():
  frame = np.random.default_rng(1).integers(0, 256, (100, 400, 3), np.uint8)
  faces, ways = [plain(100), plain(200)], [matrix(50, 50, 1), matrix(350, 50, 1)]
  np.testing.assert_array_equal(
    paste.paste(frame, faces, ways, apart=True), paste.paste(frame, faces, ways)
  )


def test_a_face_with_three_landmarks_behind_a_head_is_hidden():
  near = matrix(100, 100, 1.0)  # its head is about 52 wide

  def points(x):
    return np.float32([[(align.TEMPLATE - 256) * (SIZE / align.SIZE) * 0.8 + [x, 100]]])[0]

  assert occlusion.hidden_behind(points(105), near[None], SIZE).tolist() == [True]
  assert occlusion.hidden_behind(points(122), near[None], SIZE).tolist() == [True]
  assert occlusion.hidden_behind(points(140), near[None], SIZE).tolist() == [False]


def test_sizes_and_flags_are_steady():
  rng = np.random.default_rng(2)
  walk = np.linspace(1, 2, 100) * np.where(rng.random(100) < 0.1, 1.5, 1)
  sizes = occlusion.running_sizes(np.stack([matrix(50, 50, s) for s in walk]))
  np.testing.assert_allclose(sizes[15:-15], np.linspace(1, 2, 100)[15:-15], rtol=0.05)
  flags = np.zeros(60, bool)
  flags[30:] = True
  flags[[5, 55]] ^= True
  assert occlusion.running_majority(flags).tolist() == [False] * 30 + [True] * 30
  assert occlusion.running_majority(np.array([True])).tolist() == [True]
