"""Real-ESRGAN on clips: streamed, by tiles, compiled once a size, in constant memory."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from tests.support.torch_writer import save_state_dict
from tests.vsr_jax.enlarge import small
from vsr_jax.enlarge import enlarger, realesrgan
from vsr_jax.enlarge.enlarger import enlarge_frames, fitting_tile
from vsr_jax.enlarge.realesrgan import OVERLAP, RealESRGAN
from vsr_jax.frames import Frame
from vsr_jax.tiling import tile_starts


def clip(count, height=20, width=28):
  """A photograph that passes by, [t h w 3]."""
  photo = skimage.data.astronaut()
  return np.stack([photo[i : i + height, 2 * i : 2 * i + width] for i in range(count)])


def test_a_stream_gives_what_the_network_gives_of_each_frame():
  frames = clip(3)
  x = jnp.asarray(frames, jnp.float32) / 255
  images = np.asarray(small.NET.apply({"params": small.params()}, x))
  expected = np.rint(255 * images.clip(0, 1)).astype(np.uint8)
  assert (images < 0).any()
  assert (images > 1).any()
  results = np.stack(list(small.enlarger().stream(frames)))
  assert results.shape == (3, 40, 56, 3)
  np.testing.assert_allclose(results.astype(int), expected, atol=1)
  assert (results != expected).mean() < 1e-3


def test_frames_keep_their_times():
  frames = [Frame(image, Fraction(i, 25), i) for i, image in enumerate(clip(3))]
  results = list(small.enlarger().stream(frames))
  assert [frame.time for frame in results] == [frame.time for frame in frames]
  assert all(a.restored_from is b.image for a, b in zip(results, frames, strict=True))


def test_a_buffer_that_is_filled_anew_is_no_repeated_frame(monkeypatch):
  """Frames that are the same are computed once; a caller may reuse one array."""
  made = small.enlarger()
  frames = clip(4)[[0, 0, 1, 1, 1, 2]]
  calls = []
  program = made._program
  monkeypatch.setattr(made, "_program", lambda *args: calls.append(1) or program(*args))
  buffer = np.empty_like(frames[0])

  def filled():
    for frame in frames:
      buffer[...] = frame
      yield buffer

  results = np.stack(list(made.stream(filled())))
  assert len(calls) == 3
  np.testing.assert_array_equal(results, [next(made.stream([frame])) for frame in frames])


def test_by_tiles_the_same_comes_out():
  """But within the network's reach of a tile's edge, where that tile hardly counts."""
  frames, tile, reach = clip(5, 70, 90), 48, 3
  whole, tiled = (
    np.stack(list(enlarge_frames(small.enlarger(), frames, t))).astype(int) for t in (None, tile)
  )
  difference = np.abs(whole - tiled).max((0, 3)).reshape(70, 2, 90, 2).max((1, 3))
  near = np.zeros((70, 90), bool)
  for axis, size in enumerate(near.shape):
    starts = np.array(tile_starts(size, tile, OVERLAP))
    assert len(starts) >= 3
    for edge in (*starts[1:], *(starts[:-1] + tile)):
      near.swapaxes(0, axis)[edge - reach : edge + reach] = True
  assert not near.all()
  assert difference[~near].max() <= 1
  assert 1 < difference[near].max() < 255 * (reach + 0.5) / OVERLAP


def test_a_size_is_compiled_once():
  made = RealESRGAN(small.NET, small.params())
  list(made.stream(clip(3)))
  list(made.stream(clip(2, 20, 28)))
  assert len(made._program._programs) == 1
  list(enlarge_frames(made, clip(2, 41, 67), OVERLAP + 4))  # six tiles of one size
  assert len(made._program._programs) == 2


def test_memory_does_not_grow_with_the_clip():
  def live():
    return len(jax.live_arrays())

  held = [live() for _ in small.enlarger().stream(clip(12))]
  assert len(set(held[:-1])) == 1


def test_a_stream_is_read_one_frame_ahead():
  taken = 0

  def frames():
    nonlocal taken
    for frame in clip(9):
      taken += 1
      yield frame

  for i, _ in enumerate(small.enlarger().stream(frames())):
    assert taken <= i + 2


def test_the_estimated_memory_is_about_what_xla_takes():
  net = realesrgan.SRVGGNetCompact(features=64, convs=3, scale=4)
  params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
  made = RealESRGAN(net, zeros)
  list(made.stream(np.zeros((1, 48, 64, 3), np.uint8)))
  (program,) = made._program._programs.values()
  analysis = program.memory_analysis()
  taken = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
  assert 0.5 < made.memory_needed(48, 64) / taken < 2
  assert made.memory_needed(96, 64) == 2 * made.memory_needed(48, 64)


def test_frames_that_do_not_fit_are_tiled(monkeypatch):
  made = small.enlarger()
  needed = made.memory_needed(1000, 2000)
  monkeypatch.setattr(enlarger, "free_memory", lambda device: 2 * needed)
  assert fitting_tile(made, 1000, 2000) is None
  monkeypatch.setattr(enlarger, "free_memory", lambda device: needed // 4)
  tile = fitting_tile(made, 1000, 2000)
  assert 0.15 < made.memory_needed(tile, tile) / needed < 0.25
  monkeypatch.setattr(enlarger, "free_memory", lambda device: made.memory_needed(30, 30))
  with pytest.raises(enlarger.UserError, match="not enough to restore even by tiles"):
    fitting_tile(made, 1000, 2000)


def test_a_file_is_opened_with_its_compute_type(tmp_path):
  save_state_dict(tmp_path / "small.pth", {"params": small.state_dict()})
  made = realesrgan.open_enlarger(tmp_path / "small.pth", "bfloat16")
  assert made.net.dtype == jnp.bfloat16
  assert (made.scale, made.context) == (2, 0)
  coarse = np.stack(list(made.stream(clip(1))))
  fine = np.stack(list(small.enlarger().stream(clip(1))))
  assert 0 < np.abs(coarse.astype(int) - fine).mean() < 2  # bfloat16 has 8 bits
