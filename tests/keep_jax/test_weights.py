"""Weights that are extracted and shipped, the default of restoring, and small models' faces."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

import jax
import numpy as np
import pytest
import skimage.data

from keep_jax import extract, restore, stages, starting, streaming, weights
from keep_jax.faces import find_faces, identity, restore_faces, restore_in_memory
from keep_jax.model import KEEP, restore_clip
from tests.keep_jax import tiny
from tests.support.programs import relative_error
from tests.vsr_jax.clips import encode
from vsr_jax import video
from vsr_jax.checkpoint import export_params, read_meta
from vsr_jax.errors import UserError
from vsr_jax.faces import align
from vsr_jax.faces.detector import make_detector
from vsr_jax.flow import raft_conversion
from vsr_jax.metrics import rgb_psnr

FACE = skimage.data.astronaut()[:224, 100:356]
WITH_FLOW = tiny.change(flow="raft_small")


def save(folder, params, arch=tiny.ARCH, **meta):
  full = {name: tree for name, tree in params.items() if jax.tree.leaves(tree)}
  export_params(folder, full, {"model": dataclasses.asdict(arch), **meta})


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def as_half(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), tree)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
  """A run of a tiny model with the flow that ships: params, what is extracted, what that told."""
  folder = tmp_path_factory.mktemp("extracted")
  params = tiny.load()[1] | {"flow": raft_conversion.load()[1]}
  discriminator = {"discriminator": {"kernel": np.ones((2, 2), np.float32)}}
  entries = {"stage": "fusion", "step": 3, "config": {"data": {"root": "/home/me/faces"}}}
  save(folder / "run", params | discriminator, WITH_FLOW, **entries)
  told = extract.extract(folder / "run", folder / "weights", half=True)
  return params, folder / "weights", told


def test_what_is_extracted_is_small_and_complete(extracted):
  params, folder, told = extracted
  assert "KEEP for faces of 32x32" in told
  assert "the flow network ships already" in told
  meta = read_meta(folder)
  assert {name.partition("/")[0] for name in meta["arrays"]["params"]} == params.keys() - {"flow"}
  assert (meta["stage"], meta["step"]) == ("fusion", 3)
  assert not [p for p in folder.rglob("*") if p.is_file() and b"/home/me" in p.read_bytes()]
  stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
  own = {name: tree for name, tree in params.items() if name != "flow"}
  # The metadata, and however Orbax packs while the machine is busy.
  assert stored < 2 * sum(x.size for x in jax.tree.leaves(own)) + 200_000

  model, found = streaming.load(folder)
  assert model.arch == WITH_FLOW
  assert_equal(found, as_half(own) | {"flow": params["flow"]})


def test_training_starts_with_the_flow_that_ships(extracted):
  """And takes float16 for float32."""
  params, folder, _ = extracted
  sources, options = starting.parse(str(folder)), stages.Options({})
  found, origins = starting.load(sources, KEEP(WITH_FLOW), "prediction", options)
  assert_equal(found["flow"], params["flow"])
  assert_equal(found["encoder"], as_half(params["encoder"]))
  assert origins["flow"] == "what ships with this package"
  gmflow = KEEP(tiny.change(flow="gmflow"))
  with pytest.raises(UserError, match="the flow network 'gmflow' has no weights; convert"):
    starting.load(sources, gmflow, "prediction", options)


def test_what_is_extracted_keeps_a_flow_network_of_ones_own(extracted, tmp_path):
  params = extracted[0]
  other = jax.tree.map(lambda x: 1.01 * x, params["flow"])
  save(tmp_path / "run", params | {"flow": other}, WITH_FLOW)
  assert "ships already" not in extract.extract(tmp_path / "run", tmp_path / "weights", half=False)
  held = read_meta(tmp_path / "weights")["arrays"]["params"]
  assert {spec[:8] for name, spec in held.items() if name.startswith("flow/")} == {"float32["}


def test_float16_costs_little():
  """What the tiny model computes changes by 0.2 %; codes of small margin may flip."""
  model, params = tiny.load()
  half = as_half(params)
  frames = tiny.clip(3)

  @jax.jit
  def compute(params):
    restored, _, gains = restore_clip(model, params, frames, tiny.random_flows(3))
    latent = jax.random.normal(jax.random.key(0), (1, 16, 16, 32))
    image = model.generator.apply({"params": params["generator"]}, latent)
    return restored.logits, gains, image

  for changed, exact in zip(compute(half), compute(params), strict=True):
    assert 0 < relative_error(changed, np.asarray(exact)) < 4e-3


def test_what_cannot_be_extracted(run_main, tmp_path):
  params = tiny.load()[1]
  save(tmp_path / "vqgan", {"codebook": params["codebook"]}, stage="vqgan")
  save(tmp_path / "part", {"encoder": params["encoder"]})
  save(tmp_path / "large", params | {"codebook": 1e6 * params["codebook"]})
  (tmp_path / "notes").mkdir()
  for run, folder, told in (
    ("vqgan", "out", "of stage I, which restores no video"),
    ("part", "out", "a part of a KEEP, without .*gain.*; give a run of stage II or III"),
    ("large", "out", "float16 is too small for numbers in codebook"),
    ("missing", "out", "no such folder"),
    ("large", "large", "large: holds the run"),
    ("large", "notes", "notes: exists and is no exported checkpoint"),
  ):
    said = run_main(extract.main, tmp_path / run, tmp_path / folder, "--float16", code=2)
    (line,) = said.err.strip().splitlines()
    assert re.search(told, line), line
  assert not (tmp_path / "out").exists()


@pytest.fixture
def clip(tmp_path):
  path = tmp_path / "clip.mkv"
  encode(path, np.stack([FACE] * 3), "ffv1", "bgr0")
  return path


def test_without_a_checkpoint_the_demonstration_weights_restore(
  run_main, clip, tmp_path, monkeypatch
):
  monkeypatch.setattr(weights, "DEMO_WEIGHTS", tmp_path / "demo_weights")
  said = run_main(restore.main, clip, tmp_path / "out", code=2)
  (line,) = said.err.strip().splitlines()
  assert "demo_weights: KEEP's demonstration weights are missing; train them" in line
  assert "--checkpoint" in line
  assert not (tmp_path / "out").exists()

  tiny.save(tmp_path / "demo_weights")
  said = run_main(restore.main, clip, tmp_path / "out")
  (line,) = [line for line in said.out.splitlines() if line.startswith("note:")]
  assert "demonstration weights, a small model for faces of 32x32 pixels" in line
  assert "--checkpoint" in line
  assert "1 face track" in said.out


@pytest.mark.parametrize(
  ("options", "used"),
  [
    ((), True),
    (("--colors", "network"), False),
    (("--checkpoint", "CHECKPOINT"), False),
    (("--checkpoint", "CHECKPOINT", "--colors", "input"), True),
  ],
)
def test_the_demonstration_weights_keep_the_inputs_colors(
  run_main, clip, tmp_path, monkeypatch, options, used
):
  seen = []

  def record(*arguments, **options):
    seen.append(options["input_colors"])
    return restore_faces(*arguments, **options)

  monkeypatch.setattr(restore, "restore_faces", record)
  monkeypatch.setattr(restore, "_network", lambda args: (identity, 32))
  given = [str(tmp_path) if x == "CHECKPOINT" else x for x in options]
  run_main(restore.main, clip, tmp_path / "out", *given)
  assert seen == [used]


def test_colors_of_the_input_leave_no_square():
  frames = [video.Frame(FACE, Fraction(i, 25), i) for i in range(2)]
  faces, _ = find_faces((frame.image for frame in frames), make_detector(), size=128)

  def brighter(crops):
    for cut in crops:
      yield {i: np.clip(face.astype(int) + 50, 0, 255).astype(np.uint8) for i, face in cut.items()}

  (with_colors, _), (without, _) = (
    list(restore_faces(frames, faces, brighter, size=128, input_colors=x)) for x in (True, False)
  )
  assert rgb_psnr(FACE, with_colors.image) > 30
  assert rgb_psnr(FACE, without.image) < 25


def test_arrays_give_the_arrays_that_frames_give():
  clip = np.stack([FACE, FACE[:, ::-1]])
  frames = [video.Frame(image, Fraction(i), i) for i, image in enumerate(clip)]
  detect = make_detector()
  faces, _ = find_faces(clip, detect, size=32)
  options = {"size": 32, "input_colors": True}
  expected = [result.image for result in restore_faces(frames, faces, identity, **options)]
  found = list(restore_in_memory(clip, identity, detect, **options))
  assert (np.stack(found) != clip).any()
  np.testing.assert_array_equal(found, expected)


def test_a_small_crop_of_a_large_face_has_no_aliases():
  """Stripes finer than the crop can show become grey, where single points would give a pattern."""
  stripes = np.zeros((224, 256, 3), np.uint8)
  stripes[:, ::2] = 255
  frames = [video.Frame(FACE, Fraction(i, 25), i) for i in range(2)]
  faces, _ = find_faces((frame.image for frame in frames), make_detector(), size=32)
  frames = [dataclasses.replace(frame, image=stripes) for frame in frames]
  for result in restore_faces(frames, faces, identity, size=32):
    inside = result.crops[0][8:24, 8:24].astype(float)
    assert inside.std() < 20
    points = align.align(stripes, faces[0].matrices[0], 32)[8:24, 8:24]
    assert points.std() > 60


@pytest.mark.parametrize("size", [64, 128])
def test_the_paste_covers_the_same_place_at_any_size(size):
  """A white face fades into the frame alike; the crop's edge moves by half a pixel of the crop."""
  frames = [video.Frame(FACE, Fraction(i, 25), i) for i in range(2)]
  whole = paint(frames, 512)
  small = paint(frames, size)
  assert np.abs(whole.astype(int) - small).max() <= 48
  assert np.abs(whole.astype(int) - small).mean() < 1.5
  assert (small != FACE).any(-1).mean() > 0.2


def paint(frames, size):
  def white(crops):
    for faces in crops:
      yield {i: np.full_like(face, 255) for i, face in faces.items()}

  faces, _ = find_faces((frame.image for frame in frames), make_detector(), size=size)
  return next(iter(restore_faces(frames, faces, white, size=size))).image


def test_a_face_survives_the_way_through_a_crop_of_its_size():
  """Cut out and pasted back at 128 pixels, 1.3 frame pixels each, it loses little."""
  frames = [video.Frame(FACE, Fraction(i, 25), i) for i in range(2)]
  faces, _ = find_faces((frame.image for frame in frames), make_detector(), size=128)
  for result in restore_faces(frames, faces, identity, size=128):
    assert rgb_psnr(FACE, result.image) > 30
