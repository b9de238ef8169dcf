"""Training batches from clips: a deterministic Grain pipeline, checkpointable, for any host count.

  source of windows -> seed -> shuffle -> repeat -> decode, crop, flip -> host's share -> batch
  -> worker processes -> iterator

A host's share is taken from the finished stream of samples, lazily: the global batch
of a step does not depend on how many hosts or workers make it.
"""

from __future__ import annotations

import bisect
import itertools
import json
import signal
import zlib
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np
from absl import flags

from data_prep import clips as clips_lib
from data_prep.clips import Clip
from vsr_jax.errors import UserError


class Windows:
  """All windows of T consecutive frames as a random-access source: (clip, first frame)."""

  def __init__(self, clips: Sequence[Clip], num_frames: int):
    self._clips = tuple(clips)
    counts = [max(0, len(clip.blurry) - num_frames + 1) for clip in clips]
    self._ends = list(itertools.accumulate(counts))
    if not clips or not self._ends[-1]:
      raise UserError(f"no clip has the {num_frames} frames of a training window")

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> tuple[Clip, int]:
    i = bisect.bisect_right(self._ends, index)
    return self._clips[i], index - (self._ends[i - 1] if i else 0)


def identity(clips: Sequence[Clip], *, batch_size: int, seed: int) -> int:
  """A number that tells streams of batches apart: other clips, batch or seed, another number."""
  told = [[clip.name, len(clip.blurry)] for clip in clips] + [batch_size, seed]
  return zlib.crc32(json.dumps(told).encode())


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
    clips: from `find_clips`, all of one scale s, with every stream.
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
    if min(clip.height, clip.width) < crop:
      raise UserError(
        f"clip {clip.name} has low-resolution frames of {clip.width}x{clip.height}, smaller than "
        f"the crop of {crop}; use a smaller crop or larger clips"
      )
  load = _LoadWindow(num_frames, crop, flow)
  dataset = grain.MapDataset.source(Windows(clips, num_frames)).seed(seed).shuffle()
  dataset = dataset.repeat(epochs).random_map(load)
  if hosts > 1:
    dataset = dataset.slice(slice(host, None, hosts))
  return dataset.batch(batch_size, drop_remainder=True)


class Batches(Iterator[dict[str, np.ndarray]]):
  """Iterates over batches, made ahead of time; a context manager that ends the workers.

  Its state is the number of the next batch: it can be taken up with any number of workers.
  """

  def __init__(self, dataset: grain.MapDataset, workers: int = 0, identity: int = 0):
    """Starts at the first batch.

    Args:
      dataset: from `make_dataset`.
      workers: processes that decode; 0 decodes in a thread of this process. The
        batches are the same for any number.
      identity: of the stream of batches, from `identity`; a position in another is refused.
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
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the workers
  cv2.setNumThreads(1)


class _LoadWindow:
  """Decodes a window, cuts the same crop from all its arrays and flips them alike."""

  def __init__(self, num_frames: int, crop: int, flow: bool):
    self._num_frames = num_frames
    self._crop = crop
    self._flow = flow

  def __call__(self, window: tuple[Clip, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    clip, first = window
    top = int(rng.integers(clip.height - self._crop + 1))
    left = int(rng.integers(clip.width - self._crop + 1))
    mirror, upend = rng.random(2) < 0.5

    def cut(x: np.ndarray, scale: int = 1) -> np.ndarray:
      side = scale * self._crop
      return x[..., scale * top :, scale * left :, :][..., :side, :side, :]

    frames = slice(first, first + self._num_frames)
    sample = {
      "blurry": np.stack([cut(clips_lib.read_frame(path)) for path in clip.blurry[frames]]),
      "sharp": np.stack(
        [cut(clips_lib.read_frame(path), clip.scale) for path in clip.sharp[frames]]
      ),
      "sharp_lr": np.stack([cut(clips_lib.read_frame(path)) for path in clip.sharp_lr[frames]]),
    }
    if self._flow:
      centre = first + self._num_frames // 2
      sample["flow"] = cut(clip.flow.read(centre, self._num_frames))
    return flip(sample, bool(mirror), bool(upend))


def flip(sample: dict[str, np.ndarray], mirror: bool, upend: bool) -> dict[str, np.ndarray]:
  """Mirrors arrays [... h w c] left-right and upends them; flow's signs go along."""
  rows, columns = (slice(None, None, -1 if turn else 1) for turn in (upend, mirror))
  sample = {name: x[..., rows, columns, :] for name, x in sample.items()}
  if "flow" in sample:
    sample["flow"] = sample["flow"] * np.float32([-1 if mirror else 1, -1 if upend else 1])
  return {name: np.ascontiguousarray(x) for name, x in sample.items()}
