"""What all pipelines share: windows, hosts' shares of samples, batches, and reading them ahead.

  source of windows -> seed -> shuffle -> repeat -> decode and augment -> [mix] -> host's rows
  -> batch -> worker processes -> iterator

The pipelines are Grain's, deterministic and checkpointable. There is one global order of samples,
and batch k holds samples k b to (k + 1) b - 1. A host makes those rows of a batch that its devices
hold, lazily: the global batch of a step does not depend on how many hosts or workers make it, and
the number of the next batch is the position of all hosts. FMA-Net's samples are made in
`blur_pipeline.py`, KEEP's in `face_pipeline.py`.
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

  A clip of n frames has n - T + 1 windows, or none if n < T; T is `num_frames`, `lengths` has n by
  clip. `UserError` if there is no window at all.
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
  """A source padded to a multiple: (item, True) for its items, then (last item, False)."""

  def __init__(self, source: grain.RandomAccessDataSource, multiple: int):
    self._source = source
    self._multiple = multiple

  def __len__(self) -> int:
    return -(-len(self._source) // self._multiple) * self._multiple

  def __getitem__(self, index: int) -> tuple[Any, bool]:
    real = index < len(self._source)
    return self._source[index if real else len(self._source) - 1], real


def fingerprint(*told: Any) -> int:
  """A checksum of JSON values that describe a stream of batches, to tell streams apart."""
  return zlib.crc32(json.dumps(told).encode())


def mix(samples: Sequence[grain.MapDataset], weights: Sequence[float]) -> grain.MapDataset:
  """Mixes samples of several sources in proportion to weights, each source in its own order.

  Args:
    samples: endless data sets, each with another seed: with the same one all would draw alike.
    weights: one positive number per data set; their sum does not matter.

  Raises:
    UserError: there is not one positive weight per source.
    ValueError: a source is not endless, so that the mixture would end with it.
  """
  if len(weights) != len(samples) or not samples or min(weights) <= 0:
    raise UserError(
      f"{len(samples)} sources have the weights {tuple(weights)}; give each a positive one"
    )
  if any(len(x) < sys.maxsize for x in samples):
    raise ValueError("mixed samples must have no end: epochs=None")
  return grain.MapDataset.mix(samples, [float(weight) for weight in weights])


def batch(
  samples: grain.MapDataset, batch_size: int, *, rows: Sequence[int] | None = None
) -> grain.MapDataset:
  """Makes batches of consecutive samples, or a host's part of them; no incomplete batch.

  Args:
    samples: dicts of arrays.
    batch_size: samples of a batch, of all hosts together.
    rows: which of them this host makes, from `vsr_jax.sharding.host_rows`; None: all.
  """
  if rows is None or len(rows) == batch_size:
    return samples.batch(batch_size, drop_remainder=True)
  end = len(samples) // batch_size * batch_size
  parts = [samples.slice(slice(row, end, batch_size)) for row in rows]
  return grain.experimental.ZipMapDataset(parts).map(_stack)


def _stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


_POSITION = json_files.fields(
  {"next_batch": json_files.integer(), "identity": json_files.integer()}, more=True
)


class BatchReader(Iterator[dict[str, np.ndarray]]):
  """Iterates over batches, which are made ahead; a context manager that ends the workers.

  Its state is the number of the next batch, the same on all hosts, and can be restored with any
  number of hosts and workers.
  """

  def __init__(self, dataset: grain.MapDataset, workers: int = 0, fingerprint: int = 0):
    """Starts at the first batch.

    Args:
      dataset: from `batch`.
      workers: number of processes that decode; 0 decodes in a thread of this process. The
        batches are the same for any number.
      fingerprint: identifies this stream of batches; positions in another one are refused.
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
    # Copied, as workers hand over shared memory: it is scarce, and leads to warnings if it outlives
    # the iterator.
    return {name: np.array(x) for name, x in batch.items()}

  def get_state(self) -> dict[str, int]:
    """The position after the last batch that was returned, as JSON."""
    return {"next_batch": self._next, "identity": self._fingerprint}  # as in all checkpoints

  def set_state(self, state: dict[str, int]) -> None:
    """Continues at a position from `get_state`.

    Raises:
      BadJson: it is damaged.
      ValueError: the position belongs to another stream of batches.
    """
    _POSITION(state, "position")
    if state["identity"] != self._fingerprint:
      raise ValueError("the clips, the batch or the seed changed")
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
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which only absl's apps parse
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
  return iter(batches)


def _start_worker(index: int, count: int) -> None:
  del index, count
  start_worker()
  cv2.setNumThreads(1)
