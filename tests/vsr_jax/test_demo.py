"""The picture that both demonstrations make."""

from __future__ import annotations

import numpy as np

from vsr_jax import demo


def test_the_detail_is_where_most_is_gained():
  truth = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
  bicubic = np.full_like(truth, 128)
  restored = bicubic.copy()
  restored[20:28, 30:42] = truth[20:28, 30:42]
  picture = demo.side_by_side((bicubic, restored, truth), 4)
  detail = truth[20:28, 30:42].repeat(4, axis=0).repeat(4, axis=1)
  np.testing.assert_array_equal(picture[:32], np.hstack([bicubic, restored, truth]))
  np.testing.assert_array_equal(picture[32:, 48:96], detail)
  np.testing.assert_array_equal(picture[32:, 96:], detail)


def test_the_detail_is_about_a_point_within_the_image():
  images = tuple(np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8))
  for center, top, left in (((24, 16), 8, 12), ((0, 31), 16, 0), ((47, 0), 0, 24)):
    picture = demo.side_by_side(images, 2, center)
    detail = images[0][top : top + 16, left : left + 24].repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(picture[32:, :48], detail)
