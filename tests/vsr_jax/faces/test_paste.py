"""Paste: the way back with an unchanged face, the mask against the released recipe, edges."""

from __future__ import annotations

import functools
import time

import cv2
import hypothesis
import numpy as np
import pytest
import skimage.data
from hypothesis import strategies as st

from tests.vsr_jax.faces.test_align import similarity
from vsr_jax import video
from vsr_jax.errors import UserError
from vsr_jax.faces import align, paste

# Landmarks that MTCNN finds in the first frame of a clip.
REAL = {
  "liveportrait_s18": [(742, 216), (844, 209), (815, 273), (761, 331), (842, 322)],
  "musetalk_sun": [(246, 217), (300, 214), (272, 245), (254, 272), (299, 269)],
  "videoretalking_3": [(212, 252), (319, 250), (259, 317), (220, 376), (317, 376)],
  "videoretalking_4": [(356, 208), (449, 220), (393, 263), (349, 300), (436, 312)],
  "liveportrait_d6": [(185, 236), (295, 236), (244, 299), (202, 362), (281, 362)],
  "liveportrait_d0": [(209, 249), (305, 250), (255, 316), (217, 372), (293, 372)],
}  # fmt: skip
# By eye, in scikit-image's picture of Eileen Collins.
ASTRONAUT = [(204, 113), (246, 111), (226, 138), (207, 157), (245, 155)]


@functools.cache
def picture(height: int, width: int) -> np.ndarray:
  """A photograph's spectrum, uint8 [height width 3]."""
  noise = np.random.default_rng(0).normal(0, 1, (height, width, 3))
  image = sum(s * cv2.GaussianBlur(noise, None, s) for s in (1.5, 3, 6, 12))
  image = np.uint8(np.clip(128 + 45 * image / image.std(), 0, 255))
  image.setflags(write=False)  # it is the same for every test
  return image


def mask_in_frame(matrix, shape, upscale=1.0, size=512, offset=None) -> np.ndarray:
  inverse = paste.to_frame(matrix, upscale, offset)
  ramp = paste.feather(inverse, size, upscale, shape)
  return cv2.warpAffine(np.outer(ramp, ramp), inverse, shape[::-1])


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
  return float(10 * np.log10(255**2 / np.square(a[where].astype(float) - b[where]).mean()))


def there_and_back(frame: np.ndarray, matrix: np.ndarray) -> float:
  """PSNR where the face is pasted fully, with a network that changes nothing; rest is exact."""
  before = frame.copy()
  pasted = paste.paste(frame, [align.align(frame, matrix)], [matrix])
  np.testing.assert_array_equal(frame, before)
  mask = mask_in_frame(matrix, frame.shape[:2])
  assert pasted.shape == frame.shape
  np.testing.assert_array_equal(pasted[mask == 0], frame[mask == 0])
  assert (mask == 0).any()
  return psnr(pasted, frame, mask > 0.999)


def scaled(frame: np.ndarray, landmarks, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """The frame resized so that the crop has `scale` pixels for each of its own, and the matrix."""
  points = np.array(landmarks, float)
  (matrix,), _ = align.fit(points[None])
  factor = align.scale(matrix) / scale
  how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
  resized = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=how)
  exact = np.array(resized.shape[1::-1]) / frame.shape[1::-1]
  return resized, align.fit((points + 0.5)[None] * exact - 0.5)[0][0]


# With an unchanged face


@pytest.mark.parametrize(
  ("scale", "least"), [(1, 36), (1.5, 40), (2, 40), (3, 40), (5, 40), (10, 40)]
)
@pytest.mark.parametrize("angle", [0, 0.3])
def test_an_unchanged_face_comes_back(scale, least, angle):
  frame = picture(720, 720)
  assert there_and_back(frame, similarity(scale, angle, 360.3, 360.6)) > least


@pytest.mark.parametrize("scale", [1.5, 2, 3])
def test_an_unchanged_photograph_comes_back(scale):
  frame, matrix = scaled(skimage.data.astronaut(), ASTRONAUT, scale)
  assert there_and_back(frame, matrix) > 40


@pytest.mark.parametrize("name", REAL)
def test_unchanged_real_faces_come_back(shared, name):
  with video.open_reader(str(shared / "data" / "faces" / f"{name}.mp4"), 0, 1) as reader:
    frame = next(reader).image
  (matrix,), _ = align.fit(np.array([REAL[name]]))
  for scale in (align.scale(matrix), 1.5, 3, 5):
    assert there_and_back(*scaled(frame, REAL[name], scale)) > (40 if scale >= 1.5 else 36), scale
  if align.scale(matrix) < 1.25:  # little enough enlarged to be still a sharp picture
    assert there_and_back(*scaled(frame, REAL[name], 1)) > 36


