"""FMA-Net's samples: windows of blurry and sharp frames with flow, cropped and flipped alike."""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from vsr_jax.data_prep import batching
from vsr_jax.data_prep.batching import Padded, Windows, batch
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, SHARP_BICUBIC, Clip
from vsr_jax.errors import UserError


def fingerprint(clips: Sequence[Clip], *, batch_size: int, seed: int) -> int:
  """The fingerprint of a `make_dataset` stream (see `batching`): by its clips, batch and seed."""
  return batching.fingerprint(*([clip.name, clip.length] for clip in clips), batch_size, seed)


def make_dataset(
  clips: Sequence[Clip],
  *,
  num_frames: int,
  crop: int = 64,
  batch_size: int,
  seed: int,
  flow: bool = True,
  rows: Sequence[int] | None = None,
  epochs: int | None = None,
) -> grain.MapDataset:
  """Makes training batches, or this host's rows of them, a random-access data set.

  Args:
    clips: from `open_clips`, all of one scale s, with the streams blur_bicubic, sharp and
      sharp_bicubic.
    num_frames: T, odd.
    crop: side of the low-resolution crop, in pixels.
    batch_size: samples of a batch, of all hosts together; an incomplete last one is left out.
    seed: determines the order, crops and flips.
    flow: whether flow labels are read.
    rows: which b samples of a batch this host makes, see `batching.batch`; None: all.
    epochs: passes over the windows, each in another order; None for an endless data set.

  Returns:
    Batches, dicts of NumPy arrays:
      blurry: uint8 [b t h w 3], RGB; h = w = crop.
      sharp: uint8 [b t s*h s*w 3].
      sharp_lr: uint8 [b t h w 3].
      flow: float32 [b t h w 2], (dx, dy) in low-resolution pixels, from the centre frame to each
        frame; absent without `flow`.

  Raises:
    UserError: no clip is long enough, or a clip's frames are smaller than the crop.
  """
  for clip in clips:
    height, width = clip.sizes[BLUR_BICUBIC]
    if min(height, width) < crop:
      raise UserError(
        f"clip {clip.name} has low-resolution frames of {width}x{height}, smaller than "
        f"the crop of {crop}; use a smaller crop or larger clips"
      )
  windows = Windows([clip.length for clip in clips], num_frames)
  samples = grain.MapDataset.source(windows).seed(seed).shuffle()
  samples = samples.repeat(epochs).random_map(_LoadWindow(clips, num_frames, crop, flow))
  return batch(samples, batch_size, rows=rows)


def make_evaluation_set(
  clips: Sequence[Clip],
  *,
  num_frames: int,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.MapDataset:
  """Makes evaluation batches: every window of every clip once, in order, as whole frames.

  The last batches are filled up with the last window.

  Args:
    clips: from `open_clips`, all of one size.
    num_frames: T, odd.
    batch_size: samples of a batch, of all hosts together.
    rows: which b of them this host makes, see `batching.batch`; None: all.

  Returns:
    Batches, dicts of NumPy arrays:
      blurry: uint8 [b t h w 3], RGB.
      sharp: uint8 [b s*h s*w 3], the truth of the centre frame.
      mask: bool [b]; False for a sample that only fills up.
      clip: int32 [b], index into `clips`.
      frame: int32 [b], index of the centre frame.

  Raises:
    UserError: no clip is long enough, or clips differ in size.
  """
  sizes = {clip.sizes[BLUR_BICUBIC] for clip in clips}
  if len(sizes) > 1:
    told = ", ".join(f"{w}x{h}" for w, h in sorted((w, h) for h, w in sizes))
    raise UserError(
      f"clips of several sizes cannot share a batch: {told}; evaluate each size alone"
    )
  windows = Windows([clip.length for clip in clips], num_frames)
  samples = grain.MapDataset.source(Padded(windows, batch_size))
  return batch(samples.map(_LoadWhole(clips, num_frames)), batch_size, rows=rows)


class _LoadWhole:
  """Decodes a window's blurry frames and the truth of its centre."""

  def __init__(self, clips: Sequence[Clip], num_frames: int):
    self._clips = tuple(clips)
    self._num_frames = num_frames

  def __call__(self, window: tuple[tuple[int, int], bool]) -> dict[str, np.ndarray | np.generic]:
    (i, first), real = window
    clip, centre = self._clips[i], first + self._num_frames // 2
    return {
      "blurry": clip.decode_all(BLUR_BICUBIC, range(first, first + self._num_frames)),
      "sharp": clip.decode(SHARP, centre),
      "mask": np.bool_(real),
      "clip": np.int32(i),
      "frame": np.int32(centre),
    }


class _LoadWindow:
  """Decodes a window, cuts the same crop from all its arrays and flips them alike."""

  def __init__(self, clips: Sequence[Clip], num_frames: int, crop: int, flow: bool):
    self._clips = tuple(clips)
    self._num_frames = num_frames
    self._crop = crop
    self._flow = flow

  def __call__(self, window: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    clip, first = self._clips[window[0]], window[1]
    height, width = clip.sizes[BLUR_BICUBIC]
    top = int(rng.integers(height - self._crop + 1))
    left = int(rng.integers(width - self._crop + 1))
    mirror, upend = rng.random(2) < 0.5

    def cut(x: np.ndarray, scale: int = 1) -> np.ndarray:
      side = scale * self._crop
      return x[..., scale * top :, scale * left :, :][..., :side, :side, :]

    def read(stream: str, scale: int = 1) -> np.ndarray:
      frames = range(first, first + self._num_frames)
      return np.stack([cut(clip.decode(stream, i), scale) for i in frames])

    sample = {
      "blurry": read(BLUR_BICUBIC),
      "sharp": read(SHARP, clip.scale),
      "sharp_lr": read(SHARP_BICUBIC),
    }
    if self._flow:
      sample["flow"] = cut(self._read_flow(clip, first))
    return flip(sample, bool(mirror), bool(upend))

  def _read_flow(self, clip: Clip, first: int) -> np.ndarray:
    if self._num_frames == 1:  # the flow from the frame to itself
      return np.zeros((1, *clip.sizes[BLUR_BICUBIC], 2), np.float32)
    assert clip.flow is not None  # `open_clips` with need_flow
    return clip.flow.read(first + self._num_frames // 2, self._num_frames)


def flip(sample: dict[str, np.ndarray], mirror: bool, upend: bool) -> dict[str, np.ndarray]:
  """Flips arrays [... h w c] left-right (`mirror`), upside down (`upend`), with flow's signs."""
  rows, columns = (slice(None, None, -1 if turn else 1) for turn in (upend, mirror))
  sample = {name: x[..., rows, columns, :] for name, x in sample.items()}
  if "flow" in sample:
    sample["flow"] = sample["flow"] * np.array(
      [-1 if mirror else 1, -1 if upend else 1], np.float32
    )
  return {name: np.ascontiguousarray(x) for name, x in sample.items()}
