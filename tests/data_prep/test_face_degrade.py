"""KEEP's degradation: each step against an independent computation, and the whole as a function."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color

from tests.data_prep.helpers import texture
from vsr_jax.data_prep import face_degrade
from vsr_jax.data_prep.face_degrade import PRESETS, Degradation, Kernel
from vsr_jax.errors import UserError

CLEAN = Degradation(noise=(0, 0))
REDUCTIONS = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def moving(t: int = 3, h: int = 64, w: int = 96) -> np.ndarray:
  return np.stack([texture(h, w, 2 * i) for i in range(t)])


def degrade(clip, seed=0, **changes):
  drawn = dataclasses.replace(Degradation(), **changes)
  return face_degrade.degrade(clip, np.random.default_rng(seed), drawn)


def compress(clip, crf):
  return np.stack(list(face_degrade.compress(clip, crf)))


@given(st.floats(0.5, 12), st.floats(0.5, 12), st.floats(-np.pi, np.pi))
@settings(max_examples=30)
def test_kernels_are_samples_of_the_normal_density(sigma_x, sigma_y, angle):
  ours = face_degrade.gaussian(Kernel(sigma_x, sigma_y, angle), 21)
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  covariance = turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T
  y, x = np.mgrid[-10:11, -10:11]
  density = scipy.stats.multivariate_normal([0, 0], covariance).pdf(np.dstack([x, y]))
  np.testing.assert_allclose(ours, density / density.sum(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kernel", [Kernel(4, 4, 0), Kernel(6, 2, 0.7)], ids=["round", "turned"])
def test_blur_is_the_convolution(kernel):
  frame = np.random.default_rng(1).integers(0, 256, (40, 52, 3), dtype=np.uint8)
  weights = face_degrade.gaussian(kernel, 21)[..., None]
  expected = scipy.ndimage.convolve(frame.astype(float), weights, mode="mirror")
  # Round: 1/32 level from the rows, and as much again from 21 weights rounded to 2^-12 (at random;
  # 2^-13 * 255 levels each at most). Turned: 441 weights rounded to 2^-20, much less.
  got = face_degrade.blur(frame, kernel, 21)
  np.testing.assert_allclose(got, expected, atol=0.1 if kernel.sigma_x == kernel.sigma_y else 0.01)
  assert face_degrade.blur(np.full_like(frame, 255), kernel, 21).min() == 255  # the sum is 1


def test_kernels_are_drawn_as_often_and_as_wide_as_configured():
  rng = np.random.default_rng(2)
  drawn = [face_degrade.draw_kernel(rng, Degradation()) for _ in range(2000)]
  round_ones = [k for k in drawn if k.sigma_x == k.sigma_y]
  # 2000 draws of probability 0.7: within four standard deviations.
  assert abs(len(round_ones) / 2000 - 0.7) < 4 * np.sqrt(0.21 / 2000)
  turned = [k for k in drawn if k.sigma_x != k.sigma_y]
  for values, low, high in [
    ([k.sigma_x for k in drawn], 2, 10),
    ([k.sigma_y for k in turned], 2, 10),
    ([k.angle for k in turned], -np.pi, np.pi),
  ]:
    assert scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


@pytest.mark.parametrize(("grey", "channels"), [(0.0, 3), (1.0, 1)])
def test_noise_is_normal_with_the_strength_drawn(grey, channels):
  one = dataclasses.replace(Degradation(), noise=(7, 7), grey=grey)
  image = np.full((200, 300, 3), 100, np.float32)
  noise = face_degrade.add_noise(image, np.random.default_rng(3), one) - image
  samples = noise[..., :channels].ravel()
  # Standard errors for 60,000 values of a colour: 7 / sqrt(2 n) and 7 / sqrt(n); four of them.
  assert abs(samples.std() - 7) < 4 * 7 / np.sqrt(2 * samples.size)
  assert abs(samples.mean()) < 4 * 7 / np.sqrt(samples.size)
  assert scipy.stats.kstest(samples[:5000] / 7, "norm").pvalue > 1e-3
  correlation = np.corrcoef(noise.reshape(-1, 3).T)[0, 1]
  assert correlation == pytest.approx(1 if grey else 0, abs=4 / np.sqrt(60_000))


def test_noise_is_drawn_anew_for_each_frame_and_cut_to_the_range():
  image = np.full((64, 64, 3), 2, np.float32)
  rng = np.random.default_rng(4)
  frames = [face_degrade.add_noise(image, rng, Degradation()) for _ in range(400)]
  assert min(frame.min() for frame in frames) == 0
  image += 120
  spreads = [(face_degrade.add_noise(image, rng, Degradation()) - image).std() for _ in range(400)]
  # Strengths are uniform in [0, 10]; each is measured to 1 %.
  assert scipy.stats.kstest(spreads, "uniform", (0, 10)).pvalue > 1e-3


def test_reduction_by_area_is_the_mean():
  image = np.random.default_rng(5).uniform(0, 255, (32, 48, 3)).astype(np.float32)
  got = face_degrade.reduce(image, 4, cv2.INTER_AREA)
  expected = image.reshape(8, 4, 12, 4, 3).mean((1, 3))
  np.testing.assert_allclose(got, expected, atol=1 / 32)  # values are rounded to 1/16 before


@pytest.mark.parametrize(
  ("how", "taps"), [("linear", [0.5, 0.5]), ("cubic", [-3 / 32, 19 / 32, 19 / 32, -3 / 32])]
)
def test_other_reductions_take_few_samples_around_the_centre(how, taps):
  image = np.random.default_rng(6).uniform(60, 200, (32, 48, 3)).astype(np.float32)
  got = face_degrade.reduce(image, 4, REDUCTIONS[how])
  weights = np.zeros(4)
  weights[2 - len(taps) // 2 : 2 + len(taps) // 2] = taps
  expected = np.einsum("ykxlc,k,l->yxc", image.reshape(8, 4, 12, 4, 3), weights, weights)
  np.testing.assert_allclose(got, expected, atol=1.4**2 / 32)  # of the rounding before


def test_what_is_drawn_for_a_clip_and_for_each_of_its_frames(monkeypatch):
  kernels, strengths, reductions, factors = [], [], [], []
  blur, reduce = face_degrade.blur, face_degrade.reduce

  def seen_noise(image, rng, settings):
    strengths.append(rng.uniform(*settings.noise))
    return image

  monkeypatch.setattr(
    face_degrade, "blur", lambda x, kernel, size: (kernels.append(kernel), blur(x, kernel, size))[1]
  )
  monkeypatch.setattr(
    face_degrade, "reduce", lambda x, s, how: (reductions.append(how), reduce(x, s, how))[1]
  )
  monkeypatch.setattr(face_degrade, "add_noise", seen_noise)
  monkeypatch.setattr(face_degrade, "compress", lambda x, crf: (factors.append(crf), x)[1])
  clip = moving(2, 8, 8)
  for seed in range(1000):
    degrade(clip, seed)
  assert kernels[::2] == kernels[1::2]
  assert len(set(kernels)) == 1000
  assert len(set(strengths)) == 4000
  assert reductions[::2] == reductions[1::2]
  counts = [reductions.count(how) / 2000 for how in REDUCTIONS.values()]
  np.testing.assert_allclose(counts, [0.3, 0.3, 0.4], atol=4 * np.sqrt(0.24 / 1000))
  # The end of the released range, 45, is not drawn; all others are alike.
  assert set(factors) == set(range(25, 45))
  assert scipy.stats.chisquare(np.bincount(factors)[25:]).pvalue > 1e-3


def test_colours_are_bt601_in_limited_range():
  rgb = np.random.default_rng(7).integers(0, 256, (1, 500, 3), dtype=np.uint8)
  planes = np.concatenate(
    [face_degrade.to_planes(np.tile(pixel, (2, 2, 1))).ravel()[None] for pixel in rgb[0]]
  )
  assert (planes[:, :4] == planes[:, :1]).all()
  expected = color.rgb2ycbcr(rgb)[0]
  np.testing.assert_allclose(planes[:, [0, 4, 5]], expected, atol=0.51)
  back = np.stack([face_degrade.from_planes(p.reshape(3, 2), 2)[0, 0] for p in planes])
  # Rounded luma and chroma, the latter times up to 2.02.
  assert np.abs(back.astype(int) - rgb[0]).max() <= 3


def test_planes_are_those_of_another_converter():
  # Constant 2x2 blocks: how chroma is sited makes no difference then.
  image = np.random.default_rng(8).integers(0, 256, (8, 8, 3), dtype=np.uint8)
  image = image.repeat(2, 0).repeat(2, 1)
  frame = av.VideoFrame.from_ndarray(face_degrade.to_planes(image), format="yuv420p")
  theirs = frame.to_ndarray(format="rgb24")
  ours = face_degrade.from_planes(face_degrade.to_planes(image), 16)
  assert np.abs(ours.astype(int) - theirs).max() <= 2  # of its cheaper integer arithmetic


def test_compression_keeps_frames_in_order_and_loses_more_at_a_higher_factor():
  clip = moving(20)
  errors = []
  for crf in (1, 20, 35, 50):
    got = compress(clip, crf)
    assert got.shape == clip.shape
    errors.append(np.abs(got.astype(int) - clip).mean((1, 2, 3)))
  means = np.mean(errors, axis=1)
  assert (np.diff(means) > 0).all()
  # With the least loss a frame is nearest to itself among all.
  got = compress(clip, 1).astype(int)
  distances = [[np.abs(a - b).mean() for b in clip] for a in got]
  assert np.argmin(distances, axis=1).tolist() == list(range(20))


def test_codec_is_given_the_released_rate():
  # One frame a second, as the released code: at 25 the same factor gives another stream.
  clip = moving(8)
  got = compress(clip, 30)
  np.testing.assert_array_equal(got, reference_codec(clip, 30, rate=1))
  assert (got != reference_codec(clip, 30, rate=25)).any()


def reference_codec(clip, crf, rate):
  """H.264 in an mp4, with this module's colours, which have tests of their own."""
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as container:
    options = {"crf": str(crf), "threads": "1", "x264-params": "asm=0"}  # see `compress`
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
    for image in clip:
      frame = av.VideoFrame.from_ndarray(face_degrade.to_planes(image), format="yuv420p")
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  with av.open(file, format="mp4") as container:
    frames = [frame.to_ndarray() for frame in container.decode(video=0)]
  return np.stack([face_degrade.from_planes(frame, clip.shape[1]) for frame in frames])