def test_enlarged_an_unchanged_face_lies_on_its_background():
  """Shifted by the half pixel that the released code adds, and without."""
  frame = picture(300, 400)
  matrix = similarity(2, 0.2, 200.3, 150.6)
  background = paste.enlarge(frame, 2)
  where = mask_in_frame(matrix, background.shape[:2], 2) > 0.999
  face = align.align(frame, matrix)
  exact = paste.paste(frame, [face], [matrix], 2, offset=0.5)
  assert psnr(exact, background, where) > 38
  released = paste.paste(frame, [face], [matrix], 2)
  half = cv2.warpAffine(
    background, np.array([[1, 0, 0.5], [0, 1, 0.5]]), (800, 600), flags=cv2.INTER_CUBIC
  )
  assert psnr(released, half, where) > 36
  assert psnr(released, background, where) < psnr(exact, background, where) - 3


# The mask


def released_mask(inverse: np.ndarray, upscale: int, height: int, width: int) -> np.ndarray:
  """The recipe of facts: ones warped, eroded twice, blurred."""
  ones = cv2.warpAffine(np.ones((512, 512), np.float32), inverse, (width, height))
  eroded = cv2.erode(ones, np.ones((2 * upscale, 2 * upscale), np.uint8))
  w = int(eroded.sum() ** 0.5) // 20
  center = cv2.erode(eroded, np.ones((2 * w, 2 * w), np.uint8))
  return cv2.GaussianBlur(center, (2 * w + 1, 2 * w + 1), 0)


@pytest.mark.parametrize("upscale", [1, 2, 4])
@pytest.mark.parametrize("side", [120, 200, 300])
@pytest.mark.parametrize("angle", [0, 0.1, 0.5, 2.4])
def test_feather_equals_the_released_mask(upscale, side, angle):
  shape = 450 * upscale, 460 * upscale
  inverse = paste.to_frame(similarity(512 / side, angle, 230, 225), upscale)
  expected = released_mask(inverse, upscale, *shape)
  ramp = paste.feather(inverse, 512, upscale, shape)
  moved = inverse + [[0, 0, 1], [0, 0, 1]]  # two erosions by an even width: half a pixel each
  got = cv2.warpAffine(np.outer(ramp, ramp), moved, shape[::-1])
  # A soft edge eroded pixel by pixel, and w in whole pixels of an area that differs a little.
  assert np.abs(got - expected).max() < 0.06
  assert abs(got.mean() - expected.mean()) < 1e-3
  assert ramp.max() > 0.999
  assert max(ramp[0], ramp[-1]) < 0.5 / 255  # rounded away even between black and white


@pytest.mark.parametrize("upscale", [1, 2, 3.5])
def test_offset_and_size(upscale):
  matrix = similarity(2, 0, 100, 80)
  inverse = paste.to_frame(matrix, upscale)
  offset = upscale / 2 if upscale > 1 else 0
  np.testing.assert_allclose(inverse @ [255.5, 255.5, 1], upscale * np.array([100, 80]) + offset)
  corners = paste.outline(inverse, 512)
  np.testing.assert_allclose(np.ptp(corners, axis=0), [256 * upscale] * 2, rtol=1e-5)
  assert paste.paste(picture(81, 101), [], [], upscale).shape == (
    int(81 * upscale),
    int(101 * upscale),
    3,
  )


def test_a_mask_takes_away():
  frame = picture(400, 400)
  matrix = similarity(2, 0, 200, 200)
  face = np.full((512, 512, 3), 255, np.uint8)
  mask = np.zeros((512, 512), np.float32)
  mask[:, :256] = 1
  half = paste.paste(frame, [face], [matrix], masks=[mask])
  whole = paste.paste(frame, [face], [matrix])
  np.testing.assert_array_equal(half[:, 202:], frame[:, 202:])
  np.testing.assert_array_equal(half[:, :198], whole[:, :198])
  assert (whole[180:220, 180:220] == 255).all()


def test_blending_rounds():
  """A black face on white: the frame shows the mask, to the nearest level."""
  frame = np.full((400, 500, 3), 255, np.uint8)
  matrix = similarity(1.7, 0.4, 250, 200)
  pasted = paste.paste(frame, [np.zeros((512, 512, 3), np.uint8)], [matrix])
  expected = 255 * (1 - mask_in_frame(matrix, (400, 500)))
  assert np.abs(pasted - expected[..., None]).max() < 0.75


