"""Streams: equal to the whole clip within the window, any length, chunks as released."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keep_jax.conversion import convert_released
from keep_jax.model import KEEP, clip_flows, restore_clip
from keep_jax.streaming import Restorer
from tests.keep_jax import golden, tiny
from vsr_jax.frames import Frame


@functools.cache
def load_mini():
  """The small KEEP of the fixtures, GMFlow and all."""
  arch, params = convert_released(golden.state_dict("keep_stage3"))
  return KEEP(arch), jax.tree.map(jnp.asarray, params)


@functools.cache
def restorer(mode="stream", window=4, look_ahead=1, load=tiny.load):
  return Restorer(*load(), mode, window, look_ahead)


def moving_pattern(size):
  """Nine frames of a pattern that moves three pixels a frame, uint8 [9 size size 3]."""
  wide = golden.channels_last(golden.inputs((3, size, size + 32), 40, 0, 255))
  frames = np.stack([np.rint(wide[:, 3 * i : 3 * i + size]) for i in range(9)])
  return frames.astype(np.uint8)


@pytest.fixture(scope="module")
def clip():
  return moving_pattern(32)


def restored(restorer, frames):
  return np.stack(list(restorer.stream(frames)))


def assert_close(got, want):
  """Equal but for rounding; a code whose margin is small may flip in the untrained model."""
  assert got.shape == want.shape
  assert (got != want).mean() < 0.01


@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_clip_within_the_window_equals_the_whole_clip(clip, length, monkeypatch):
  model, params = tiny.load()
  frames = jnp.asarray(clip[None, :length], jnp.float32) / 127.5 - 1
  flows = jnp.zeros((1, length - 1, 32, 32, 2))
  whole, _, gains = jax.jit(functools.partial(restore_clip, model))(params, frames, flows)
  want = tiny.as_uint8(jnp.clip(whole.image, -1, 1))
  seen = []
  monkeypatch.setattr(restorer(), "watch", lambda *given: seen.append(given))
  # Rounding may move a pixel by one step.
  assert np.abs(restored(restorer(), clip[:length]).astype(int) - want).max() <= 1
  names, gains_seen, flows_seen = zip(*seen, strict=True)
  assert names == (0,) * length
  assert gains.std() > 0
  np.testing.assert_allclose(np.concatenate(gains_seen), gains[0], atol=1e-5)
  assert {flow.shape for flow in flows_seen} == {(1, 32, 32, 2)}


def test_frames_keep_their_times(clip):
  frames = [Frame(image, Fraction(i, 25), i) for i, image in enumerate(clip[:6])]
  got = list(restorer().stream(frames))
  np.testing.assert_array_equal([frame.image for frame in got], restored(restorer(), clip[:6]))
  assert [frame.time for frame in got] == [frame.time for frame in frames]


@pytest.mark.slow
def test_a_clip_within_the_window_equals_the_whole_clip_with_all_parts():
  model, params = load_mini()
  clip = moving_pattern(128)
  frames = jnp.asarray(clip[None, :4], jnp.float32) / 127.5 - 1

  @jax.jit
  def whole(params, frames):
    return restore_clip(model, params, frames, clip_flows(model, params, frames))[0].image

  image = np.clip(np.asarray(whole(params, frames))[0], -1, 1)
  want = np.rint(127.5 * (image + 1)).astype(np.uint8)
  assert_close(restored(restorer(load=load_mini), clip[:4]), want)


def test_the_state_is_carried_beyond_the_window(clip):
  long = restored(restorer(), clip)
  assert len(long) == 9
  # Frames whose gains see nothing later are the same whatever follows: the first window's, then
  # two at a time.
  for length in (4, 6, 8):
    np.testing.assert_array_equal(restored(restorer(), clip[:length]), long[:length])
  alone = restored(restorer(), clip[5:])
  assert (alone[-1] != long[-1]).mean() > 0.01


def tiny_without_the_first_frame():
  return tiny.load(tiny.change(attend_first_frame=False))


def watch_windows(restorer, monkeypatch):
  """The list to which the windows of latents are added whose gains a restorer computes."""
  windows, gains = [], restorer._gains
  monkeypatch.setattr(
    restorer, "_gains", lambda params, latents: windows.append(latents) or gains(params, latents)
  )
  return windows


@pytest.mark.parametrize("attend_first_frame", [True, False])
def test_a_window_holds_the_first_frame_where_the_model_sees_it(
  clip, attend_first_frame, monkeypatch
):
  stream = restorer(load=tiny.load if attend_first_frame else tiny_without_the_first_frame)
  windows = watch_windows(stream, monkeypatch)
  assert len(restored(stream, clip)) == 9
  # Nine frames: the first four, then two at a time, then the last one.
  latents = [*windows[0], *(latent for window in windows[1:3] for latent in window[-2:])]
  latents.append(windows[3][-1])
  assert len(latents) == 9
  kept = [0, 3, 4, 5], [0, 5, 6, 7], [0, 6, 7, 8]
  for window, indices in zip(windows, ([0, 1, 2, 3], *kept), strict=True):
    if not attend_first_frame:
      indices = range(indices[-1] - 3, indices[-1] + 1)
    assert all(got is latents[i] for got, i in zip(window, indices, strict=True))


def test_a_stream_takes_no_more_than_it_needs(clip):
  taken = itertools.count()
  results = restorer().stream(frame for frame in clip if next(taken) >= 0)
  next(results)
  assert next(taken) <= 5  # the window, and the number drawn here


def test_as_released_begins_anew_with_every_chunk(clip):
  chunked = restorer("as_released")
  got = restored(chunked, clip)
  parts = [restored(chunked, clip[i : i + 4]) for i in (0, 4, 8)]
  np.testing.assert_array_equal(got, np.concatenate(parts))


def test_as_released_doubles_a_lone_last_frame(clip, monkeypatch):
  """Which its gain sees, though the first frame of a chunk has no prediction to be blended with."""
  chunked = restorer("as_released")
  windows = watch_windows(chunked, monkeypatch)
  assert len(restored(chunked, clip)) == 9
  assert [len(window) for window in windows] == [4, 4, 2]
  assert windows[2][0] is windows[2][1]


def test_other_sizes_are_resized(clip):
  small = clip[:2, ::4, ::4]
  assert restored(restorer(), small).shape == (2, 32, 32, 3)


def test_no_frames_give_none():
  assert list(restorer().stream([])) == []


@pytest.mark.parametrize(
  "load", [tiny.load, pytest.param(load_mini, marks=pytest.mark.slow)], ids=["tiny", "mini"]
)
def test_tracks_in_one_batch_are_as_each_alone(load):
  """Three faces that come and go: batches of two and one, gains due at other frames."""
  spans = {"a": (0, 7), "b": (1, 5), "c": (3, 7)}
  clip = moving_pattern(load()[0].arch.image_size)
  clips = {"a": clip, "b": clip[::-1], "c": clip[:, :, ::-1]}

  def faces(t):
    return {name: clips[name][t] for name, (start, stop) in spans.items() if start <= t < stop}

  together = list(restorer(load=load).stream_tracks(faces(t) for t in range(7)))
  assert [set(frame) for frame in together] == [set(faces(t)) for t in range(7)]
  for name, (start, stop) in spans.items():
    got = np.stack([together[t][name] for t in range(start, stop)])
    assert_close(got, restored(restorer(load=load), clips[name][start:stop]))


def test_a_track_that_comes_back_is_a_new_one(clip):
  present = (0, 1, 2, 5, 6)
  frames = [{0: clip[t]} if t in present else {} for t in range(8)]
  got = list(restorer().stream_tracks(frames))
  assert [len(faces) for faces in got] == [t in present for t in range(8)]
  first, second = (np.stack([got[t][0] for t in part]) for part in (present[:3], present[3:]))
  assert_close(first, restored(restorer(), clip[:3]))
  assert_close(second, restored(restorer(), clip[5:7]))


@pytest.mark.parametrize(
  "wrong", [{"mode": "both"}, {"look_ahead": 3}, {"look_ahead": -1}, {"window": 1}]
)
def test_impossible_options_are_refused(wrong):
  options = {"mode": "stream", "window": 4, "look_ahead": 1} | wrong
  with pytest.raises(ValueError, match=next(iter(wrong))):
    Restorer(*tiny.load(), **options)


def test_what_is_no_frames_is_refused_before_anything_is_compiled(clip):
  stream = Restorer(*tiny.load(), window=4, look_ahead=1)
  wrong = clip.swapaxes(1, 3)[:, :, :5]
  for results in (stream.stream(wrong), stream.stream_tracks([{0: wrong[0]}])):
    with pytest.raises(ValueError, match="channels first"):
      next(results)
  with pytest.raises(ValueError, match="frame 1 is 32x31, the first 32x32; resize them"):
    next(stream.stream_tracks([{"a": clip[0], "b": clip[0, 1:]}]))
  assert not stream._observe._programs


def test_floats_and_a_single_frame_are_restored(clip):
  want = restored(restorer(), clip[:1])
  np.testing.assert_array_equal(restored(restorer(), clip[:1] / 255), want)
  np.testing.assert_array_equal(restored(restorer(), clip[0]), want)


def test_compiling_is_told(clip, caplog):
  with caplog.at_level(logging.DEBUG, "vsr_jax.compiling"):
    assert len(restored(Restorer(*tiny.load(), window=4, look_ahead=1), clip[:1])) == 1
  told = [re.sub(r" in \d+ s", "", text) for text in caplog.messages if " in " in text]
  parts = ("for 1 face of 32x32", "the flow of 1 face", "the gains of 1 frames")
  assert told == [f"compiled {part}" for part in (*parts, "the restoration of 1 face")]