def test_order_is_blur_noise_reduction_noise_codec(monkeypatch):
  calls = []
  for name in ("blur", "add_noise", "reduce"):
    real = getattr(face_degrade, name)
    monkeypatch.setattr(
      face_degrade, name, lambda *args, n=name, f=real: (calls.append(n), f(*args))[1]
    )
  codec = face_degrade.compress
  monkeypatch.setattr(
    face_degrade,
    "compress",
    lambda frames, crf: codec([*frames, calls.append("compress")][:-1], crf),
  )
  got = degrade(moving(2))
  assert calls == ["blur", "add_noise", "reduce", "add_noise"] * 2 + ["compress"]
  assert got.shape == (2, 16, 24, 3)
  assert got.dtype == np.uint8


@given(st.integers(0, 2**32), st.sampled_from(sorted(PRESETS)))
@settings(max_examples=10)
def test_same_key_same_clip(seed, preset):
  clip = moving(3, 32, 32)
  one, other = (
    face_degrade.degrade(clip, np.random.default_rng(seed), PRESETS[preset]) for _ in range(2)
  )
  np.testing.assert_array_equal(one, other)
  again = face_degrade.degrade(clip, np.random.default_rng(seed + 1), PRESETS[preset])
  assert (again != one).any()


def test_result_does_not_depend_on_threads_or_on_the_cpus_instructions():
  clip = moving(4)
  tried = {}
  for kernel in (1.0, 0.0):  # round; turned
    for reduction in np.eye(3):
      drawn = {"isotropic": kernel, "reductions": tuple(reduction)}
      tried[kernel, tuple(reduction)] = degrade(clip, 5, **drawn), drawn
  threads = cv2.getNumThreads()
  try:
    cv2.setUseOptimized(False)  # generic code instead of what this CPU has
    cv2.setNumThreads(1)
    for expected, drawn in tried.values():
      np.testing.assert_array_equal(degrade(clip, 5, **drawn), expected)
  finally:
    cv2.setUseOptimized(True)
    cv2.setNumThreads(threads)


