"""What is around the restored faces: the frames enlarged by a network, whichever is named."""

from __future__ import annotations

import functools
import importlib
import os
import re
import tomllib
from fractions import Fraction

import cv2
import jax
import numpy as np
import pytest
import skimage.data

from fmanet_jax import streaming as fmanet_streaming
from keep_jax import background, restore
from tests.keep_jax import tiny
from tests.support import fmanet
from tests.support.torch_writer import save_state_dict
from tests.test_house import ROOT
from tests.vsr_jax.clips import encode
from tests.vsr_jax.enlarge import small
from vsr_jax import video
from vsr_jax.enlarge import enlarger as enlarging
from vsr_jax.enlarge.enlarger import enlarge_frames
from vsr_jax.faces import paste
from vsr_jax.frames import Frame

pytestmark = pytest.mark.usefixtures("shared_restorers")

PHOTO = cv2.resize(skimage.data.astronaut()[:280, 60:400], (170, 140), interpolation=cv2.INTER_AREA)
FRAMES = np.stack([PHOTO[5:117, 2 * i : 2 * i + 128] for i in range(6)])  # [6 112 128 3]


@pytest.fixture
def clip(tmp_path):
  encode(tmp_path / "clip.mkv", FRAMES, "ffv1", "bgr0")
  return tmp_path / "clip.mkv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """The smallest networks: Real-ESRGAN's in the authors' format, and FMA-Net."""
  folder = tmp_path_factory.mktemp("weights")
  save_state_dict(folder / "small.pth", {"params": small.state_dict()})
  fmanet.save(folder / "fmanet")
  return folder


@pytest.fixture
def run(run_main, weights):
  """The command without a network for faces, and the smallest one for the background."""
  options = ("--background-model", "realesrgan", "--background-weights", weights / "small.pth")
  return functools.partial(run_main, restore.main, "--no-network", *options)


@pytest.fixture
def offered(tmp_path, monkeypatch):
  """The entry points of pyproject.toml, whether or not the installed metadata have them."""
  points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
  folder = tmp_path / "site" / "offering-1.dist-info"
  folder.mkdir(parents=True)
  (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1\n")
  lines = ["[vsr_jax.enlargers]", *(f"{k} = {v}" for k, v in points["vsr_jax.enlargers"].items())]
  (folder / "entry_points.txt").write_text("\n".join(lines))
  monkeypatch.syspath_prepend(tmp_path / "site")
  return points["vsr_jax.enlargers"]


def read(path):
  with video.open_reader(str(path)) as reader:
    return np.stack([frame.image for frame in reader])


def assert_around_the_face(images, expected):
  """The images, [t h w 3], show these where no face is, and something else where one is."""
  height = images.shape[1]
  assert images.shape == expected.shape
  np.testing.assert_array_equal(images[:, -height // 16 :], expected[:, -height // 16 :])
  assert (images != expected).any((1, 2, 3)).all()


def test_the_network_enlarges_what_is_around_the_face(run, clip, tmp_path):
  said = run(clip, tmp_path / "out", "--upscale", "2")
  assert re.search(r"6 frames of 256x224, 1 face track.*enlarging the background \d", said.out)
  assert_around_the_face(read(tmp_path / "out"), np.stack(list(small.enlarger().stream(FRAMES))))


def test_faces_that_look_ahead_meet_their_own_background(
  run_main, weights, clip, tmp_path, monkeypatch
):
  monkeypatch.setattr(restore.streaming, "load", lambda *_: tiny.load())
  options = ("--background-model", "realesrgan", "--background-weights", weights / "small.pth")
  flags = ("--frames", "1:4", "--window", "4", "--look-ahead", "1", "--upscale", "2", *options)
  run_main(restore.main, clip, tmp_path / "out", "--checkpoint", "keep", *flags)
  expected = np.stack(list(small.enlarger().stream(FRAMES[1:4])))
  assert_around_the_face(read(tmp_path / "out"), expected)


def test_the_result_is_resized_to_the_output(run, clip, tmp_path):
  run(clip, tmp_path / "out", "--upscale", "1.5", "--frames", ":2")
  enlarged = small.enlarger().stream(FRAMES[:2])
  expected = np.stack([paste.enlarge(PHOTO[:112, :128], 1.5, lambda _, x=x: x) for x in enlarged])
  assert_around_the_face(read(tmp_path / "out"), expected)


def test_by_tiles_on_demand_and_where_frames_do_not_fit(run, clip, tmp_path, monkeypatch):
  flags = ("--upscale", "2", "--frames", ":2")
  run(clip, tmp_path / "tiled", *flags, "--background-tile", "60")
  expected = np.stack(list(enlarge_frames(small.enlarger(), FRAMES[:2], 60)))
  assert_around_the_face(read(tmp_path / "tiled"), expected)
  needed = small.enlarger().memory_needed(112, 128)
  monkeypatch.setattr(enlarging, "free_memory", lambda device: needed)
  said = run(clip, tmp_path / "alone", *flags)
  assert "do not fit the memory; enlarging by tiles of 107 pixels" in said.out
  expected = np.stack(list(enlarge_frames(small.enlarger(), FRAMES[:2], 107)))
  assert_around_the_face(read(tmp_path / "alone"), expected)
  monkeypatch.setattr(enlarging, "free_memory", lambda device: needed // 20)
  assert_refused(run(clip, tmp_path / "no", *flags, code=2), "not enough to restore even by tiles")
  assert not (tmp_path / "no").exists()


def test_grey_frames_stay_grey():
  grey = FRAMES[0].mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
  frames = [Frame(image, Fraction(i), i) for i, image in enumerate((grey, FRAMES[0]))]
  images = list(background.enlarged_images(small.enlarger(), frames, (112, 128), None))
  plain = list(small.enlarger().stream([grey, FRAMES[0]]))
  np.testing.assert_array_equal(images[0], paste.to_grey(plain[0]))
  assert (plain[0] != images[0]).any()
  np.testing.assert_array_equal(images[1], plain[1])


def test_another_system_enlarges_and_sees_the_neighbours_of_a_range(
  run_main, weights, clip, tmp_path, monkeypatch, offered
):
  assert "fmanet" in offered
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  flags = ("--background-model", "fmanet", "--background-weights", weights / "fmanet")
  flags = (*flags, "--frames", "2:4", "--upscale", "2", "--no-network")
  restorer = fmanet_streaming.Restorer(*fmanet_streaming.load(weights / "fmanet"))
  monkeypatch.setattr(fmanet_streaming, "Restorer", lambda *_: restorer)  # compiled once
  run_main(restore.main, clip, tmp_path / "out", *flags)
  assert_around_the_face(read(tmp_path / "out"), np.stack(list(restorer.stream(FRAMES)))[2:4])
  run_main(restore.main, clip, tmp_path / "no", *flags[:3], tmp_path, *flags[4:], code=2)


def test_what_is_offered_exists(offered):
  for place in offered.values():
    module, _, name = place.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def assert_refused(said, pattern):
  """One line at the end, and no traceback."""
  assert "Traceback" not in said.err
  line = said.err.strip().splitlines()[-1]
  assert re.search(f"error: .*{pattern}", line), said.err


MODEL = ("--background-model", "realesrgan")


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (("--background-model", "bicubic"), "invalid choice: 'bicubic'.*lanczos.*realesrgan"),
    (("--background", "clip.mkv", *MODEL), "leave out --background-model"),
    (("--background-tile", "64"), "--background-tile is for a network; name one by"),
    (("--background-weights", "a.pth"), "--background-weights is for a network"),
    (("--background-denoise", "1"), "--background-denoise is for a network"),
    ((*MODEL, "--background-denoise", "1.5"), "--background-denoise 1.5: must be 0 to 1"),
    ((*MODEL, "--background-denoise", "nan"), "--background-denoise nan: must be 0 to 1"),
    ((*MODEL, "--background-denoise", "1", "--background-weights", "a.pth"), "weights of realesr"),
    ((*MODEL, "--background-tile", "32"), "must be above the overlap of 32 pixels"),
    ((*MODEL, "--background-weights", "a.pth"), "a.pth cannot be read: No such file"),
    ((*MODEL, "--background-weights", "a.bin"), "a.param cannot be read: No such file"),
    ((*MODEL, "--background-weights", "cut.pth"), "cut.pth is damaged"),
    ((*MODEL, "--background-weights", "other.pth"), "other.pth does not hold a SRVGGNetCompact"),
    ((*MODEL, "--aligned"), "--background-model is for whole frames, not for --aligned"),
  ],
)
def test_what_cannot_be_used_is_refused_before_work(
  run_main, weights, clip, tmp_path, monkeypatch, flags, told
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(restore.detector, "make_detector", None)
  whole = (weights / "small.pth").read_bytes()
  (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
  save_state_dict(tmp_path / "other.pth", {"conv.weight": np.zeros((3, 3), np.float32)})
  before = sorted(os.listdir())
  assert_refused(run_main(restore.main, clip, "out.mp4", "--no-network", *flags, code=2), told)
  assert sorted(os.listdir()) == before
