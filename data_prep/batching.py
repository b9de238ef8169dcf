"""What all pipelines share: windows, hosts' shares, batches, and their reading ahead of time.

  source of windows -> seed -> shuffle -> repeat -> decode and augment -> [mix] -> host's share
  -> batch -> worker processes -> iterator

Grain pipelines, deterministic and checkpointable for any number of hosts. A host's share is taken
from the finished stream of samples, lazily: the global batch of a step does not depend on how many
hosts or workers make it. FMA-Net's samples are made in `blur_pipeline.py`, KEEP's in
`face_pipeline.py`.
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

  def __init__(self, source: grain.RandomAccessDataSource, multiple: int):
    self._source = source
    self._multiple = multiple

  def __len__(self) -> int:
    return -(-len(self._source) // self._multiple) * self._multiple

  def __getitem__(self, index: int) -> tuple[Any, bool]:
    real = index < len(self._source)
    return self._source[index if real else len(self._source) - 1], real


def fingerprint(*told: Any) -> int:
  """A number that tells streams of batches apart, from anything that JSON can hold."""
  return zlib.crc32(json.dumps(told).encode())


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
  """A host's batches: every `hosts`-th sample, `batch_size` at a time, no incomplete batch."""
  if hosts > 1:
    samples = samples.slice(slice(host, None, hosts))
  return samples.batch(batch_size, drop_remainder=True)


class BatchReader(Iterator[dict[str, np.ndarray]]):
  """Iterates over batches, made ahead of time; a context manager that ends the workers.

  Its state is the number of the next batch: it can be taken up with any number of workers.
  """

  def __init__(self, dataset: grain.MapDataset, workers: int = 0, fingerprint: int = 0):
    """Starts at the first batch.

    Args:
      dataset: from `batch`.
      workers: processes that decode; 0 decodes in a thread of this process. The
        batches are the same for any number.
      fingerprint: tells this stream of batches from others, whose positions are refused.
    """
    self._fingerprint = fingerprint
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
    return {"next_batch": self._next, "identity": self._fingerprint}  # the key of all checkpoints

  def set_state(self, state: dict[str, int]) -> None:
    """Continues at a position from `get_state`.

    Raises:
      ValueError: the position is in another stream of batches.
    """
    if state["identity"] != self._fingerprint:
      raise ValueError("the clips, the batch or the seed changed")
    json_files.integer()(state["next_batch"], "next_batch")
    self.close()
    self._next = state["next_batch"]

  def close(self) -> None:
    """Ends the workers; the next batch starts them again."""
    if self._batches is not None:
      self._batches.close()
      self._batches = None

  def __enter__(self) -> BatchReader:
    return self

  def __exit__(self, *exception: object) -> None:
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