def test_released_slips_swap_colours_in_the_codec_and_cut_off():
  clip = np.full((2, 32, 32, 3), (200, 60, 20), np.uint8)
  clip[:, :, 1::2] = (20, 60, 200)
  ours, theirs = (degrade(clip, 9, noise=(0, 0), as_released=slip) for slip in (False, True))
  swapped = degrade(clip[..., ::-1], 9, noise=(0, 0))[..., ::-1]
  assert (ours != theirs).any()
  assert np.abs(theirs.astype(int) - swapped).max() <= 2  # cut off instead of rounded


def test_presets_are_ordered():
  clip = moving(4, 128, 128)
  small = np.stack([face_degrade.reduce(f.astype(np.float32), 4, cv2.INTER_AREA) for f in clip])
  errors = []
  for name in ("mild", "medium", "heavy"):
    got = [face_degrade.degrade(clip, np.random.default_rng(i), PRESETS[name]) for i in range(10)]
    errors.append(np.abs(np.array(got) - small).mean())
  assert errors == sorted(errors)
  assert PRESETS["train"] == Degradation()
  assert PRESETS["train_as_released"] == Degradation(as_released=True)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"sigma_x": (5, 2)}, "sigma_x = .5, 2. is no range"),
    ({"sigma_y": (0, 2)}, "sigma_y"),
    ({"noise": (-1, 2)}, "noise"),
    ({"crf": (30, 60)}, "H.264 has 0 to 51"),
    ({"crf": (30, 30)}, "the end excluded"),
    ({"isotropic": 1.5}, "isotropic"),
    ({"reductions": (0, 0, 0)}, "three frequencies"),
    ({"kernel_size": 20}, "must be odd"),
  ],
)
def test_impossible_settings_are_named(wrong, message):
  with pytest.raises(UserError, match=message):
    Degradation(**wrong)