def test_a_small_face_does_not_alias():
  """Stripes of two pixels shown ten times smaller are an even grey; untouched they beat."""
  stripes = np.zeros((512, 512, 3), np.uint8)
  stripes[:, ::4] = stripes[:, 1::4] = 200
  frame = np.full((100, 100, 3), 100, np.uint8)
  matrix = similarity(10.3, 0.02, 50, 50)
  pasted = paste.paste(frame, [stripes], [matrix])
  plain = cv2.warpAffine(stripes, paste.to_frame(matrix, 1), (100, 100))
  inner = mask_in_frame(matrix, (100, 100)) > 0.999
  assert inner.sum() > 1000
  assert np.abs(pasted[inner].astype(int) - 100).max() <= 2
  assert plain[inner].std() > 20


# Edges


@hypothesis.given(
  st.floats(0.2, 20),
  st.floats(-3.1, 3.1),
  st.floats(-150, 350),
  st.floats(-150, 350),
  st.booleans(),
)
@hypothesis.settings(max_examples=60)
def test_faces_anywhere_leave_the_rest_exactly(scale, angle, x, y, odd):
  """Over the border, outside, tiny, larger than the frame."""
  frame = picture(151 if odd else 150, 203 if odd else 200)
  matrix = similarity(scale, angle, x, y)
  face = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
  pasted = paste.paste(frame, [face], [matrix])
  mask = mask_in_frame(matrix, frame.shape[:2])
  np.testing.assert_array_equal(pasted[mask == 0], frame[mask == 0])


def test_a_face_at_the_border_reaches_it():
  frame = np.full((300, 400, 3), 200, np.uint8)
  matrix = similarity(2, 0, 20, 150)  # 108 of its 256 pixels lie left of the frame
  face = align.align(frame, matrix)
  pasted = paste.paste(frame, [np.where(face == 200, np.uint8(50), face)], [matrix])
  assert (pasted[100:200, 2:50] == 50).all()
  # In the two outermost columns the crop's grey border mixes in, as in the released code.
  assert (pasted[100:200, :2] < 135).all()
  np.testing.assert_array_equal(pasted[:, 160:], frame[:, 160:])


def test_several_faces_lie_one_on_the_other():
  frame = picture(300, 400)
  matrices = [similarity(4, 0, x, 150) for x in (100, 180, 300)]
  faces = [np.full((512, 512, 3), value, np.uint8) for value in (0, 100, 255)]
  pasted = paste.paste(frame, faces, matrices)
  assert [pasted[150, x, 0] for x in (70, 150, 300)] == [0, 100, 255]
  one_by_one = frame
  for face, matrix in zip(faces, matrices, strict=True):
    one_by_one = paste.paste(one_by_one, [face], [matrix])
  np.testing.assert_array_equal(pasted, one_by_one)


def test_no_faces_give_the_background():
  frame = picture(37, 53)
  np.testing.assert_array_equal(paste.paste(frame, [], []), frame)
  assert paste.paste(frame, [], []) is not frame
  background = cv2.resize(frame, (159, 111), interpolation=cv2.INTER_LANCZOS4)
  np.testing.assert_array_equal(paste.paste(frame, [], [], 3), background)


def test_very_large_upscale():
  frame = picture(61, 83)
  matrix = similarity(9, 0.1, 40, 30)
  face = align.align(frame, matrix)
  pasted = paste.paste(frame, [face], [matrix], 24)
  assert pasted.shape == (1464, 1992, 3)
  mask = mask_in_frame(matrix, (1464, 1992), 24)
  np.testing.assert_array_equal(pasted[mask == 0], paste.enlarge(frame, 24)[mask == 0])
  with pytest.raises(UserError, match=r"1280x720 at upscale 30 .* at most 25\.6"):
    paste.enlarged_size(720, 1280, 30)
  for bad in (0.5, 0, -1, float("nan"), float("inf")):
    with pytest.raises(UserError, match="factor of 1 or more"):
      paste.enlarged_size(720, 1280, bad)


def test_faces_of_other_sizes():
  """A face of 1024 needs the matrix of that size, and lands where one of 512 does."""
  frame = picture(300, 400)
  points = align.invert(similarity(2, 0.2, 200, 150))
  landmarks = (align.TEMPLATE @ points[:, :2].T + points[:, 2])[None]
  results = []
  for size in (256, 512, 1024):
    (matrix,), _ = align.fit(landmarks, size)
    results.append(paste.paste(frame, [align.align(frame, matrix, size)], [matrix]))
  for result in results:
    assert psnr(result, frame, np.ones(frame.shape[:2], bool)) > 36


def test_wrong_arguments_are_refused():
  frame, matrix = picture(64, 64), similarity(9, 0, 32, 32)
  face = np.zeros((512, 512, 3), np.uint8)
  with pytest.raises(ValueError, match="face of float32"):
    paste.paste(frame, [face.astype(np.float32)], [matrix])
  with pytest.raises(ValueError, match="face of uint8"):
    paste.paste(frame, [face[:256]], [matrix])
  with pytest.raises(ValueError, match="mask of shape"):
    paste.paste(frame, [face], [matrix], masks=[np.zeros((256, 256), np.float32)])
  with pytest.raises(ValueError, match="shorter|longer"):
    paste.paste(frame, [face], [])


