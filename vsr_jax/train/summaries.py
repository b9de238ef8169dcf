"""Writes a run's log: rows of a log file, TensorBoard scalars and image panels."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2
from tensorboard.summary.writer.record_writer import RecordWriter

from vsr_jax import json_files, paths
from vsr_jax.files import write_whole
from vsr_jax.images import encode_image
from vsr_jax.json_files import fields, integer, mapping, number, text
from vsr_jax.paths import GrowingFile, place

# Schemas: of a line of log.jsonl, and of `Recorder.running_sums` in a checkpoint.
ROW = fields({"step": integer()}, more=True)
RUNNING_SUMS = fields({"sums": mapping(text, number()), "count": integer(), "seconds": number(0)})

_LONGEST = 8 << 20


class EventFile:
  """A TensorBoard event file, written with TensorBoard's own protos; needs no TensorFlow.

  In a bucket, where it is written again and again, another one goes on from `_LONGEST` bytes.
  """

  def __init__(self, folder: pathlib.Path, first_step: int):
    """Opens a new file; TensorBoard drops older files' points from `first_step` on."""
    self._folder = folder
    self._open()
    start = SessionLog(status=SessionLog.START)
    self._write(Event(step=first_step, session_log=start))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds one point to each curve."""
    entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    self._write(Event(step=step, summary=Summary(value=entries)))

  def image(self, step: int, tag: str, rgb: np.ndarray) -> None:
    """Adds one picture, uint8 [h w 3]."""
    height, width, _ = rgb.shape
    picture = Summary.Image(
      height=height, width=width, colorspace=3, encoded_image_string=encode_image(rgb)
    )
    entry = Summary.Value(tag=tag, image=picture)
    self._write(Event(step=step, summary=Summary(value=[entry])))

  def hyperparameters(self, values: Mapping[str, bool | int | float | str]) -> None:
    """Tells TensorBoard's hparams plugin what the curves of this folder are of."""
    self._write(Event(step=0, summary=summary_v2.hparams_pb(dict(values))))

  def _open(self) -> None:
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
    self._file = GrowingFile(self._folder / name)
    self._writer = RecordWriter(self._file)
    self._write(Event(file_version="brain.Event:2"))

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._writer.write(event.SerializeToString())
    self._file.flush()
    if self._file.held > _LONGEST:
      self._file.close()
      self._open()

  def put(self) -> None:
    """Lets others see what was written."""
    self._file.put()

  def close(self) -> None:
    self._file.close()


class Recorder:
  """Rows of means over `log_every` steps, in WORKDIR/log.jsonl and in TensorBoard's file.

  What is summed since the last row is part of the checkpoint (`running_sums`), so that the rows of
  a resumed run are those of an uninterrupted one.
  """

  def __init__(
    self, workdir: str | pathlib.Path, step: int, *, log_every: int, running_sums: dict | None
  ):
    """Opens the files, in the first process only; the others write none.

    Args:
      workdir: an existing folder.
      step: finished steps; rows of later steps, from an interrupted session, are dropped.
      log_every: steps per row.
      running_sums: `Recorder.running_sums` from the checkpoint of this step; None at the start.
    """
    self.step = step
    self._log_every = log_every
    running_sums = running_sums or {"sums": {}, "count": 0, "seconds": 0.0}
    self._sums, self._count = dict(running_sums["sums"]), running_sums["count"]
    self._seconds, self._since = running_sums["seconds"], time.monotonic()
    self._files = None
    if jax.process_index() == 0:
      rows = place(workdir) / "log.jsonl"
      _drop_rows_after(rows, step)
      self._files = GrowingFile(rows), EventFile(place(workdir), step + 1)

  def close(self) -> None:
    """Closes the files."""
    for file in self._files or ():
      file.close()

  def put(self) -> None:
    """Puts the rows where a session that follows finds them, before a checkpoint counts on them."""
    for file in self._files or ():
      file.put()

  @property
  def seconds(self) -> float:
    """Time spent on this run, over all its sessions."""
    return self._seconds + time.monotonic() - self._since

  @property
  def running_sums(self) -> dict[str, Any]:
    """Sums since the last row, and the time, as JSON for the checkpoint, see `RUNNING_SUMS`."""
    return {"sums": self._sums, "count": self._count, "seconds": self.seconds}

  def add(
    self, step: int, logs: Mapping[str, float], rates: Callable[[], Mapping[str, float]]
  ) -> bool:
    """Adds one step's logs, and writes a row of their means when it is due.

    Args:
      step: number of the step, from 1.
      logs: the step's scalars.
      rates: gives the learning rates, which are written as they are.

    Returns:
      Whether a row was written.
    """
    self._sums = {name: self._sums.get(name, 0.0) + value for name, value in logs.items()}
    self._count += 1
    if step % self._log_every:
      return False
    means = {name: total / self._count for name, total in self._sums.items()}
    self.row(step, means | {f"learning_rate/{name}": rate for name, rate in rates().items()})
    self._sums, self._count = {}, 0
    return True

  def row(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one row; "seconds" is the time spent on the run so far."""
    if self._files is not None:
      log, events = self._files
      row = {"step": step, "seconds": round(self.seconds, 3), **values}
      log.write(json.dumps(row).encode() + b"\n")
      log.flush()
      events.scalars(step, values)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes points of curves for TensorBoard alone, as they differ from run to run."""
    if self._files is not None:
      self._files[1].scalars(step, values)

  def panel(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes named images [n h w 3] in [0, 1] as one picture: a row a sample, a column a name."""
    if self._files is not None:
      self._files[1].image(step, " | ".join(images), panel(list(images.values())))


def panel(columns: list[np.ndarray], rows: int = 4, gap: int = 2) -> np.ndarray:
  """Lays out images side by side.

  Args:
    columns: arrays [n h w 3] in [0, 1] (NaN is black); smaller ones are repeated up to the
      largest height.
    rows: at most so many samples are shown.
    gap: white pixels between columns and between rows.

  Returns:
    uint8 [height width 3].
  """
  height = max(x.shape[1] for x in columns)
  big = []
  for x in columns:
    times = height // x.shape[1]
    x = np.asarray(x[:rows], np.float32).repeat(times, axis=1).repeat(times, axis=2)
    rest = height - x.shape[1]
    big.append(np.pad(x, ((0, 0), (0, rest + gap), (0, gap), (0, 0)), constant_values=1.0))
  picture = np.concatenate(big, axis=2)
  picture = picture.reshape(-1, *picture.shape[2:])
  return np.round(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)


def _drop_rows_after(path: pathlib.Path, step: int) -> None:
  try:
    size = paths.size(path)
  except FileNotFoundError:
    return
  rows = json_files.load_lines(path, ROW, remedy="remove that line or the file")
  kept = b"".join(line for line, row in rows if row["step"] <= step)
  if len(kept) != size:
    write_whole(path, kept)
