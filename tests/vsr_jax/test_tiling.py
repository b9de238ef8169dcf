"""Tiles and chunks: everything is covered once, blended without seams, in constant memory."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr_jax import tiling
from vsr_jax.frames import Frame
from vsr_jax.tiling import largest_tile, restore_tiled, tile_starts


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 79))
def test_tiles_cover_an_axis_and_overlap(size, tile, overlap):
  overlap %= tile
  starts = tile_starts(size, tile, overlap)
  assert starts[0] == 0
  assert starts[-1] == max(0, size - tile)
  steps = np.diff(starts)
  assert (steps > 0).all()
  assert (steps <= tile - overlap).all()
  # No more tiles than it takes.
  assert (len(starts) - 2) * (tile - overlap) + tile < size or len(starts) == 1


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_that_does_not_fit_is_refused(overlap):
  with pytest.raises(ValueError, match="tiles of 8 cannot overlap by"):
    tile_starts(20, 8, overlap)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(0, 12))
def test_chunks_hold_every_frame_once_with_its_context(count, length, context):
  done = 0
  for chunk, before, after in tiling._chunks(iter(range(count)), length, context):
    core = chunk[before : len(chunk) - after]
    assert 1 <= len(core) <= length
    assert before == min(done, context)
    assert after == min(count - done - len(core), context)
    assert chunk == list(range(done - before, done + len(core) + after))
    done += len(core)
  assert done == count


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 50_000))
def test_the_largest_tile_is_the_largest(height, width, pixels):
  def covered(side):
    return min(side, height) * min(side, width)

  side = largest_tile(height, width, pixels)
  assert covered(side) <= pixels
  assert covered(side + 1) > pixels or covered(side) == height * width


def enlarge(frames):
  """x2, looking one frame back and ahead, continued at the ends by replication."""
  frames = [frame.astype(np.int32) for frame in frames]
  for i, frame in enumerate(frames):
    before, after = frames[max(i - 1, 0)], frames[min(i + 1, len(frames) - 1)]
    mean = (before + 2 * frame + after + 2) // 4
    yield mean.repeat(2, axis=0).repeat(2, axis=1).astype(np.uint8)


def noise(count, height, width):
  return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def tiled(frames, tile, overlap, restore=enlarge):
  return np.array(
    list(restore_tiled(restore, frames, tile=tile, overlap=overlap, context=1, scale=2))
  )


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize(("height", "width"), [(13, 30), (30, 13), (23, 29), (9, 9)])
def test_what_depends_on_a_neighbourhood_only_is_the_same_by_tiles(
  monkeypatch, count, height, width
):
  monkeypatch.setattr(tiling, "_CANVAS_BYTES", 0)  # chunks of the least length, 4
  frames = noise(count, height, width)
  np.testing.assert_array_equal(tiled(frames, 12, 5), list(enlarge(frames)))


def test_frames_keep_their_times_by_tiles():
  images = noise(5, 23, 29)
  frames = [Frame(image, Fraction(i, 25), i) for i, image in enumerate(images)]
  restored = list(restore_tiled(enlarge, frames, tile=12, overlap=5, context=1, scale=2))
  np.testing.assert_array_equal([frame.image for frame in restored], tiled(images, 12, 5))
  assert [frame.time for frame in restored] == [frame.time for frame in frames]


def test_a_stream_of_no_frame_gives_none():
  assert list(restore_tiled(enlarge, [], tile=8, overlap=2, context=1, scale=2)) == []


def test_a_tile_as_large_as_the_frame_is_the_whole_frame():
  parts = []

  def restore(frames):
    frames = list(frames)
    parts.append(frames[0].shape)
    return enlarge(frames)

  frames = noise(3, 10, 14)
  np.testing.assert_array_equal(tiled(frames, 14, 3, restore), list(enlarge(frames)))
  assert parts == [(10, 14, 3)]


def test_tiles_of_different_level_are_blended_along_straight_lines():
  """Nine tiles with a level each: bilinear in between, also where four of them meet."""
  levels = iter(np.random.default_rng(1).permutation(9) * 25 + 20)

  def restore(frames):
    level = next(levels)
    for frame in frames:
      yield np.full((2 * frame.shape[0], 2 * frame.shape[1], 3), level, np.uint8)

  (image,) = tiled(noise(1, 28, 28), 12, 4, restore)
  image = image.astype(int)
  # Neighbours' levels differ by up to 200, an overlap is 8 pixels of the output wide.
  for axis in (0, 1):
    assert np.abs(np.diff(image, axis=axis)).max() <= 200 / 8 + 1
  centre = image[16:24, 16:24, 0]  # the overlap of the first four tiles
  np.testing.assert_allclose(centre[1:-1] * 2, centre[2:] + centre[:-2], atol=2)
  np.testing.assert_allclose(centre[:, 1:-1] * 2, centre[:, 2:] + centre[:, :-2], atol=2)


def test_a_long_stream_is_not_read_ahead():
  """Output starts after a chunk and its context, however long the stream."""
  taken = 0

  def frames():
    nonlocal taken
    for frame in noise(200, 4, 4):
      taken += 1
      yield frame

  results = restore_tiled(enlarge, frames(), tile=3, overlap=1, context=1, scale=2)
  for i, _ in enumerate(results):
    assert taken <= i + 34
