"""The measure of sharpness: what it answers to, and what not."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import pytest
import skimage.data

from vsr_jax.faces import align, sharpness
from vsr_jax.faces.detector import make_detector

PHOTO = skimage.data.astronaut()[:280, 60:400]


@functools.cache
def aligned() -> np.ndarray:
  """The photo enlarged to the crop's size, then sharpened: as sharp as a large photograph."""
  face = align.align(PHOTO, align.fit(make_detector()(PHOTO).landmarks[:1])[0][0])
  return cv2.addWeighted(face, 4, cv2.GaussianBlur(face, (0, 0), 1.5), -3, 0)


def reduced(face: np.ndarray, factor: int) -> np.ndarray:
  small = cv2.resize(face, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
  return cv2.resize(small, face.shape[:2], interpolation=cv2.INTER_LINEAR)


def test_blur_and_enlarging_are_told():
  sharp = sharpness.measure(aligned())
  assert sharp > sharpness.THRESHOLD
  values = [sharpness.measure(cv2.GaussianBlur(aligned(), (0, 0), s)) for s in (1, 2, 4, 8)]
  assert sorted([sharp, *values], reverse=True) == [sharp, *values]
  assert values[2] < sharpness.THRESHOLD
  assert sharpness.measure(reduced(aligned(), 4)) < sharpness.THRESHOLD


def test_exposure_contrast_and_surroundings_do_not_count():
  sharp = sharpness.measure(aligned())
  darker = np.uint8(np.rint(aligned() * 0.5 + 40))
  assert sharpness.measure(darker) == pytest.approx(sharp, rel=0.03)
  framed = aligned().copy()
  framed[:100] = framed[-20:] = 0
  framed[:, :80] = framed[:, -80:] = 255
  assert sharpness.measure(framed) == pytest.approx(sharp, rel=1e-6)


def test_a_flat_face_has_none():
  assert sharpness.measure(np.full((512, 512, 3), 90, np.uint8)) == 0


def test_another_size_is_refused():
  with pytest.raises(ValueError, match="256"):
    sharpness.measure(np.zeros((256, 256, 3), np.uint8))
