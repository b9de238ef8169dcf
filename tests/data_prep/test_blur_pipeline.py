"""The batches: alignment, flips, determinism, sharing between hosts, resuming."""

from __future__ import annotations

import dataclasses
import multiprocessing

import cv2
import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_prep.helpers import write_clip, write_clip_set, write_flow
from vsr_jax.data_prep import batching, blur_pipeline, clip_set, exposure
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, STREAMS, Clip
from vsr_jax.data_prep.folders import FileStream
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError

MOTION = 4.0  # pixels of the truth a frame: one of the low-resolution frames


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  root = tmp_path_factory.mktemp("clips")
  lengths = {"beach": 6, "alley": 4}
  write_clip_set(root, lengths, motion=MOTION)
  for name, length in lengths.items():
    write_flow(root, name, length, 3, MOTION / 4)
  return open_clips(root, num_frames=3, need_flow=True).clips


def make(found, **changes):
  return blur_pipeline.make_dataset(
    found, **({"num_frames": 3, "crop": 16, "batch_size": 2, "seed": 7} | changes)
  )


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def test_windows_are_all_runs_of_frames():
  windows = batching.Windows([4, 2, 6], 3)  # the second is too short
  listed = [windows[i] for i in range(len(windows))]
  assert listed == [(0, 0), (0, 1), *((2, i) for i in range(4))]


def test_batch_shapes_and_types(found):
  batch = make(found)[0]
  shapes = {name: (x.shape, x.dtype.name) for name, x in batch.items()}
  assert shapes == {
    "blurry": ((2, 3, 16, 16, 3), "uint8"),
    "sharp": ((2, 3, 64, 64, 3), "uint8"),
    "sharp_lr": ((2, 3, 16, 16, 3), "uint8"),
    "flow": ((2, 3, 16, 16, 2), "float32"),
  }
  assert "flow" not in make(found, flow=False)[0]


