"""Streaming equals restoring window by window, at constant memory, on one device and on eight."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage

from fmanet_jax import streaming
from fmanet_jax.model import FMANet, learn_degradation, restore
from fmanet_jax.streaming import OVERLAP, Restorer, estimate_memory
from tests.support import fmanet
from tests.support.fmanet import SMALLEST as TINY
from vsr_jax.checkpoint import export_params
from vsr_jax.enlarge import enlarger
from vsr_jax.enlarge.enlarger import enlarge_frames, fitting_tile
from vsr_jax.errors import UserError
from vsr_jax.ops.resize import resize_bicubic
from vsr_jax.sharding import make_mesh
from vsr_jax.tiling import tile_starts


@functools.cache
def tiny(frames=3):
  return fmanet.load(dataclasses.replace(TINY, dim=6 if frames < 5 else 5, frames=frames))


@functools.cache
def one_device():
  return Restorer(*tiny())


@functools.cache
def eight_devices():
  return Restorer(*tiny(), make_mesh())


def noise(count, height=8, width=10):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def centre(model, params, window):
  return restore(model, params, window, learn_degradation(model, params, window)).output[0]


def one_by_one(model, params, frames):
  """Every frame by a window of its own, through the functions that training uses."""
  t = model.arch.frames
  padded = np.pad(frames, ((t // 2, t // 2), *((0, 0),) * 3), mode="edge")
  for i in range(len(frames)):
    window = padded[None, i : i + t].astype(np.float32) / 255
    yield np.rint(255 * np.clip(np.asarray(centre(model, params, window)), 0, 1)).astype(np.uint8)


def assert_same_levels(results, expected):
  """Equal but for sums in another order, which may round to the neighbouring level."""
  results, expected = np.array(list(results)), np.array(list(expected))
  assert results.dtype == np.uint8
  assert results.shape == expected.shape
  difference = np.abs(results.astype(int) - expected)
  assert difference.max(initial=0) <= 1
  assert difference.mean() < 0.01


@pytest.mark.parametrize("t", [3, *(pytest.param(t, marks=pytest.mark.slow) for t in (1, 5))])
def test_a_stream_equals_its_windows_one_by_one(t):
  model, params = tiny(t)
  frames = noise(5)
  restorer = one_device() if t == 3 else Restorer(model, params)
  expected = list(one_by_one(model, params, frames))
  assert np.std(expected) > 1  # a constant would prove nothing
  assert_same_levels(restorer.stream(frames), expected)
  for length in (1, 2):
    assert_same_levels(restorer.stream(frames[:length]), one_by_one(model, params, frames[:length]))
  assert list(restorer.stream(frames[:0])) == []


def test_clips_of_a_size_share_two_programs():
  restorer = one_device()
  before = len(restorer._programs)
  for length in (1, 4, 2):
    assert len(list(restorer.stream(noise(length, 16, 16)))) == length
  assert len(restorer._programs) == before + 1


def test_the_frames_differ_in_what_they_say():
  """The order of a window's frames counts, so that the test above can fail."""
  model, params = tiny()
  frames = noise(3)
  centre = list(one_device().stream(frames))[1]
  assert (centre != list(one_device().stream(frames[::-1]))[1]).mean() > 0.05


def test_features_are_computed_once_a_frame(monkeypatch):
  restorer = one_device()
  encode, encoded = restorer._run_encode, []

  def counting(frames):
    encoded.append(frames[0])
    return encode(frames)

  monkeypatch.setattr(restorer, "_run_encode", counting)
  frames = noise(6)
  assert len(list(restorer.stream(frames))) == 6
  np.testing.assert_array_equal(encoded, frames)


def test_a_caller_may_fill_one_buffer_again_and_again():
  frames, buffer = noise(5), np.empty((8, 10, 3), np.uint8)

  def filled():
    for frame in frames:
      buffer[:] = frame
      yield buffer

  restored = np.stack(list(one_device().stream(filled())))
  np.testing.assert_array_equal(restored, np.stack(list(one_device().stream(frames))))


@pytest.mark.slow
def test_bfloat16_is_near_float32():
  model, params = tiny()
  frames = noise(4, 16, 16)
  rough = Restorer(FMANet(model.arch, jnp.bfloat16), params).stream(frames)
  exact = np.stack(list(one_device().stream(frames))).astype(int)
  difference = np.abs(np.stack(list(rough)) - exact)
  # bfloat16 has 8 bits; noise, enlarged by random weights, is the hardest content.
  assert 0 < difference.mean() < 3


