"""The restore command from end to end: faces found, followed, restored and pasted back.

The clips are made of scikit-image's astronaut (NASA, public domain), whose face moves.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import skimage.data

from keep_jax import convert, restore, show, streaming
from keep_jax.faces import FaceTrack, RestoredFrame, find_faces, identity, restore_faces
from tests.keep_jax import golden, tiny
from tests.support.torch_writer import save_state_dict
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import metrics, video
from vsr_jax.faces import align
from vsr_jax.faces.detector import make_detector
from vsr_jax.faces.tracks import Track

pytestmark = pytest.mark.usefixtures("shared_restorers", "shared_detections")

PHOTO = skimage.data.astronaut()[:280, 60:400]  # 280x340, the face in the middle


def moving(count, step=3, size=(224, 256)):
  """The photo seen through a window that moves, uint8 [t h w 3]."""
  height, width = size
  return np.stack([PHOTO[10:, i * step : i * step + width][:height] for i in range(count)])


def two_people(count):
  """The photo and its mirror image side by side."""
  return np.concatenate([moving(count), moving(count)[:, :, ::-1]], axis=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """The tiny KEEP as a checkpoint."""
  folder = tmp_path_factory.mktemp("keep") / "weights"
  tiny.save(folder)
  return folder


@pytest.fixture
def clip(tmp_path):
  """Six frames with sound, at 12.5 frames a second, lossless."""
  path = tmp_path / "clip.mkv"
  tone = np.sin(np.arange(48_000) / 20)
  encode(path, moving(6), "ffv1", "bgr0", rate=Fraction(25, 2), sound=("aac", tone))
  return path


@pytest.fixture
def run(run_main):
  return functools.partial(run_main, restore.main)


def read(path):
  with video.open_reader(str(path)) as reader:
    return reader.info, np.stack([frame.image for frame in reader])


def encode_lossless(path, images):
  encode(path, images, "ffv1", "bgr0")
  return path


def assert_refused(said, pattern):
  """One line, and no traceback."""
  (line,) = said.err.strip().splitlines()
  assert re.search(pattern, line), line


def test_the_identity_gives_the_clip_back(run, clip, tmp_path):
  said = run(clip, tmp_path / "out.mkv", "--no-network", "--quality", "0")
  before, frames = read(clip)
  after, restored = read(tmp_path / "out.mkv")
  assert after.frame_rate == before.frame_rate
  with av.open(str(tmp_path / "out.mkv")) as f:
    assert f.streams.audio
  assert frames.shape == restored.shape
  changed = (frames != restored).any((0, 3))
  assert changed.any()
  assert not changed[:4].any()
  assert min(metrics.rgb_psnr(a, b) for a, b in zip(frames, restored, strict=True)) > 36
  assert re.search(r"6 frames of 256x224, 1 face track, 0 frames without a face", said.out)


def test_the_network_restores_the_face_and_nothing_else(run, clip, weights, tmp_path):
  out = tmp_path / "out.mkv"
  crops, strip = tmp_path / "crops", tmp_path / "strip.png"
  flags = ("--quality", "0", "--window", "4", "--look-ahead", "1")
  run(clip, out, "--checkpoint", weights, *flags, "--save-crops", crops, "--strip", strip)
  _, frames = read(clip)
  _, restored = read(out)
  assert (frames != restored).any((1, 2, 3)).all()
  assert not (frames != restored)[:, 204:].any()
  assert sorted(os.listdir(crops)) == ["face_000_aligned", "face_000_restored"]
  _, aligned = read(crops / "face_000_aligned")
  _, faces = read(crops / "face_000_restored")
  assert aligned.shape == faces.shape == (6, 32, 32, 3)
  # The faces are those that the stream makes of the crops.
  restorer = streaming.Restorer(*tiny.load(), "stream", 4, 1)
  want = np.stack(list(restorer.stream(aligned)))
  assert (faces != want).mean() < 0.01  # a code of small margin may flip
  rows = read(strip)[1][0]
  assert rows.shape[0] == show.STRIP_FRAMES * show.STRIP_HEIGHT


@pytest.mark.slow
def test_the_whole_way_with_the_weights_of_the_fixtures(run, clip, tmp_path):
  """A file of the released layout, with GMFlow, CFT and CFA, converted and used on a clip."""
  save_state_dict(tmp_path / "KEEP.pth", {"params_ema": golden.state_dict("keep_stage3")})
  convert.convert(str(tmp_path / "KEEP.pth"), str(tmp_path / "weights"))
  flags = ("--faces", "all", "--upscale", "2", "--side-by-side", "--save-crops", tmp_path / "crops")
  said = run(clip, tmp_path / "out", "--checkpoint", tmp_path / "weights", *flags)
  assert "6 frames of 1024x448, 1 face track, 0 frames without a face" in said.out
  _, aligned = read(tmp_path / "crops" / "face_000_aligned")
  _, faces = read(tmp_path / "crops" / "face_000_restored")
  assert aligned.shape == faces.shape == (6, 128, 128, 3)
  want = np.stack(list(streaming.Restorer(*streaming.load(tmp_path / "weights")).stream(aligned)))
  assert (faces != want).mean() < 0.01  # a code of small margin may flip
  _, images = read(tmp_path / "out")
  assert (images[:, :, :512] != images[:, :, 512:]).any((1, 2, 3)).all()


def test_every_person_has_a_state_of_their_own():
  frames = two_people(5)
  faces, count = find_faces(frames, make_detector(), "all", size=32)
  assert count == 5
  assert [len(face.matrices) for face in faces] == [5, 5]
  restorer = streaming.Restorer(*tiny.load(), "stream", 4, 1)
  together = _restore(frames, faces, restorer)
  for i, face in enumerate(faces):
    alone = _restore(frames, [face], restorer)
    for a, b in zip(together, alone, strict=True):
      assert (a.restored[i] != b.restored[0]).mean() < 0.01  # a code of small margin may flip
  largest, _ = find_faces(frames, make_detector(), "largest", size=32)
  assert max(sum(f.restored_matrix(t) is not None for f in largest) for t in range(5)) == 1


def _restore(frames, faces, restorer):
  frames = (video.Frame(image, Fraction(i, 25), i) for i, image in enumerate(frames))
  return list(restore_faces(frames, faces, restorer.stream_tracks, size=32))


def test_aligned_faces_need_no_detection(run, weights, tmp_path):
  face = cv2.resize(PHOTO[:256, 40:296], (96, 96), interpolation=cv2.INTER_AREA)
  clip = encode_lossless(tmp_path / "face.mkv", np.stack([face] * 3))
  out = tmp_path / "out.mkv"
  run(clip, out, "--aligned", "--checkpoint", weights, "--quality", "0", "--side-by-side")
  _, images = read(out)
  assert images.shape == (3, 32, 64, 3)
  big = cv2.resize(face, (32, 32), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_array_equal(images[0, :, :32], big)
  restorer = streaming.Restorer(*tiny.load())
  want = np.stack(list(restorer.stream([face] * 3)))
  assert (images[:, :, 32:] != want).mean() < 0.01


def test_a_clip_without_a_face_passes_with_a_warning(run, tmp_path):
  frames = moving_waves(5, 96, 128)
  clip = encode_lossless(tmp_path / "waves.mkv", frames)
  said = run(clip, tmp_path / "out.mkv", "--no-network", "--quality", "0")
  assert "no face found" in said.err
  assert "0 face tracks, 5 frames without a face" in said.out
  np.testing.assert_array_equal(read(tmp_path / "out.mkv")[1], frames)


def test_a_face_that_enters_late(run, tmp_path):
  frames = moving(8)
  frames[:3] = 128
  clip = encode_lossless(tmp_path / "late.mkv", frames)
  said = run(clip, tmp_path / "out.mkv", "--no-network", "--quality", "0")
  assert "1 face track, 3 frames without a face" in said.out
  np.testing.assert_array_equal(read(tmp_path / "out.mkv")[1][:3], frames[:3])


def test_grey_stays_grey(run, weights, tmp_path):
  grey = moving(3).mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
  clip = encode_lossless(tmp_path / "grey.mkv", grey)
  run(clip, tmp_path / "out", "--checkpoint", weights)
  images = read(tmp_path / "out")[1]
  assert (images != grey).any()
  assert (images == images[..., :1]).all()


def test_a_picture_of_one_frame(run, tmp_path):
  cv2.imwrite(str(tmp_path / "photo.png"), PHOTO[..., ::-1])
  said = run(tmp_path / "photo.png", tmp_path / "out.png", "--no-network", "--upscale", "2")
  assert "1 frames of 680x560, 1 face track" in said.out
  assert read(tmp_path / "out.png")[1].shape == (1, 560, 680, 3)


@pytest.mark.slow
def test_a_4k_frame_with_a_face_at_its_border():
  frame = np.full((2160, 3840, 3), 60, np.uint8)
  frame[:1120, :1240] = cv2.resize(PHOTO[:, 30:], (1240, 1120), interpolation=cv2.INTER_CUBIC)
  frames = [video.Frame(frame, Fraction(0), 0)]
  faces, count = find_faces((frame.image for frame in frames), make_detector())
  assert (len(faces), count) == (1, 1)
  (result,) = restore_faces(frames, faces, identity)
  assert result.crops[0].shape == (512, 512, 3)
  np.testing.assert_array_equal(result.image[1300:], frame[1300:])
  # Reduced to 512 pixels and enlarged again, the face is still the face.
  assert metrics.rgb_psnr(result.image, frame) > 36


def test_the_background_comes_from_another_clip(run, clip, tmp_path):
  behind = encode_lossless(tmp_path / "behind.mkv", np.full((6, 448, 512, 3), 77, np.uint8))
  out = tmp_path / "out"
  run(clip, out, "--no-network", "--upscale", "2", "--background", behind)
  images = read(out)[1]
  assert images.shape == (6, 448, 512, 3)
  assert (images[:, :8] == 77).all()
  assert (images != 77).any((1, 2, 3)).all()
  short = encode_lossless(tmp_path / "short.mkv", np.full((2, 448, 512, 3), 77, np.uint8))
  flags = ("--no-network", "--upscale", "2", "--background", short)
  said = run(clip, tmp_path / "other", *flags, code=2)
  assert f"{short}: ends before frame 2;" in said.err
  assert "restoring" not in said.err
  assert not os.path.exists(tmp_path / "other")
  assert_refused(run(clip, short, *flags, code=2), "short.mkv: is the input")


def test_the_background_has_the_frames_of_the_range(run, clip, tmp_path):
  greys = np.arange(0, 240, 40, dtype=np.uint8)
  behind = np.broadcast_to(greys[:, None, None, None], (6, 224, 256, 3))
  behind = encode_lossless(tmp_path / "behind.mkv", np.ascontiguousarray(behind))
  run(clip, tmp_path / "out", "--no-network", "--frames", "2:4", "--background", behind)
  assert read(tmp_path / "out")[1][:, 0, 0, 0].tolist() == [80, 120]


def test_a_mask_of_zeros_leaves_the_frames_as_they_are():
  frames = moving(3)
  faces, _ = find_faces(frames, make_detector())

  def masks(faces):
    return np.zeros(faces.shape[:3], np.float32)

  frames = [video.Frame(image, Fraction(i, 25), i) for i, image in enumerate(frames)]
  for result in restore_faces(frames, faces, identity, masks=masks):
    assert result.restored
    np.testing.assert_array_equal(result.image, result.frame.image)


def test_people_who_cross_keep_their_states():
  """Two faces pass each other, the nearer one before the other."""
  face = cv2.resize(PHOTO[10:250, 60:260], (100, 120), interpolation=cv2.INTER_AREA)
  near = cv2.resize(face[:, ::-1], (120, 144), interpolation=cv2.INTER_AREA)
  frames = np.full((29, 180, 420, 3), 90, np.uint8)
  for t, frame in enumerate(frames):
    frame[20:140, 10 * t : 10 * t + 100] = face
    left = 300 - 10 * t
    frame[20:164, max(left, 0) : left + 120] = near[:, max(-left, 0) :]
  faces, _ = find_faces(frames, make_detector(), "all", size=32)
  ways = [face.track.landmarks[:, :, 0].mean(1) for face in faces]
  assert len(ways) == 2
  assert sorted(np.sign(way[-1] - way[0]) for way in ways) == [-1, 1]
  assert all(abs(way[-1] - way[0]) > 200 for way in ways)
  restorer = streaming.Restorer(*tiny.load(), "stream", 4, 1)
  together = _restore(frames[:6], faces, restorer)
  for i, face in enumerate(faces):
    alone = _restore(frames[:6], [face], restorer)
    for a, b in zip(together, alone, strict=True):
      assert (a.restored[i] != b.restored[0]).mean() < 0.01


def test_a_face_seen_from_the_side(run, tmp_path):
  """As narrow as a half profile: found or not, what is not face stays."""
  half = cv2.resize(PHOTO, (170, 280), interpolation=cv2.INTER_AREA)
  frames = np.full((3, 280, 480, 3), 50, np.uint8)
  frames[:, :, :170] = half
  clip = encode_lossless(tmp_path / "side.mkv", frames)
  run(clip, tmp_path / "out", "--no-network")
  images = read(tmp_path / "out")[1]
  np.testing.assert_array_equal(images[:, :, 400:], frames[:, :, 400:])
  assert min(metrics.rgb_psnr(a, b) for a, b in zip(images, frames, strict=True)) > 30


def test_a_clip_of_one_frame(run, weights, tmp_path):
  clip = encode_lossless(tmp_path / "one.mkv", moving(1))
  said = run(clip, tmp_path / "out.mkv", "--checkpoint", weights, "--quality", "0")
  assert "1 frames of 256x224, 1 face track" in said.out
  assert (read(tmp_path / "out.mkv")[1] != moving(1)).any()


def test_an_aligned_grey_face_stays_grey(run, weights, tmp_path):
  face = cv2.resize(PHOTO[:256, 40:296], (32, 32), interpolation=cv2.INTER_AREA)
  grey = face.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
  clip = encode_lossless(tmp_path / "face.mkv", np.stack([grey] * 2))
  run(clip, tmp_path / "out", "--aligned", "--checkpoint", weights)
  images = read(tmp_path / "out")[1]
  assert (images == images[..., :1]).all()


@pytest.mark.parametrize(
  "flags",
  [
    ("--mode", "as_released", "--window", "3"),
    pytest.param(("--mode", "bidirectional", "--window", "3"), marks=pytest.mark.slow),
    pytest.param(("--dtype", "bfloat16"), marks=pytest.mark.slow),
    pytest.param(("--look-ahead", "0", "--window", "3"), marks=pytest.mark.slow),
    pytest.param(("--fidelity", "0"), marks=pytest.mark.slow),
    pytest.param(("--alignment", "least_squares"), marks=pytest.mark.slow),
  ],
)
def test_options_of_the_command_change_the_faces(run, clip, weights, tmp_path, flags):
  run(clip, tmp_path / "plain", "--checkpoint", weights)
  said = run(clip, tmp_path / "other", "--checkpoint", weights, *flags)
  assert "6 frames of 256x224, 1 face track, 0 frames without a face" in said.out
  plain, other = (read(tmp_path / name)[1] for name in ("plain", "other"))
  assert (plain != other).any((1, 2, 3)).any()


def test_crops_are_closed_with_their_track(tmp_path):
  spans = (0, 2), (2, 4)
  faces = [_face(start, stop) for start, stop in spans]
  image = np.zeros((8, 8, 3), np.uint8)
  with contextlib.ExitStack() as stack:
    crops = show.Crops(str(tmp_path / "crops"), faces, 8, Fraction(25), stack)
    for t in range(4):
      here = {i: image for i, span in enumerate(spans) if span[0] <= t < span[1]}
      crops.write(t, RestoredFrame(video.Frame(image, Fraction(t, 25), t), image, here, here))
      done = {p.name for p in (tmp_path / "crops").iterdir() if not p.name.endswith(".part")}
      assert done == {f"face_{i:03d}_{k}" for i in range((t + 1) // 2) for k in KINDS}


KINDS = ("aligned", "restored")


def _face(start, stop):
  n = stop - start
  track = Track(start, np.zeros((n, 5, 2)), np.zeros((n, 4)), np.ones(n, bool))
  return FaceTrack(track, np.zeros((n, 2, 3)))


def test_boxes_are_drawn_when_asked(run, clip, tmp_path):
  run(clip, tmp_path / "plain", "--no-network", "--side-by-side")
  run(clip, tmp_path / "drawn", "--no-network", "--draw-boxes", "--side-by-side")
  plain, drawn = (read(tmp_path / name)[1] for name in ("plain", "drawn"))
  assert plain.shape == (6, 224, 512, 3)
  np.testing.assert_array_equal(plain[:, :, :256], drawn[:, :, :256])
  green = (drawn == (0, 255, 0)).all(-1).sum((1, 2))
  assert (green > 100).all()


@pytest.mark.parametrize(
  ("flags", "pattern"),
  [
    (("--checkpoint", "missing"), "missing"),
    (("--no-network", "--aligned"), "256x224 is no aligned face.*leave out --aligned"),
    (("--no-network", "--aligned", "--upscale", "2"), "--upscale is for whole frames"),
    (("--no-network", "--aligned", "--strip", "a.png"), "--strip is for whole frames"),
    (("--no-network", "--upscale", "0.5"), "upscale 0.5: give a factor of 1 or more"),
    (("--no-network", "--upscale", "nan"), "upscale nan"),
    (("--no-network", "--upscale", "100"), "H.264 takes no frames of 25600x22400"),
    (("--no-network", "--look-ahead", "19"), "--look-ahead 19: must be 0 to --window 20 - 2"),
    (("--no-network", "--fidelity", "2"), "--fidelity 2: must be 0 to 1"),
    (("--no-network", "--faces", "three"), "--faces: invalid choice"),
    (("--no-network", "--detector", "retinaface_resnet50"), "its weights do not ship"),
    (("--no-network", "--parsenet", "missing.pth"), "missing.pth"),
    (("--no-network", "--background", "missing.mp4"), "missing.mp4"),
    (("--no-network", "--frames", "8:"), "ends before frame 8"),
    (("--no-network", "--strip", "no/strip.png"), "there is no folder"),
    (("--no-network", "--strip", "out.mp4"), "out.mp4: is to be written twice"),
    (("--no-network", "--save-crops", "clip.mkv"), "clip.mkv: is a file; name a folder"),
    (("--no-network", "--window", "1"), "--window 1: must be 2 to 1000"),
    (("--no-network", "--window", f"{10**25}"), f"--window {10**25}: must be 2 to 1000"),
  ],
)
def test_bad_arguments_are_refused(run, clip, tmp_path, monkeypatch, flags, pattern):
  monkeypatch.chdir(tmp_path)
  said = run(clip, "out.mp4", *flags, code=2)
  assert_refused(type(said)(said.out, said.err.splitlines()[-1]), pattern)
  assert os.listdir(tmp_path) == ["clip.mkv"]


def test_find_faces_leaves_the_frame_outside_the_face_as_it_is():
  frames = [video.Frame(image, Fraction(i, 25), i) for i, image in enumerate(moving(4))]
  faces, _ = find_faces((frame.image for frame in frames), make_detector())
  for result in restore_faces(frames, faces, identity):
    box = faces[0].track.boxes[result.frame.index]
    reach = 512 / align.scale(faces[0].restored_matrix(result.frame.index))
    left = int(box[[0, 2]].mean() - reach)
    if left > 0:
      np.testing.assert_array_equal(result.image[:, :left], result.frame.image[:, :left])
    assert (result.image != result.frame.image).any()
