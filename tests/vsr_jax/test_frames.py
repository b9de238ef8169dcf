"""What restorers take as frames, and the line that tells of what they do not."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from vsr_jax.frames import Frame, as_frame, as_frames, as_frames_of_one_size, stream_frames

CLIP = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)


class Tensor:
  """What NumPy and a restorer see of a tensor of another library."""

  def __init__(self, array, error=None):
    self._array, self._error, self.shape = array, error, array.shape

  def __array__(self, dtype=None, copy=None):
    if self._error:
      raise self._error
    return self._array

  def __iter__(self):
    return (Tensor(array, self._error) for array in self._array)


@pytest.mark.parametrize(
  "frames",
  [
    CLIP,
    list(CLIP),
    iter(CLIP),
    CLIP / 255,
    (CLIP / 255).astype(np.float32),
    jnp.asarray(CLIP),
    jnp.asarray(CLIP / 255, jnp.float32),
    Tensor(CLIP),
    Tensor(np.float32(CLIP / 255)),
  ],
  ids=["array", "list", "iterator", "float64", "float32", "jax", "jax_float", "tensor", "float"],
)
def test_frames_are_taken_as_uint8(frames):
  taken = list(as_frames(frames))
  assert all(type(frame) is np.ndarray and frame.dtype == np.uint8 for frame in taken)
  np.testing.assert_array_equal(taken, CLIP)


def test_a_single_frame_is_a_clip_of_one():
  for frame in (CLIP[0], CLIP[0] / 255, Tensor(CLIP[0])):
    np.testing.assert_array_equal(list(as_frames(frame)), CLIP[:1])
  assert as_frame(CLIP[0]) is not CLIP
  assert np.shares_memory(as_frame(CLIP[0]), CLIP)


def test_no_frames_give_none():
  assert list(as_frames([])) == []
  assert list(as_frames(CLIP[:0])) == []
  assert list(as_frames_of_one_size([])) == []


def first_channels(frames):
  return np.moveaxis(frames, -1, -3)


@pytest.mark.parametrize(
  ("frames", "told"),
  [
    (first_channels(CLIP), r"a clip is an array \[4, 3, 5, 6\], channels first"),
    (first_channels(CLIP)[0], r"a frame is uint8 \[3, 5, 6\], channels first"),
    ([*first_channels(CLIP)], r"a frame is uint8 \[3, 5, 6\], channels first"),
    (Tensor(first_channels(CLIP) / 255), r"a clip is an array \[4, 3, 5, 6\], channels first"),
    (CLIP[None], r"a clip is an array \[1, 4, 5, 6, 3\];"),
    (np.repeat(CLIP, 2, -1)[..., :4], r"a clip is an array \[4, 5, 6, 4\], RGBA \(leave alpha"),
    (CLIP[..., :1], r"a clip is an array \[4, 5, 6, 1\], grey"),
    ([*CLIP[..., 0]], r"a frame is uint8 \[5, 6\], grey"),
    (CLIP[:, :0], r"a frame is uint8 \[0, 6, 3\];"),
    (CLIP.astype(np.float32), r"a frame of floats reaches from 0 to 2\d\d;"),
    (CLIP / 255 - 1, "a frame of floats reaches from -"),
    (np.full((5, 6, 3), np.nan), "a frame of floats reaches from nan to nan;"),
    (CLIP.astype(np.uint16), "a frame is of uint16;"),
    (CLIP > 9, "a frame is of bool;"),
    ("clip.mp4", "str holds no frames;"),
    (None, "NoneType holds no frames;"),
    ([None], "a frame is a NoneType;"),
    ([Frame(CLIP[0], 0, 0)], "a frame is a Frame: its .image is one;"),
    (Tensor(CLIP, TypeError("can't convert cuda:0 device type")), "cannot be read .*cuda:0"),
  ],
)
def test_what_is_no_frames_is_told_in_one_line(frames, told):
  with pytest.raises(ValueError, match=f"{told}.* give frames as uint8 RGB") as error:
    list(as_frames(frames))
  assert "\n" not in str(error.value)


def test_frames_of_another_size_are_told():
  with pytest.raises(ValueError, match="frame 1 is 5x5, the first 6x5; resize them"):
    list(as_frames_of_one_size([CLIP[0], CLIP[0, :, :5]]))


def reading_ahead(frames):
  """Brightens every image, three frames behind what it reads."""
  held = []
  for image in as_frames(frames):
    held.append(image // 2 + 128)
    if len(held) > 3:
      yield held.pop(0)
  yield from held


def test_a_frame_keeps_its_time_through_a_stream_of_images():
  frames = [
    Frame(image, Fraction(i, 25), i, Fraction(1, 25), f"{i}.png", is_context=i == 3)
    for i, image in enumerate(CLIP)
  ]
  restored = list(stream_frames(reading_ahead, iter(frames)))
  for frame, got in zip(frames, restored, strict=True):
    np.testing.assert_array_equal(got.image, frame.image // 2 + 128)
    assert got.restored_from is frame.image
    assert dataclasses.replace(got, image=frame.image, restored_from=None) == frame


@pytest.mark.parametrize("frames", [CLIP, list(CLIP), iter(CLIP), jnp.asarray(CLIP), CLIP / 255])
def test_images_come_out_as_images(frames):
  restored = list(stream_frames(reading_ahead, frames))
  np.testing.assert_array_equal(restored, CLIP // 2 + 128)


def test_a_single_frame_and_what_are_no_frames_come_to_the_stream_as_they_are():
  assert len(list(stream_frames(reading_ahead, CLIP[0]))) == 1
  for wrong in ("clip.mp4", {}, 3):
    with pytest.raises(ValueError, match="holds no frames"):
      list(stream_frames(reading_ahead, wrong))