@pytest.mark.parametrize("length", [1, 8, 11])
def test_eight_devices_give_what_one_gives(length):
  assert eight_devices().group_size == 8
  frames = noise(length)
  assert_same_levels(eight_devices().stream(frames), one_device().stream(frames))


def test_windows_are_spread_over_the_devices(monkeypatch):
  restorer = eight_devices()
  compute, placed = restorer._run_restore, []

  def watching(*features):
    images = compute(*features)
    placed.append([shard.data.shape[0] for shard in images.addressable_shards])
    return images

  monkeypatch.setattr(restorer, "_run_restore", watching)
  assert len(list(restorer.stream(noise(9)))) == 9
  assert placed == [[1] * 8] * 2


def test_memory_does_not_grow_with_the_clip():
  frames = noise(30)

  def live():
    return len(jax.live_arrays()), sum(x.nbytes for x in jax.live_arrays())

  held = [live() for _ in one_device().stream(frames)]
  assert len(set(held[3:-3])) == 1
  assert max(held) == held[3]


def test_a_stream_is_read_only_as_far_as_its_windows_reach():
  taken = 0

  def frames():
    nonlocal taken
    for frame in noise(20):
      taken += 1
      yield frame

  for i, _ in enumerate(one_device().stream(frames())):
    assert taken <= i + 3  # one frame ahead for the window, one for the step that runs ahead


def test_tiny_frames_are_restored_and_compiling_is_told(caplog):
  height, width = 1, 2
  frames = noise(2, height, width)
  with caplog.at_level(logging.DEBUG, "vsr_jax.compiling"):
    results = list(one_device().stream(frames))
  told = [re.sub(r"\d+ s", "s", line) for line in caplog.messages[-1:]]
  assert told == [f"compiled for {width}x{height} in s"]
  assert [image.shape for image in results] == [(2 * height, 2 * width, 3)] * 2
  assert len(np.unique(results)) > 1


def test_a_tile_that_holds_the_frame_changes_nothing():
  frames = noise(6)
  results = enlarge_frames(one_device(), frames, tile=OVERLAP + 1)
  np.testing.assert_array_equal(list(results), list(one_device().stream(frames)))


def natural_clip(size):
  """A photograph that passes by, two frames, bicubically reduced by 4."""
  photo = skimage.data.astronaut()
  views = [photo[8 * i :, 12 * i :][: 4 * size, : 4 * size] for i in range(2)]
  return np.stack([resize_bicubic(view, 0.25) for view in views])


@functools.cache
def of_scale_4():
  """The most for K^R."""
  return Restorer(*fmanet.load(dataclasses.replace(TINY, scale=4, kernel_down=4, kernel_up=3)))


def demonstration():
  if not streaming.DEMO_WEIGHTS.is_dir():
    pytest.skip("the demonstration weights are missing")
  return Restorer(*streaming.load())


TILE = 64


@pytest.mark.parametrize("make", [of_scale_4, pytest.param(demonstration, marks=pytest.mark.slow)])
def test_tiles_show_no_seams(make):
  restorer, tile = make(), TILE
  frames, s = natural_clip(96), restorer.model.arch.scale
  whole, tiled = (
    np.array(list(enlarge_frames(restorer, frames, size))).astype(np.float32)
    for size in (None, tile)
  )
  assert np.abs(whole - tiled).mean() <= 1
  starts = tile_starts(frames.shape[1], tile, OVERLAP)
  edges = [s * x for x in starts[1:]] + [s * (x + tile) for x in starts[:-1]]
  for axis in (1, 2):
    # How much steeper the tiled frames are than the whole ones, line by line.
    others = tuple({0, 1, 2, 3} - {axis})
    steps = [np.abs(np.diff(x, axis=axis)).mean(others) for x in (tiled, whole)]
    seams = np.unique([edge + i for edge in edges for i in (-2, -1, 0)])  # -1: across the edge
    at_seams = np.isin(np.arange(len(steps[0])), seams)
    steeper = [steps[0][where].mean() / steps[1][where].mean() for where in (at_seams, ~at_seams)]
    assert steeper[0] / steeper[1] == pytest.approx(1, abs=0.05)


def of_5_frames():
  """The most for the alignment."""
  return Restorer(*fmanet.load(dataclasses.replace(TINY, dim=30, frma_blocks=3, frames=5)))


