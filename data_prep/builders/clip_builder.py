"""Code that the three data sets' builders share: features, and writing shards.

A shard is the unit of work and of resuming. Its clips are read, checked and written in one go, in
the order of their names, to a folder beside the final one; a note beside it, written last, says
that it is complete and which clips were left out. A later run makes only the shards that have no
such note, or were made of other clips, or left clips out. When all are there, they are linked
into the data set's folder together with its description. So nothing is written twice, at no time
is there a second copy, and the memory needed is that of a clip. (TFDS's own writer collects a
whole split in temporary files first and starts anew after an interruption.)

Shards are made in this process, or by any Beam runner whose workers see the same folders.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from vsr_jax import json_files
from vsr_jax.data_prep import array_record, built
from vsr_jax.data_prep.builders.reading import read_clip
from vsr_jax.data_prep.builders.releases import ReleasedClip
from vsr_jax.data_prep.clip import Clip
from vsr_jax.data_prep.folders import BadClip
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.json_files import array, fields, text
from vsr_jax.locks import locked

_TOLD = 1000  # characters of the reason why a clip was left out, at most
_NOTE = fields(  # "identity" holds the shard's fingerprint
  {"identity": text, "clips": array(built.BUILT_CLIP), "skipped": array(built.SKIPPED_CLIP)}
)


@dataclasses.dataclass
class ClipConfig(tfds.core.BuilderConfig):
  """A variant of a data set: `streams` are the features that hold encoded frames."""

  streams: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard to be made.

  Attributes:
    path: the shard's file; beside it is `path + ".json"`, its note, with `clips` (index entries
      in record order) and `skipped` (name and reason of each clip left out).
    clips: the clips it is to hold, including any that turn out to be bad.
    streams: the data set's streams.
  """

  path: str
  clips: tuple[ReleasedClip, ...]
  streams: tuple[str, ...]

  @property
  def note(self) -> pathlib.Path:
    return pathlib.Path(f"{self.path}.json")

  @property
  def fingerprint(self) -> str:
    """A text that changes with the clips, their files and the streams."""
    return hashlib.sha256(repr((self.clips, self.streams)).encode()).hexdigest()


def features(streams: Sequence[str]) -> tfds.features.FeaturesDict:
  """TFDS's features of one example, which is one clip; frames are the bytes of image files."""
  return tfds.features.FeaturesDict(
    {
      "name": tfds.features.Text(doc="unique within its split"),
      "fps": tfds.features.Scalar(np.float32, doc="frames a second; 0 if unknown"),
      "num_frames": tfds.features.Scalar(np.int64),
      "landmarks": tfds.features.Tensor(
        shape=(None, 5, 2),
        dtype=np.float32,
        doc="by frame: eyes, nose, mouth's corners; (x, y) in pixels; none if not known",
      ),
      **{
        stream: tfds.features.Tensor(
          shape=(None,), dtype=np.object_, doc="by frame: a PNG or JPEG as it was found"
        )
        for stream in streams
      },
    }
  )


