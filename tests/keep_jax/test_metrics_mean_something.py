"""Metrics of faces with their real networks: each moves the right way when a clip gets worse.

On the packaged clip, whose face is of nobody (CC0), and on real clips where there are some.
"""

from __future__ import annotations

import functools
import pathlib

import cv2
import numpy as np
import pytest

from keep_jax import face_scores
from keep_jax.face_scores import METRICS, FaceClipScore, Networks
from vsr_jax import lpips, video
from vsr_jax.data_prep.face_streams import template
from vsr_jax.faces import align, identity, mesh
from vsr_jax.flow import released
from vsr_jax.flow.estimators import ESTIMATORS
from vsr_jax.metrics.sums import compute

ROOT = pathlib.Path(__file__).parents[2]
SIZE, FRAMES = 96, 4
PACKAGED = "packaged"
# The first frame taken and the five landmarks there, as MTCNN finds them.
CLIPS = {
  PACKAGED: (10, [(128, 116), (159, 116), (147, 140), (128, 150), (158, 150)]),
  "liveportrait_d0.mp4": (10, [(210, 249), (305, 250), (253, 315), (215, 370), (291, 370)]),
  "liveportrait_d6.mp4": (10, [(195, 234), (299, 236), (246, 297), (203, 362), (283, 363)]),
}
JITTER = [(1, 0), (-1, 0), (0, 1), (0, -1)]  # pixels


@functools.cache
def networks() -> Networks:
  name, flow_params = released.load()
  found = lpips.default_path("alexnet").exists()  # its weights do not ship
  lpips_params = lpips.load(network="alexnet") if found else None
  flow = ESTIMATORS[name], flow_params
  return face_scores.make_networks(lpips_params, identity.load(), mesh.load(), flow)


def read(path: pathlib.Path, clip: str) -> list[np.ndarray]:
  """Aligned faces of a clip."""
  start, points = CLIPS[clip]
  matrix = align.fit(np.array([points], float), SIZE, robust=False)[0][0]
  with video.open_reader(str(path), start, start + FRAMES) as reader:
    return [align.align_reduced(frame.image, matrix, SIZE) for frame in reader]


def packaged() -> list[np.ndarray]:
  return read(ROOT / "keep_jax/assets/demo_clip/truth.mp4", PACKAGED)


def somebody() -> list[np.ndarray]:
  """Another face of nobody (CC0), of which there is one picture."""
  with np.load(ROOT / "tests/parity/face_networks.npz") as golden:
    face = golden["in/faces_192"][0]
  return [cv2.resize(face, (SIZE, SIZE), interpolation=cv2.INTER_AREA)] * FRAMES


def moved(frame: np.ndarray, dx: int, dy: int) -> np.ndarray:
  matrix = np.array([[1, 0, dx], [0, 1, dy]], float)
  return cv2.warpAffine(frame, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)


def score(truth: list[np.ndarray], other: list[np.ndarray]) -> dict[str, dict[str, float]]:
  """What each spoilt copy of a clip is given."""
  outputs = {
    "same": truth,
    "blur": [cv2.GaussianBlur(frame, None, 0.8) for frame in truth],
    "strong blur": [cv2.GaussianBlur(frame, None, 1.5) for frame in truth],
    "shift": [moved(frame, 1, 0) for frame in truth],
    "jitter": [moved(frame, *by) for frame, by in zip(truth, JITTER, strict=True)],
    "other": other,
  }
  clip = FaceClipScore(networks(), list(outputs))
  for number, frame in enumerate(truth):
    clip.add(frame, {name: frames[number] for name, frames in outputs.items()}, template(SIZE))
  assert clip.faces == list(range(FRAMES))
  return {name: compute(METRICS, found) for name, found in clip.scores.items()}


def check(found: dict[str, dict[str, float]]) -> None:
  same, blur, strong, shift, jitter, other, truth = found.values()
  assert same["ids"] == pytest.approx(1)
  assert same["akd"] == same["tlme"] == 0
  assert same["warping"] == truth["warping"]
  for worse, better in ((blur, same), (strong, blur), (other, blur)):
    assert worse["psnr"] < better["psnr"]
    assert worse["ssim"] < better["ssim"]
    assert worse["ids"] < better["ids"]
    assert worse["akd"] > better["akd"]
    if networks().distance:
      assert worse["lpips"] > better["lpips"]
  assert other["ids"] < 0.2 < 0.45 < strong["ids"]
  assert other["akd"] > 1.5 * max(strong["akd"], shift["akd"])
  pixel = align.SIZE / SIZE
  assert shift["akd"] == pytest.approx(pixel, rel=0.25)  # in pixels of 512
  # What jumps by a pixel is as far from the truth as what is off by one, but not as steady.
  assert jitter["akd"] < 1.5 * shift["akd"]
  assert shift["tlme"] < 0.35 * pixel < pixel < jitter["tlme"]
  assert shift["warping"] == pytest.approx(truth["warping"], rel=0.2)
  assert jitter["warping"] > 4 * truth["warping"]
  assert strong["warping"] < blur["warping"] < truth["warping"]  # why the truth's is shown
  assert jitter["sigma_ids"] > shift["sigma_ids"]
  # Not so sigma_AKD: every frame of the jitter is as far off, which TLME tells from a shift.


def test_on_the_packaged_clip():
  check(score(packaged(), somebody()))


@pytest.mark.slow
@pytest.mark.parametrize("clip", [name for name in CLIPS if name != PACKAGED])
def test_on_real_clips(shared, clip):
  check(score(read(shared / "data/faces" / clip, clip), packaged()))