@pytest.mark.parametrize("make", [of_scale_4, pytest.param(of_5_frames, marks=pytest.mark.slow)])
def test_the_estimated_memory_is_about_what_xla_takes(make):
  restorer = make()
  model = restorer.model
  h, w = TILE, TILE  # tiles are compiled already
  _, (group, f0) = restorer._shapes(h, w)
  held = (group,) * restorer._groups_held, (f0,) * restorer._groups_with_f0
  _, program = restorer._compiled(h, w)
  analysis = program.memory_analysis()
  live = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))
  xla = analysis.temp_size_in_bytes + analysis.output_size_in_bytes + live
  assert 0.5 <= estimate_memory(model, h, w) / xla <= 2
  assert estimate_memory(model, 3 * h, 2 * w) == 6 * estimate_memory(model, h, w)


@pytest.mark.parametrize("mesh", [None, "all"])
def test_frames_that_do_not_fit_are_tiled(monkeypatch, mesh):
  restorer = eight_devices() if mesh else one_device()
  devices = restorer.group_size  # of a CPU: they share its memory

  def with_memory(count):
    monkeypatch.setattr(enlarger, "free_memory", lambda device: count)
    return fitting_tile(restorer, 1000, 2000)

  whole = devices * estimate_memory(restorer.model, 1000, 2000)
  assert with_memory(2 * whole) is None
  tile = with_memory(whole // 4)
  used = devices * estimate_memory(restorer.model, tile, tile)
  assert 0.15 * whole < used < 0.25 * whole
  with pytest.raises(UserError, match="not enough to restore"):
    with_memory(devices * estimate_memory(restorer.model, 30, 30))


@pytest.fixture
def exported(tmp_path):
  model, params = tiny()
  folder = tmp_path / "weights"
  export_params(folder, params, {"model": dataclasses.asdict(model.arch)})
  return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_exported_is_loaded(exported, dtype):
  model, params = streaming.load(exported, dtype)
  assert model == FMANet(tiny()[0].arch, jnp.dtype(dtype))
  jax.tree.map(np.testing.assert_array_equal, params, tiny()[1])


def change_meta(folder, change):
  path = folder / "meta" / "meta.json"
  meta = json.loads(path.read_text())
  change(meta)
  path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
  "change",
  [
    lambda meta: meta.pop("model"),
    lambda meta: meta.update(model={"codebook_size": 1024}),
    lambda meta: meta.update(model="keep"),
  ],
)
def test_a_checkpoint_of_another_model_is_refused(exported, change):
  change_meta(exported, change)
  with pytest.raises(UserError, match="not a checkpoint of FMA-Net; give a run"):
    streaming.load(exported)


def test_a_checkpoint_of_stage_1_is_refused(exported):
  change_meta(exported, lambda meta: meta.update(stage="degradation"))
  with pytest.raises(UserError, match="of stage 1, which trains no restoration; give a run of the"):
    streaming.load(exported)


def test_weights_of_another_shape_are_refused(exported):
  change_meta(exported, lambda meta: meta["model"].update(dim=12))
  with pytest.raises(UserError, match="not the weights of this model: .*kernel"):
    streaming.load(exported)


def test_a_truncated_checkpoint_is_refused(exported):
  data = [path for path in (exported / "params").rglob("*") if path.is_file()]
  for path in data:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(UserError, match="damaged, its params cannot be read"):
    streaming.load(exported)


def test_a_missing_checkpoint_is_refused(tmp_path):
  with pytest.raises(UserError, match="no such folder; give a run's folder"):
    streaming.load(tmp_path / "nowhere")


@pytest.mark.parametrize("tile", [None, 20])
def test_what_is_no_frames_is_refused_before_anything_is_compiled(tile):
  restorer = Restorer(*tiny())
  for wrong, told in ((noise(3).swapaxes(1, 3), "channels first"), ("clip.mp4", "holds no frames")):
    with pytest.raises(ValueError, match=told):
      next(enlarge_frames(restorer, wrong, tile))
  assert not restorer._programs
  with pytest.raises(ValueError, match="frame 1 is 9x8, the first 10x8"):
    list(one_device().stream([*noise(1), noise(1)[0, :, :9]]))


def test_floats_and_a_single_frame_are_restored():
  frames = noise(3)
  want = list(one_device().stream(frames))
  np.testing.assert_array_equal(list(one_device().stream(frames / 255)), want)
  single = list(one_device().stream(frames[0]))
  np.testing.assert_array_equal(single, list(one_device().stream(frames[:1])))
