"""Who visits the page: each session's clips and jobs, which are deleted when it ends."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Mapping
from typing import Any

from vsr_jax import files
from vsr_jax.errors import UserError
from vsr_jax.page.jobs import Job, Queue, make_job
from vsr_jax.page.uploads import Limits, Upload, frame_options, restore_options, take_upload

Key = tuple[str, str]  # the session and the system


class Visits:
  """The clip and the job that each session has for each system.

  Attributes:
    limits: what a visitor may ask for.
    weights: by system, the checkpoints that are offered, by name; None is the one that ships.
  """

  def __init__(
    self,
    queue: Queue,
    root: pathlib.Path,
    limits: Limits,
    weights: Mapping[str, Mapping[str, str | None]],
  ):
    """Takes the queue and the folder that it works in; and the attributes."""
    self._queue, self._root = queue, root
    self.limits, self.weights = limits, weights
    self._lock = threading.Lock()
    self._uploads: dict[Key, Upload] = {}
    self._jobs: dict[Key, Job] = {}

  def take(self, key: Key, path: pathlib.Path) -> Upload:
    """Takes a clip in place of the one before; see `uploads.take_upload`."""
    self.forget(key)
    upload = take_upload(path, self._root, self.limits)
    with self._lock:
      gone = [other for other, old in self._uploads.items() if not old.folder.exists()]
      for other in gone:  # deleted after their time
        del self._uploads[other]
      self._uploads[key] = upload
    return upload

  def forget(self, key: Key) -> None:
    """Deletes a session's clip."""
    with self._lock:
      upload = self._uploads.pop(key, None)
    if upload:
      files.remove(str(upload.folder))

  def start(self, key: Key, chosen: Mapping[str, Any], start: Any, stop: Any) -> Job:
    """Puts the restoring of a session's clip into the queue; the job before it is deleted.

    Args:
      key: the session and the system.
      chosen: see `uploads.restore_options`.
      start: where to begin, in seconds.
      stop: where to end.

    Raises:
      UserError: there is no clip, a choice is not offered, or the queue is full.
    """
    with self._lock:
      upload, before = self._uploads.get(key), self._jobs.get(key)
    if upload is None:
      raise UserError("there is no clip yet; drop one, or take the example")
    if before and not before.has_ended:
      raise UserError("this page restores a clip already; wait for it, or cancel it")
    options = restore_options(key[1], chosen, self.weights[key[1]])
    frames = frame_options(upload, start, stop, self.limits)
    job = make_job(key[1], upload, options, frames, self._root)
    self._queue.add(job)
    with self._lock:
      self._jobs[key] = job
    if before:
      files.remove(str(before.folder))
    return job

  def job(self, key: Key) -> Job | None:
    """A session's latest job."""
    with self._lock:
      return self._jobs.get(key)

  def ahead(self, job: Job) -> int:
    """How many jobs come before one that waits."""
    return self._queue.ahead(job)

  def cancel(self, key: Key) -> None:
    """Stops a session's job."""
    if job := self.job(key):
      self._queue.stop(job, "cancelled")

  def leave(self, session: str) -> None:
    """Stops what a session runs and deletes all that it has."""
    with self._lock:
      keys = {key for key in (*self._uploads, *self._jobs) if key[0] == session}
    for key in keys:
      self.forget(key)
      self.cancel(key)
      with self._lock:
        job = self._jobs.pop(key, None)
      if job and job.state == "done":  # of others the queue keeps nothing
        files.remove(str(job.folder))