class ClipBuilder(  # type: ignore[call-arg] # the base is unknown to the checker
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A data set of clips; subclasses say where the clips are.

  Attributes:
    CLIPS_PER_SHARD: number of clips in a shard, chosen for about a gigabyte.
    partial: whether an incomplete download may be used; to be set before preparing.
  """

  VERSION = tfds.core.Version("1.0.0")
  CLIPS_PER_SHARD = 8
  partial = False

  def __init__(self, *, file_format: str | None = None, **kwargs: Any):
    super().__init__(file_format=file_format or built.FORMAT, **kwargs)

  def describe(self, description: str, citation: str, homepage: str) -> tfds.core.DatasetInfo:
    """TFDS's description of the data set, with the features of its variant."""
    return tfds.core.DatasetInfo(
      builder=self,
      description=description,
      features=features(self.builder_config.streams),
      homepage=homepage,
      citation=citation,
      disable_shuffling=True,  # records are in the order of their clips' names
    )

  @abc.abstractmethod
  def list_clips(self, root: pathlib.Path) -> Mapping[str, Sequence[ReleasedClip]]:
    """The clips of each split, sorted by name, below the folder of downloads.

    Raises:
      UserError: something is missing; the text says what and where to get it.
    """

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    found = self.list_clips(pathlib.Path(dl_manager.manual_dir))
    return {split: self._generate_examples(clips) for split, clips in found.items()}

  def _generate_examples(
    self, clips: Iterable[ReleasedClip]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for clip in read_clips(clips, []):
      yield clip.name, to_example(clip, self.builder_config.streams)

  def download_and_prepare(self, **kwargs: Any) -> None:
    """Builds the data set as TFDS does; uses what an interrupted run left, then removes it."""
    super().download_and_prepare(**kwargs)
    shutil.rmtree(self.unfinished, ignore_errors=True)

  @property
  def unfinished(self) -> pathlib.Path:
    """The folder that holds finished shards until all are made."""
    final = pathlib.Path(self.data_dir_root, self.info.full_name)
    return final.with_name(f"{final.name}.unfinished")

  def _download_and_prepare(
    self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
  ) -> None:
    folder = self.unfinished
    found = {
      split: clips
      for split, clips in self.list_clips(pathlib.Path(dl_manager.manual_dir)).items()
      if clips
    }
    if not found:
      raise UserError(f"{dl_manager.manual_dir}: no clip of {self.info.full_name}")
    with locked(folder):
      for left in folder.parent.glob(f"incomplete.*_{self.version}"):  # left by a killed run
        if left != pathlib.Path(self.data_dir):
          shutil.rmtree(left, ignore_errors=True)
      shards = {split: self._plan(folder, split, clips) for split, clips in found.items()}
      todo = [shard for part in shards.values() for shard in part if not _is_made(shard)]
      make_shards(todo, sum(map(len, shards.values())), download_config)
      self._collect(shards)

  def _plan(self, folder: pathlib.Path, split: str, clips: Sequence[ReleasedClip]) -> list[Shard]:
    counts = collections.Counter(clip.name for clip in clips)
    if twice := [name for name, count in counts.items() if count > 1]:
      raise UserError(f"{split}: clip {twice[0]} comes twice; remove one")
    n = self.CLIPS_PER_SHARD
    groups = [tuple(clips[i : i + n]) for i in range(0, len(clips), n)]
    return [
      Shard(
        str(folder / built.shard_name(self.name, split, i, len(groups))),
        group,
        self.builder_config.streams,
      )
      for i, group in enumerate(groups)
    ]

  def _collect(self, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Links all shards into the data set's folder and writes TFDS's description and the index."""
    infos, index = [], {}
    for split, part in shards.items():
      notes = [_read_note(shard) for shard in part]
      for shard in part:
        _link(pathlib.Path(shard.path), pathlib.Path(self.data_dir))
      index[split] = {
        key: [entry for note in notes for entry in note[key]] for key in ("clips", "skipped")
      }
      index[split]["streams"] = self.builder_config.streams
      if not index[split]["clips"]:
        raise UserError(
          f"{split}: none of its {len(index[split]['skipped'])} clips can be used: "
          f"{index[split]['skipped'][0]['reason']}"
        )
      infos.append(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[len(note["clips"]) for note in notes],
          num_bytes=sum(os.path.getsize(shard.path) for shard in part),
          filename_template=self._get_filename_template(split_name=split),
        )
      )
    pathlib.Path(self.data_dir, built.INDEX).write_text(json.dumps(index, indent=1) + "\n")
    self.info.set_splits(tfds.core.splits.SplitDict(infos))


def _link(shard: pathlib.Path, folder: pathlib.Path) -> None:
  try:
    os.link(shard, folder / shard.name)
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    os.replace(shard, folder / shard.name)  # a file system without links
    shard.with_name(f"{shard.name}.json").unlink()


def _read_note(shard: Shard) -> dict[str, Any]:
  remedy = "remove it and run the same command again"
  return json_files.load(shard.note, _NOTE, remedy=remedy)


def _is_made(shard: Shard) -> bool:
  try:
    note = _read_note(shard)
  except (OSError, UserError):
    return False
  whole = note["identity"] == shard.fingerprint and not note["skipped"]
  return whole and os.path.exists(shard.path)


def make_shards(shards: Sequence[Shard], total: int, config: tfds.download.DownloadConfig) -> None:
  """Writes shards, here one by one, or by Beam if the configuration names a runner or options.

  Args:
    shards: the shards to make.
    total: number of all shards, with those that exist.
    config: TFDS's configuration.
  """
  for shard in shards:
    shard.note.unlink(missing_ok=True)
  bar = tqdm.tqdm(total=total, initial=total - len(shards), unit="shard", disable=not shards)
  with bar:
    if config.beam_runner is None and config.beam_options is None:
      for shard in shards:
        bar.set_description(shard.clips[0].name)
        make_shard(shard)
        bar.update()
    elif shards:
      with _watched(shards, bar):
        _make_by_beam(shards, config)


def _make_by_beam(shards: Sequence[Shard], config: tfds.download.DownloadConfig) -> None:
  import apache_beam as beam  # the import takes seconds

  try:
    with beam.Pipeline(runner=config.beam_runner, options=config.beam_options) as pipeline:
      _ = pipeline | beam.Create(shards) | beam.Reshuffle() | beam.Map(make_shard)
  except Exception as e:
    # A runner gives a worker's error back as text.
    if os.strerror(errno.ENOSPC) in str(e):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from e
    raise


@contextlib.contextmanager
def _watched(shards: Sequence[Shard], bar: tqdm.tqdm) -> Iterator[None]:
  """A context that moves the bar as notes appear, since Beam reports nothing while it works."""
  done = threading.Event()
  start = bar.n

  def watch():
    while not done.wait(1):
      bar.n = start + sum(shard.note.exists() for shard in shards)
      bar.refresh()

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def make_shard(shard: Shard) -> None:
  """Writes one shard and its note; both appear in one step, the note last.

  Raises:
    OSError: the shard or its note cannot be written.
  """
  entries, skipped = [], []
  schema = features(shard.streams)
  with array_record.writing(shard.path) as write:
    for clip in read_clips(shard.clips, skipped):
      data = schema.serialize_example(to_example(clip, shard.streams))
      write(data)
      entries.append(_index_entry(clip, shard.streams, len(data)))
  note = {"identity": shard.fingerprint, "clips": entries, "skipped": skipped}
  write_whole(shard.note, json.dumps(note))


def read_clips(clips: Iterable[ReleasedClip], skipped: list[dict[str, str]]) -> Iterator[Clip]:
  """Reads clips one after the other.

  Args:
    clips: where their files are.
    skipped: a list to which name and reason of each clip that cannot be used are added.

  Yields:
    Clips whose frames are all in memory, encoded.
  """
  for clip in clips:
    try:
      whole = read_clip(clip)
    except BadClip as e:
      skipped.append({"name": clip.name[:_TOLD], "reason": str(e)[:_TOLD]})
      continue
    yield whole


def to_example(clip: Clip, streams: Sequence[str]) -> dict[str, Any]:
  """Converts a clip to TFDS's example; a stream that the clip does not have is empty."""
  return {
    "name": clip.name,
    "fps": clip.rate,
    "num_frames": clip.length,
    "landmarks": clip.landmarks,
    **{stream: clip.streams.get(stream, []) for stream in streams},
  }


def _index_entry(clip: Clip, streams: Sequence[str], size: int) -> dict[str, Any]:
  return {
    "name": clip.name,
    "bytes": size,
    "frames": clip.length,
    "fps": clip.rate,
    "sizes": {s: clip.sizes[s] for s in streams if clip.streams.get(s)},
    "landmarks_crc32": zlib.crc32(np.asarray(clip.landmarks).data),
  }