@pytest.mark.parametrize(
  ("clip", "message"),
  [
    (np.zeros((0, 8, 8, 3), np.uint8), "t > 0"),
    (np.zeros((2, 8, 8, 3), np.float32), "uint8"),
    (np.zeros((2, 12, 8, 3), np.uint8), "8x12 cannot be reduced by 4 to even sizes"),
  ],
)
def test_impossible_clips_are_refused(clip, message):
  with pytest.raises(ValueError, match=message):
    degrade(clip)


def test_command_writes_a_strip(shared, tmp_path):
  clip = shared / "data/faces/liveportrait_d0.mp4"
  out = tmp_path / "strip.png"
  command = [
    sys.executable,
    "-m",
    "vsr_jax.data_prep.face_degrade",
    clip,
    out,
    "--size=128",
    "--frames=4",
  ]
  subprocess.run(command, check=True, capture_output=True)
  picture = cv2.imread(str(out))
  assert picture.shape == (2 * 128, 5 * 128, 3)
  good, *presets = np.split(picture[:128].astype(float), 5, axis=1)
  details = [scipy.ndimage.laplace(x[32:, :, 1]).std() for x in (good, *presets)]
  assert max(details[1:]) < details[0]  # all have lost details


def test_command_says_what_is_wrong_in_one_line(tmp_path):
  run = [sys.executable, "-m", "vsr_jax.data_prep.face_degrade", str(tmp_path / "none.mp4")]
  for end, message in [(["a.png"], "none.mp4"), (["a.png", "--size=9"], "a multiple of 8")]:
    done = subprocess.run([*run, *end], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("as_released", [False, True])
def test_a_stream_gives_the_same_frames_and_holds_few(as_released):
  clip = moving(90, 32, 32)
  held = 0

  def frames():
    nonlocal held
    for frame in clip:
      held += 1
      yield frame

  drawn = dataclasses.replace(Degradation(), as_released=as_released)
  most, streamed = 0, []
  for frame in face_degrade.degrade_frames(frames(), np.random.default_rng(0), drawn):
    most = max(most, held)
    streamed.append(frame)
    held -= 1
  np.testing.assert_array_equal(np.stack(streamed), degrade(clip, as_released=as_released))
  assert most <= 60
