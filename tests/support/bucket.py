"""A bucket in memory: what gs:// paths read and write, without a network and without gcsfs."""

from __future__ import annotations

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from vsr_jax import paths


class Bucket(MemoryFileSystem):
  """gs://bucket; any other is missing. `failure` is raised by whatever writes, if it is set."""

  protocol = ("gs", "gcs")

  def __init__(self, **options):
    super().__init__(**options)
    self.store, self.pseudo_dirs, self.written, self.failure = {}, [""], [], None

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol(path.removeprefix("gs://"))

  def _open(self, path, mode="rb", **options):
    if mode == "wb":
      self.written.append(path)
      if self.failure or not path.startswith("/bucket/"):
        raise self.failure or FileNotFoundError(path)
    return super()._open(path, mode, **options)


def make_bucket(monkeypatch):
  """Puts an empty bucket behind gs:// for a test, and gives it."""
  bucket = Bucket(skip_instance_cache=True)
  monkeypatch.setattr(paths, "PACKAGE", "fsspec")
  monkeypatch.setattr(paths, "_settings", dict)
  monkeypatch.setattr(paths, "_store", lambda: bucket)
  monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda _: bucket)
  return bucket