# Background and grey


def test_an_upscaler_of_any_factor():
  frame = picture(40, 60)
  seen = []

  def twice(image):
    seen.append(image)
    return image.repeat(2, 0).repeat(2, 1)

  np.testing.assert_array_equal(paste.enlarge(frame, 2, twice), twice(frame))
  assert seen[0] is frame
  expected = cv2.resize(twice(frame), (180, 120), interpolation=cv2.INTER_LANCZOS4)
  np.testing.assert_array_equal(paste.enlarge(frame, 3, twice), expected)
  with pytest.raises(ValueError, match="the upscaler returned float64"):
    paste.enlarge(frame, 2, lambda image: image / 255)


@pytest.mark.parametrize("upscale", [1, 1.5, 2])
def test_what_an_upscaler_enlarges_too_much_is_reduced_without_aliasing(upscale):
  """Waves that the output can show stay as they are, finer ones become grey."""
  x = np.arange(400) / 4 * upscale  # an upscaler x4; in pixels of the output

  def result(period):
    wave = np.rint(127.5 + 100 * np.sin(2 * np.pi * x / period)).astype(np.uint8)
    image = np.broadcast_to(wave[:, None], (160, 400, 3))
    return paste.enlarge(np.zeros((40, 100, 3), np.uint8), upscale, lambda _: image)

  assert result(3)[:, 10:-10].std() == pytest.approx(100 / np.sqrt(2), rel=0.1)
  assert result(1.3)[:, 10:-10].std() < 5


def test_an_upscaler_may_return_its_input():
  frame = picture(200, 200)
  before = frame.copy()
  paste.paste(
    frame, [np.zeros((512, 512, 3), np.uint8)], [similarity(4, 0, 100, 100)], upscaler=lambda x: x
  )
  np.testing.assert_array_equal(frame, before)


def test_grey_is_told_from_colour():
  grey = np.repeat(picture(90, 120)[..., :1], 3, axis=2)
  noise = np.random.default_rng(0).normal(0, 1, grey.shape)
  assert paste.is_grey(grey)
  assert paste.is_grey(np.clip(grey + noise, 0, 255).astype(np.uint8))
  assert not paste.is_grey(picture(90, 120))
  # Each difference has the variance 2 of two channels' noise, plus rounding: 10 is at 2.2.
  assert not paste.is_grey(np.clip(grey + 2.6 * noise, 0, 255).astype(np.uint8))


def test_to_grey():
  faces = np.uint8([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 10, 10]]]])
  expected = [[[[76] * 3, [150] * 3, [29] * 3, [10] * 3]]]  # 0.2989, 0.587, 0.114 of 255
  np.testing.assert_array_equal(paste.to_grey(faces), expected)
  frame = np.repeat(picture(90, 120)[..., :1], 3, axis=2)
  matrix = similarity(6, 0, 60, 45)
  pasted = paste.paste(frame, [paste.to_grey(align.align(picture(90, 120), matrix))], [matrix])
  assert np.ptp(pasted, axis=-1).max() == 0


@pytest.mark.slow
def test_takes_no_time():
  """Of a frame's seconds in the network; alone on two cores 2 and 16 ms."""
  frame, matrix = picture(720, 1280), similarity(0.8, 0.1, 640, 360)
  spent = []
  for _ in range(10):
    start = time.perf_counter()
    paste.paste(frame, [align.align(frame, matrix)], [matrix])
    spent.append(time.perf_counter() - start)
  assert min(spent) < 0.2


def test_colors_are_the_crops_and_detail_is_the_faces():
  x = np.linspace(0, np.pi, 128)
  crop = np.rint(np.stack([90 + 60 * np.sin(x)[:, None] * np.ones(128)] * 3, -1)).astype(np.uint8)
  crop[..., 0] += 40
  detail = 20 * (np.indices((128, 128)).sum(0) % 2)[..., None]  # its mean is 10
  face = np.clip(crop // 2 + 60 + detail, 0, 255).astype(np.uint8)
  found = paste.with_colors_of(crop, face)
  assert found.dtype == np.uint8
  inside = found[16:-16, 16:-16].astype(float) - crop[16:-16, 16:-16]
  assert np.abs(inside - (detail[16:-16, 16:-16] - 10)).max() < 4
  np.testing.assert_array_equal(paste.with_colors_of(crop, crop), crop)
  assert paste.with_colors_of(np.full_like(crop, 250), face).max() == 255
