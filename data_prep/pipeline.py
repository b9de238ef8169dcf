"""Batches from clips: deterministic Grain pipelines, checkpointable, for any host count.

  source of windows -> seed -> shuffle -> repeat -> decode, crop, flip -> [mix] -> host's share
  -> batch -> worker processes -> iterator

A host's share is taken from the finished stream of samples, lazily: the global batch
of a step does not depend on how many hosts or workers make it. Here are the parts that
all models share, and FMA-Net's samples; KEEP's are in `face_pipeline.py`.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from data_prep.clip import BLUR_BICUBIC, SHARP, SHARP_BICUBIC, Clip
from vsr_jax import json_files
from vsr_jax.errors import UserError
from vsr_jax.processes import start_worker


class Windows:
  """All windows of T consecutive frames as a random-access source: (clip's index, first frame).

  A clip of n frames has n - T + 1 windows, one shorter than T none.
  """

  def __init__(self, lengths: Sequence[int], num_frames: int):
    self._ends = np.cumsum([max(0, length - num_frames + 1) for length in lengths], dtype=np.int64)
    if not len(self._ends) or not self._ends[-1]:
      raise UserError(f"no clip has the {num_frames} frames of a training window")

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> tuple[int, int]:
    i = int(np.searchsorted(self._ends, index, side="right"))
    return i, int(index - (self._ends[i - 1] if i else 0))


class Padded:
  """A source made longer, to a multiple: its items with True, then its last one with False."""

  def __init__(self, source: Sequence[Any], multiple: int):
    self._source = source
    self._multiple = multiple

  def __len__(self) -> int:
    return -(-len(self._source) // self._multiple) * self._multiple

  def __getitem__(self, index: int) -> tuple[Any, bool]:
    real = index < len(self._source)
    return self._source[index if real else len(self._source) - 1], real


def fingerprint(*told: Any) -> int:
  """A number that tells streams of batches apart: of anything that JSON can hold."""
  return zlib.crc32(json.dumps(told).encode())


def identity(clips: Sequence[Clip], *, batch_size: int, seed: int) -> int:
  """The fingerprint of `make_dataset`: other clips, batch or seed, another number."""
  return fingerprint(*([clip.name, clip.length] for clip in clips), batch_size, seed)


def mix(samples: Sequence[grain.MapDataset], weights: Sequence[float]) -> grain.MapDataset:
  """Samples of several sources, in proportion to their weights, each source in its own order.

  Args:
    samples: endless ones, each with a seed of its own: one and the same would draw alike in all.
    weights: positive; their sum does not matter.

  Raises:
    UserError: there is not one positive weight a source.
    ValueError: a source ends, which would end them all.
  """
  if len(weights) != len(samples) or not samples or min(weights) <= 0:
    raise UserError(
      f"{len(samples)} sources have the weights {tuple(weights)}; give each a positive one"
    )
  if any(len(x) < sys.maxsize for x in samples):
    raise ValueError("mixed samples must have no end: epochs=None")
  return grain.MapDataset.mix(samples, [float(weight) for weight in weights])


def batch(
  samples: grain.MapDataset, batch_size: int, *, host: int = 0, hosts: int = 1
) -> grain.MapDataset:
  """A host's batches: of every `hosts`-th sample, `batch_size` at a time, no incomplete ones."""
  if hosts > 1:
    samples = samples.slice(slice(host, None, hosts))
  return samples.batch(batch_size, drop_remainder=True)


def make_dataset(
  clips: Sequence[Clip],
  *,
  num_frames: int,
  crop: int = 64,
  batch_size: int,
  seed: int,
  flow: bool = True,
  host: int = 0,
  hosts: int = 1,
  epochs: int | None = None,
) -> grain.MapDataset:
  """Random access to this host's training batches.

  Args:
    clips: from `open_clips`, all of one scale s, with the three streams.
    num_frames: T, odd.
    crop: side of the low-resolution crop.
    batch_size: the host's samples b a batch; an incomplete last one is left out.
    seed: gives the order, crops and flips.
    flow: whether flow labels are read.
    host: this host's index.
    hosts: their number; together they make batches of hosts * b samples.
    epochs: passes over the windows, each in another order; None for no end.

  Returns:
    Batches, dicts of NumPy arrays:
      blurry: uint8 [b t h w 3], RGB; h = w = crop.
      sharp: uint8 [b t s*h s*w 3].
      sharp_lr: uint8 [b t h w 3].
      flow: float32 [b t h w 2], from the centre frame to each; absent without `flow`.

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
  return batch(samples, batch_size, host=host, hosts=hosts)


def make_evaluation_set(
  clips: Sequence[Clip], *, num_frames: int, batch_size: int, host: int = 0, hosts: int = 1
) -> grain.MapDataset:
  """Every window of every clip once, in order, as whole frames; the last batches are filled up.

  Args:
    clips: from `open_clips`, all of one size.
    num_frames: T.
    batch_size: the host's samples b a batch.
    host: this host's index.
    hosts: their number; all have equally many batches.

  Returns:
    Batches, dicts of NumPy arrays:
      blurry: uint8 [b t h w 3], RGB.
      sharp: uint8 [b s*h s*w 3], the truth of the centre frame.
      mask: bool [b]; False for a sample that only fills up.
      clip: int32 [b], index into `clips`.
      frame: int32 [b], index of the centre frame.

  Raises:
    UserError: no clip is long enough, or clips of several sizes.
  """
  sizes = {clip.sizes[BLUR_BICUBIC] for clip in clips}
  if len(sizes) > 1:
    told = ", ".join(f"{w}x{h}" for w, h in sorted((w, h) for h, w in sizes))
    raise UserError(
      f"clips of several sizes cannot share a batch: {told}; evaluate each size alone"
    )
  windows = Windows([clip.length for clip in clips], num_frames)
  samples = grain.MapDataset.source(Padded(windows, batch_size * hosts))
  return batch(samples.map(_LoadWhole(clips, num_frames)), batch_size, host=host, hosts=hosts)


class Batches(Iterator[dict[str, np.ndarray]]):
  """Iterates over batches, made ahead of time; a context manager that ends the workers.

  Its state is the number of the next batch: it can be taken up with any number of workers.
  """

  def __init__(self, dataset: grain.MapDataset, workers: int = 0, identity: int = 0):
    """Starts at the first batch.

    Args:
      dataset: from `batch`.
      workers: processes that decode; 0 decodes in a thread of this process. The
        batches are the same for any number.
      identity: of the stream of batches, from `fingerprint`; a position in another is refused.
    """
    self._identity = identity
    self._dataset = dataset
    self._workers = workers
    self._batches: grain.DatasetIterator | None = None
    self._next = 0

  def __next__(self) -> dict[str, np.ndarray]:
    if self._batches is None:
      self._batches = _start(self._dataset.slice(slice(self._next, None)), self._workers)
    batch = next(self._batches)
    self._next += 1
    # Workers hand over shared memory, which is scarce and noisy when it outlives the iterator.
    return {name: np.array(x) for name, x in batch.items()}

  def get_state(self) -> dict[str, int]:
    """JSON position after the last batch given out."""
    return {"next_batch": self._next, "identity": self._identity}

  def set_state(self, state: dict[str, int]) -> None:
    """Continues at a position from `get_state`.

    Raises:
      ValueError: the position is in another stream of batches.
    """
    if state["identity"] != self._identity:
      raise ValueError("the clips, the batch or the seed changed")
    json_files.integer()(state["next_batch"], "next_batch")
    self.close()
    self._next = state["next_batch"]

  def close(self) -> None:
    """Ends the workers; the next batch starts them again."""
    if self._batches is not None:
      self._batches.close()
      self._batches = None

  def __enter__(self) -> Batches:
    return self

  def __exit__(self, *exception) -> None:
    self.close()


def _start(dataset: grain.MapDataset, workers: int) -> grain.DatasetIterator:
  batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain reads its own; only absl's apps have them parsed
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
  return iter(batches)


def _start_worker(index: int, count: int) -> None:
  del index, count
  start_worker()
  cv2.setNumThreads(1)


class _LoadWhole:
  """Decodes a window's blurry frames and the truth of its centre."""

  def __init__(self, clips: Sequence[Clip], num_frames: int):
    self._clips = tuple(clips)
    self._num_frames = num_frames

  def __call__(self, window: tuple[tuple[int, int], bool]) -> dict[str, np.ndarray]:
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
    if self._num_frames == 1:  # the frame itself
      return np.zeros((1, *clip.sizes[BLUR_BICUBIC], 2), np.float32)
    return clip.flow.read(first + self._num_frames // 2, self._num_frames)


def flip(sample: dict[str, np.ndarray], mirror: bool, upend: bool) -> dict[str, np.ndarray]:
  """Mirrors arrays [... h w c] left-right and upends them; flow's signs go along."""
  rows, columns = (slice(None, None, -1 if turn else 1) for turn in (upend, mirror))
  sample = {name: x[..., rows, columns, :] for name, x in sample.items()}
  if "flow" in sample:
    sample["flow"] = sample["flow"] * np.float32([-1 if mirror else 1, -1 if upend else 1])
  return {name: np.ascontiguousarray(x) for name, x in sample.items()}