def test_crops_of_all_streams_show_the_same_place(found):
  for i in range(4):
    batch = make(found)[i]
    reduced = exposure.downsample(batch["sharp"].reshape(-1, 64, 64, 3), 4)
    reduced = reduced.reshape(batch["sharp_lr"].shape)
    # The bicubic reaches two low-resolution pixels across the crop's edge; inside it is exact,
    # whether the crop is reduced or the reduction cropped, and however it is flipped.
    inner = (..., slice(3, -3), slice(3, -3), slice(None))
    difference = batch["sharp_lr"][inner].astype(int) - reduced[inner]
    # Flipped halves round the other way.
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01
    np.testing.assert_array_equal(batch["blurry"], batch["sharp_lr"] // 2)


def test_flow_leads_from_the_centre_to_each_frame_also_after_flips(found):
  y, x = np.mgrid[:16, :16].astype(np.float32)
  seen = set()
  for i in range(8):
    batch = make(found)[i]
    for frames, flow in zip(batch["sharp_lr"], batch["flow"], strict=True):
      seen.add(float(np.sign(flow[2, 0, 0, 0])))
      assert not flow[1].any()
      for t in (0, 2):
        map_x, map_y = x + flow[t, ..., 0], y + flow[t, ..., 1]
        warped = cv2.remap(frames[t].astype(np.float32), map_x, map_y, cv2.INTER_LINEAR)
        inner = (slice(2, -2), slice(2, -2))
        after = np.abs(warped - frames[1])[inner].mean()
        before = np.abs(frames[t].astype(float) - frames[1])[inner].mean()
        assert after < 1.0 < before  # a translation by whole pixels: only rounding is left
  assert seen == {-1.0, 1.0}  # both directions were met


@given(st.booleans(), st.booleans(), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_flipping_twice_is_the_identity(mirror, upend, h, w):
  rng = np.random.default_rng(h * w)
  sample = {"sharp": rng.random((3, h, w, 3)), "flow": rng.random((3, h, w, 2), np.float32)}
  assert_equal(sample, blur_pipeline.flip(blur_pipeline.flip(sample, mirror, upend), mirror, upend))


def test_flips_and_crops_occur_as_often_as_they_should(found):
  flow = np.concatenate([make(found)[i]["flow"][:, 2, 0, 0] for i in range(50)])
  # 100 fair coins: within four standard deviations.
  assert abs((flow[:, 0] < 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(100)


def test_the_same_seed_gives_the_same_batches_and_another_one_others(found):
  one, other = make(found), make(found)
  for i in (0, 5, 31):
    assert_equal(one[i], other[i])
  assert not np.array_equal(one[0]["sharp"], make(found, seed=8)[0]["sharp"])


def test_every_epoch_holds_each_window_once_in_a_new_order(tmp_path):
  folders = {stream: tmp_path / stream / "steps" for stream in STREAMS}
  write_clip(folders, [np.full((96, 128, 3), 10 * i, np.uint8) for i in range(8)])
  clip_set.write_index(tmp_path, [{"name": "steps", "frames": 8}])
  dataset = make(open_clips(tmp_path).clips, batch_size=6, flow=False)
  orders = [(dataset[i]["sharp"][:, 0, 0, 0, 0] // 10).tolist() for i in range(3)]
  assert [sorted(order) for order in orders] == [list(range(6))] * 3
  assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("shares", [[(0, 1), (2, 3), (4, 5)], [(0, 2, 4), (1, 3, 5)]])
def test_each_host_makes_its_rows_of_a_global_batch(found, shares):
  whole = make(found, batch_size=6)
  parts = [make(found, batch_size=6, rows=rows) for rows in shares]
  for step in (0, 1, 5):
    for rows, part in zip(shares, parts, strict=True):
      want = {name: x[list(rows)] for name, x in whole[step].items()}
      assert_equal(part[step], want)


def test_an_epoch_is_covered_by_disjoint_shares(found):
  shares = [make(found, batch_size=2, rows=(row,), epochs=1) for row in range(2)]
  assert [len(share) for share in shares] == [3, 3]
  samples = {share[i]["sharp"].tobytes() for share in shares for i in range(3)}
  single = make(found, batch_size=1, epochs=1)
  assert samples == {single[i]["sharp"].tobytes() for i in range(6)}
  assert len(samples) == 6


def test_evaluation_shows_every_window_once_and_marks_what_fills_up(found):
  batches = blur_pipeline.make_evaluation_set(found, num_frames=3, batch_size=4)
  assert len(batches) == 2
  shapes = {name: x.shape for name, x in batches[0].items()}
  assert shapes == {
    "blurry": (4, 3, 24, 32, 3),
    "sharp": (4, 96, 128, 3),
    "mask": (4,),
    "clip": (4,),
    "frame": (4,),
  }
  seen = [(b["mask"][k], b["clip"][k], b["frame"][k]) for b in batches for k in range(4)]
  truth = [(True, 0, 1), (True, 0, 2), *((True, 1, i) for i in range(1, 5))]
  assert seen == [*truth, (False, 1, 4), (False, 1, 4)]
  for index, frame, sharp, blurry in zip(
    *(batches[0][name] for name in ("clip", "frame", "sharp", "blurry")), strict=True
  ):
    np.testing.assert_array_equal(sharp, found[index].decode(SHARP, frame))
    np.testing.assert_array_equal(blurry[1], exposure.downsample(sharp, 4) // 2)


def test_hosts_share_an_evaluation_in_equally_many_batches(found):
  parts = [
    blur_pipeline.make_evaluation_set(found, num_frames=3, batch_size=4, rows=rows)
    for rows in ((0, 1), (2, 3))
  ]
  assert [len(part) for part in parts] == [2, 2]
  seen = [
    (int(b["clip"][k]), int(b["frame"][k]))
    for part in parts
    for b in part
    for k in range(2)
    if b["mask"][k]
  ]
  assert sorted(seen) == [(0, 1), (0, 2), *((1, i) for i in range(1, 5))]


def test_evaluation_needs_one_size(found):
  other = dataclasses.replace(found[0], sizes={BLUR_BICUBIC: (24, 40)})
  with pytest.raises(UserError, match="several sizes cannot share a batch: 32x24, 40x24"):
    blur_pipeline.make_evaluation_set([found[1], other], num_frames=3, batch_size=2)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(max_examples=20)
def test_mixed_sources_appear_by_weight(weights):
  sources = [grain.MapDataset.source([i]).repeat() for i in range(len(weights))]
  mixed = batching.mix(sources, weights)
  total = sum(weights)
  counts = np.bincount([mixed[i] for i in range(6 * total)], minlength=len(weights))
  # Grain spreads them evenly: at no time more than one away from the proportion.
  assert np.abs(counts - 6 * np.array(weights)).max() <= 1


def test_sources_that_cannot_be_mixed_are_refused():
  endless, short = grain.MapDataset.source([1]).repeat(), grain.MapDataset.source([1])
  with pytest.raises(UserError, match="2 sources have the weights .1,.; give each a positive one"):
    batching.mix([endless, endless], [1])
  with pytest.raises(UserError, match="positive"):
    batching.mix([endless, endless], [1, 0])
  with pytest.raises(ValueError, match="no end"):
    batching.mix([endless, short], [1, 1])


def test_incomplete_batches_are_left_out(found):
  assert len(make(found, batch_size=4, epochs=1)) == 1


def test_iterating_resumes_with_the_next_batch(found):
  with batching.BatchReader(make(found)) as batches:
    next(batches), next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(3)]
  with batching.BatchReader(make(found)) as again:
    next(again)
    again.set_state(state)
    for batch in expected:
      assert_equal(batch, next(again))


def test_a_position_in_other_batches_is_refused(found):
  numbers = [
    blur_pipeline.fingerprint(clips, batch_size=size, seed=seed)
    for clips, size, seed in ((found, 2, 7), (found[:1], 2, 7), (found, 3, 7), (found, 2, 8))
  ]
  assert len(set(numbers)) == 4
  with batching.BatchReader(make(found), fingerprint=numbers[0]) as batches:
    state = batches.get_state()
  with (
    batching.BatchReader(make(found), fingerprint=numbers[1]) as other,
    pytest.raises(ValueError, match="the clips, the batch or the seed changed"),
  ):
    other.set_state(state)


def test_worker_processes_change_nothing(found):
  with batching.BatchReader(make(found)) as batches:
    expected = [next(batches) for _ in range(4)]
  children = set(multiprocessing.active_children())
  with batching.BatchReader(make(found), workers=2) as batches:
    batches.set_state({"next_batch": 1, "identity": 0})
    for batch in expected[1:]:
      assert_equal(batch, next(batches))
  assert set(multiprocessing.active_children()) == children


def test_bad_input(found, tmp_path):
  with pytest.raises(UserError, match="no clip has the 7 frames"):
    make(found, num_frames=7)
  with pytest.raises(UserError, match=r"alley has .* 32x24, smaller than the crop of 25"):
    make(found, crop=25)
  missing = Clip("beach", 1, {SHARP: FileStream(tmp_path, "", ("missing.png",))})
  with pytest.raises(UserError, match=r"missing\.png is missing; extract, prepare or"):
    missing.decode(SHARP, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_frame_damaged_inside_is_named(tmp_path, workers):
  write_clip_set(tmp_path, {"beach": 3})
  frame = tmp_path / "sharp" / "beach" / "00000001.png"
  data = bytearray(frame.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 200] = bytes(200)
  frame.write_bytes(data)
  found = open_clips(tmp_path).clips
  dataset = make(found, batch_size=1, flow=False)
  message = r"sharp/beach/00000001\.png: cannot be decoded"
  with batching.BatchReader(dataset, workers) as batches, pytest.raises(UserError, match=message):
    next(batches)
