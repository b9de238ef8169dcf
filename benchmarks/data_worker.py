"""Worker: makes clips of a video, and times reading training batches from them.

python -m benchmarks.data_worker {prepare,stages,feed} --data DIR [--pipeline clips ...]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
import pathlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np

from benchmarks import workload
from vsr_jax import cli, video
from vsr_jax.data_prep import (
  batching,
  blur_pipeline,
  clip_set,
  exposure,
  face_degrade,
  face_pipeline,
)
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, SHARP_BICUBIC, Clip
from vsr_jax.data_prep.folders import FileStream
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.faces.align import SIZE, TEMPLATE
from vsr_jax.images import encode_image

VERSIONS = {
  name: importlib.metadata.version(name) for name in ("grain", "numpy", "opencv-python-headless")
} | {"pyav": importlib.metadata.version("av")}
FACES, NATURAL = "faces", "natural"  # folders below --data
CLIPS, CLIP_FRAMES = 2, 48  # of faces; a training clip spans at most 36
NATURAL_FRAMES = 12
WARM_UP = 6  # batches that are not timed, besides those made ahead


class FaceClips(Sequence[Clip]):
  """Clips of faces in folders, `repeats` times: a set of any size on a small disk."""

  def __init__(self, root: pathlib.Path, repeats: int):
    self._folders = sorted(path for path in root.iterdir() if path.is_dir())
    self._repeats = repeats

  def __len__(self) -> int:
    return len(self._folders) * self._repeats

  def __getitem__(self, index: int) -> Clip:
    if not 0 <= index < len(self):
      raise IndexError(index)
    folder = self._folders[index % len(self._folders)]
    names = tuple(f"{i:08d}.png" for i in range(CLIP_FRAMES))
    # Landmarks that move a little, so that the warp is not the identity.
    sway = 6 * np.sin(np.arange(len(names)))[:, None, None]
    landmarks = TEMPLATE * 0.9 + 25 + sway
    streams = {SHARP: FileStream(folder, "", names)}
    return Clip(folder.name, len(names), streams, landmarks=landmarks)


def prepare(args: argparse.Namespace) -> dict[str, Any]:
  """Writes the clips below --data: 512x512 squares, and frames of 1280x720 with reductions."""
  faces, entries = args.data / FACES, []
  with video.open_reader(str(args.video), 0, CLIP_FRAMES) as reader:
    frames = [frame.image for frame in reader]
  frames = [frames[i % len(frames)] for i in range(CLIP_FRAMES)]
  for k in range(CLIPS):
    for i, frame in enumerate(frames):
      side = min(frame.shape[:2])
      _write(
        faces / f"clip{k}" / f"{i:08d}.png", _resize(frame[:side, -side:][:, :: 1 - 2 * k], 512)
      )
    for i, frame in enumerate(frames[:NATURAL_FRAMES]):
      sharp = _resize(frame[:, :: 1 - 2 * k], 1280, 720)
      small = exposure.downsample(sharp, 4)
      streams = {SHARP: sharp, SHARP_BICUBIC: small, BLUR_BICUBIC: small}
      for stream, image in streams.items():
        _write(args.data / NATURAL / stream / f"clip{k}" / f"{i:08d}.png", image)
    entries.append({"name": f"clip{k}", "frames": NATURAL_FRAMES})
  clip_set.write_index(args.data / NATURAL, entries)
  sizes = [path.stat().st_size for path in faces.glob("*/*.png")]
  return {"device": "none", "bytes_a_face": statistics.mean(sizes)}


def _resize(frame: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
  how = cv2.INTER_AREA if frame.shape[1] > width else cv2.INTER_CUBIC
  return cv2.resize(np.ascontiguousarray(frame), (width, height or width), interpolation=how)


def _write(path: pathlib.Path, image: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encode_image(image))


def training_batches(name: str, root: pathlib.Path, size: int, repeats: int) -> grain.MapDataset:
  """The endless batches of a pipeline, from a set that holds each clip `repeats` times."""
  if name == "fmanet":
    found = open_clips(root / NATURAL, num_frames=3).clips * repeats
    return blur_pipeline.make_dataset(found, num_frames=3, batch_size=size, seed=0, flow=False)
  source = FaceClips(root / FACES, repeats)
  make = face_pipeline.images if name == "keep_images" else face_pipeline.clips
  return batching.batch(make(source, seed=0), size)


def stages(args: argparse.Namespace) -> dict[str, Any]:
  """Measures CPU milliseconds of each stage of making a sample: means over --count samples."""
  cv2.setNumThreads(1)
  dataset = training_batches(args.pipeline, args.data, 1, 1)
  rows = []
  with timers() as spent:
    for i in range(-2, args.count):  # two are not counted, as caches are cold
      spent.clear()
      start = time.process_time()
      _ = dataset[max(i, 0)]
      total = time.process_time() - start
      if i >= 0:
        rows.append({**spent, "drawing, cutting, stacking": total - sum(spent.values())})
  names = list(dict.fromkeys(name for row in rows for name in row))
  # Not the median, because kernels that are not round take three times as long.
  milliseconds = {name: 1e3 * statistics.mean(r.get(name, 0) for r in rows) for name in names}
  return {"device": "none", "milliseconds": milliseconds}


@contextlib.contextmanager
def timers() -> Iterator[defaultdict[str, float]]:
  """A context with CPU seconds by stage, summed up while the pipelines' own functions run.

  Unlike elapsed time, CPU time counts all threads, and nothing that other processes do.
  """
  spent: defaultdict[str, float] = defaultdict(float)

  def timed(function: Callable, label: Callable[..., str]) -> Callable:
    @functools.wraps(function)
    def run(*args, **kwargs):
      start = time.process_time()
      result = function(*args, **kwargs)
      spent[label(*args, **kwargs)] += time.process_time() - start
      return result

    return run

  def noise(image: np.ndarray, *_: Any) -> str:
    return "noise" if len(image) == SIZE else "noise, reduced"

  def aligning(image: np.ndarray, *_: Any) -> str:
    return "align" if len(image) == SIZE else "align, reduced"

  parts = [
    (Clip, "decode", lambda *_: "read and decode"),
    (face_degrade, "blur", lambda *_: "blur"),
    (face_degrade, "add_noise", noise),
    (face_degrade, "reduce", lambda *_: "reduce"),
    (face_degrade, "compress", lambda *_: "H.264"),
    (face_pipeline, "align", aligning),
  ]
  originals = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
  for owner, name, label in parts:
    setattr(owner, name, timed(getattr(owner, name), label))
  try:
    yield spent
  finally:
    for owner, name, original in originals:
      setattr(owner, name, original)


def feed(args: argparse.Namespace) -> dict[str, Any]:
  """Reads --count batches with --workers processes: seconds per sample, all processes' memory."""
  dataset = training_batches(args.pipeline, args.data, args.batch, args.repeats)
  with batching.BatchReader(dataset, workers=args.workers) as batches:
    # Each worker has made some batches ahead, which must be used up before the time runs.
    for _ in range(WARM_UP + 4 * args.workers):
      next(batches)
    start = time.perf_counter()
    for _ in range(args.count):
      next(batches)
    seconds = time.perf_counter() - start
    memory = [workload.peak_memory()]
    memory += [peak_of(child.pid) for child in multiprocessing.active_children()]
  return {
    "device": "none",
    "seconds": seconds / (args.count * args.batch),
    "memory": sum(memory),
    "processes": len(memory),
  }


def peak_of(process: int) -> int:
  """The largest resident size of another process so far, in bytes; 0 if unknown."""
  status = pathlib.Path(f"/proc/{process}/status")
  if not status.exists():
    return 0
  line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
  return 1024 * int(line.split()[1])


def main() -> None:
  """Runs the worker; see the module's docstring."""
  parser = workload.worker_parser("benchmarks.data_worker", __doc__)
  parser.add_argument("--data", type=pathlib.Path, required=True, help="the folder of clips")
  parser.add_argument("--video", type=pathlib.Path, help="what the clips are made of")
  parser.add_argument("--pipeline", choices=("fmanet", "keep_images", "keep_clips"))
  parser.add_argument("--workers", type=int, default=1)
  parser.add_argument("--repeats", type=int, default=1, help="how often the set holds each clip")
  parser.add_argument("--count", type=int, default=20, help="samples or batches that are timed")
  args = parser.parse_args()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  workload.use_threads(args.threads)
  workload.run_job(args, {"prepare": prepare, "stages": stages, "feed": feed}, VERSIONS)


if __name__ == "__main__":
  cli.run(main)
