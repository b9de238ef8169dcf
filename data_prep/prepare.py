"""Command: makes a clip set (see clip_set.py) of blurry and sharp frames from ordinary video.

  python -m vsr_jax.data_prep.prepare INPUT... --out DIR [--halve auto|yes|no] [--frames A:B] ...

Each input is a video file or a folder of frames; the exposure model is that of
`exposure.expose`. Clips are cut at scene changes; finished ones are kept by a rerun.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import itertools
import math
import multiprocessing
import multiprocessing.synchronize
import os
import pathlib
import queue
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
import tqdm

from vsr_jax import cli, files, progress, video, video_cli
from vsr_jax.data_prep import clip_set, exposure, flow_store
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, SHARP_BICUBIC, STREAMS
from vsr_jax.errors import UserError
from vsr_jax.guards import check_within, remove_within
from vsr_jax.images import encode_image
from vsr_jax.locks import locked
from vsr_jax.processes import start_worker

HIGH_FRAME_RATE = 100  # frames per second from which frames are averaged without interpolation
ORDINARY_RATE = 30  # frames per second, about, to which high rates are reduced
HALVED_FROM = 720  # rows of pixels, for --halve auto
MOST = {"subframes": 1024, "stride": 1000, "scale": 16, "workers": 512}  # largest arguments
SHORTEST = 3  # frames of a clip: one training window
SMALLEST_SIDE = 64  # of a low-resolution frame: the paper's training crop


def main(given: Sequence[str] | None = None) -> None:
  """Runs the command with the given arguments or the process's; see the docstring and `--help`."""
  args = _parse(given)
  sources = _named_sources(args)
  for folder in (*STREAMS, flow_store.FOLDER):  # in these clips are replaced
    check_within(args.out, args.out / folder)
  for folder in (args.out / stream for stream in STREAMS):
    if folder.exists():
      files.check_folder(folder)
  with contextlib.ExitStack() as stack:
    for folder in (args.out, args.out / flow_store.FOLDER):
      if folder == args.out or folder.is_dir():
        stack.enter_context(locked(folder))
    _prepare(args, sources)


def _prepare(args: argparse.Namespace, sources: dict[str, pathlib.Path]) -> None:
  finished = clip_set.read_finished(args.out)
  names = ("halve", "subframes", "shutter", "stride", "shake", "gamma", "scale", "frames")
  settings = {name: getattr(args, name) for name in names}
  origins = [
    {"name": name, "path": str(path.resolve()), "settings": settings}
    for name, path in sources.items()
  ]
  for origin in origins:
    for entry in finished:
      clip_set.check_origin(args.out, entry["name"], origin, entry["origin"])
  jobs = [o for o in origins if all(entry["origin"] != o for entry in finished)]
  print(f"{_input_count_text(len(jobs))} to do, {len(origins) - len(jobs) or 'none'} done before")
  skipped = _run(args.out, jobs, finished, args.workers)
  frames = sum(entry["frames"] for entry in finished)
  print(
    f"{args.out}: {len(finished)} clips, {frames} frames; {_input_count_text(len(skipped))} skipped"
  )
  for reason in skipped:
    print(f"skipped {reason}")
  for entry in finished:
    if entry.get("warning"):
      print(f"incomplete {entry['name']}: {entry['warning']}")
  if not finished:
    raise UserError(f"{args.out}: no clip could be made; the reasons are above")
  progress.tell_next("vsr_jax.data_prep.flow_labels", args.out)


def _input_count_text(count: int) -> str:
  return f"{count} input{'s' * (count != 1)}"


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.data_prep.prepare", __doc__)
  parser.add_argument("inputs", nargs="+", metavar="INPUT", type=pathlib.Path)
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
  parser.add_argument(
    "--halve",
    choices=("auto", "yes", "no"),
    default="auto",
    help="halve both axes first: removes noise and compression (auto: from 720 lines)",
  )
  parser.add_argument("--subframes", type=int, default=8, help="at least, a frame interval")
  parser.add_argument("--shutter", type=float, default=1.0, help="exposed part of the interval")
  parser.add_argument("--stride", type=int, default=1, help="keep every n-th frame: faster motion")
  parser.add_argument(
    "--shake",
    type=float,
    default=0.0,
    help="speed of an added camera motion, source pixels a frame",
  )
  parser.add_argument("--gamma", type=float, default=2.2, help="1 averages encoded values")
  parser.add_argument(
    "--scale", type=int, default=4, help="how much smaller low-resolution frames are"
  )
  parser.add_argument(
    "--frames",
    type=lambda text: list(video_cli.frame_range(text)),  # a list, as JSON has it
    metavar="A:B",
    help="only source frames A..B-1",
  )
  parser.add_argument("--workers", type=int, default=2, help="processes")
  args = parser.parse_args(given)
  for name, most in MOST.items():
    if not 1 <= getattr(args, name) <= most:
      parser.error(f"--{name} must be 1 to {most}")
  if not 0 < args.shutter <= 1:
    parser.error("--shutter must be above 0 and at most 1")
  if not 0 <= args.shake < math.inf:
    parser.error("--shake must not be negative, and finite")
  if not 0 < args.gamma < math.inf:
    parser.error("--gamma must be above 0, and finite")
  return args


def _named_sources(args: argparse.Namespace) -> dict[str, pathlib.Path]:
  """Inputs by clip name, which is the file's with the change of motion, so variants can coexist."""
  variant = f"_stride{args.stride}" if args.stride > 1 else ""
  variant += f"_shake{args.shake:g}" if args.shake else ""
  sources = {}
  for path in args.inputs:
    name = path.resolve().stem + variant
    if name in sources:
      raise UserError(f"{path}: named like {sources[name]}; rename one, clips need unique names")
    sources[name] = path
  return sources


def _run(out: pathlib.Path, jobs: list[dict], finished: list[dict], workers: int) -> list[str]:
  """Makes the clips of all jobs, adds them to `finished`; returns lines on skipped inputs."""
  context = multiprocessing.get_context("spawn")
  todo, results, stop = context.Queue(), context.Queue(), context.Event()
  workers = min(workers, len(jobs))
  parts = {job["name"]: pathlib.Path(files.part_name(out / job["name"])) for job in jobs}
  for job in jobs + [None] * workers:
    todo.put(job and (job, parts[job["name"]]))
  # One thread per worker, as the processes run in parallel. NumPy reads this when imported.
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  processes = [
    context.Process(target=_work, args=(todo, results, stop), daemon=True) for _ in range(workers)
  ]
  skipped, left = [], len(jobs)
  with tqdm.tqdm(unit="frame", desc=f"{left} inputs left", disable=not jobs) as bar:
    try:
      for process in processes:
        process.start()
      while left:
        try:
          origin, result = results.get(timeout=1)
        except queue.Empty:
          if any(process.exitcode for process in processes):
            raise RuntimeError("a worker process died; its own message is above") from None
          continue
        if isinstance(result, int):
          bar.update(result)
          continue
        left -= 1
        bar.set_description(f"{left} inputs left")
        if isinstance(result, UserError):
          skipped.append(f"{origin['name']}: {result}")
        elif isinstance(result, Exception):
          raise result
        else:
          _commit(out, origin, parts[origin["name"]], result, finished)
    finally:
      stop.set()  # the workers end after their current frame and clean up
      for process in processes:
        process.join()
      for part in parts.values():  # clips that were not moved to their place
        files.remove(str(part))
  return skipped


def _commit(
  out: pathlib.Path,
  origin: dict,
  beside: pathlib.Path,
  entries: list[dict],
  finished: list[dict],
) -> None:
  """Moves a job's clips to their places; the index that makes them count is written last."""
  outdated = [entry for entry in finished if entry["origin"]["name"] == origin["name"]]
  if outdated:
    finished[:] = [entry for entry in finished if entry not in outdated]
    clip_set.write_index(out, finished)
  for entry in entries:
    for stream in STREAMS:
      target = out / stream / entry["name"]
      remove_within(out, target)
      target.parent.mkdir(exist_ok=True)
      os.replace(beside / entry["name"] / stream, target)
    flow_store.drop_labels(out / flow_store.FOLDER, entry["name"])
  shutil.rmtree(beside)
  finished += entries
  finished.sort(key=lambda entry: entry["name"])
  clip_set.write_index(out, finished)


def _work(
  todo: multiprocessing.Queue,
  results: multiprocessing.Queue,
  stop: multiprocessing.synchronize.Event,
) -> None:
  """Runs a worker process, which makes the clips of one job after the other in the job's folder.

  It ends when there are no more jobs or when it is told to stop.
  """
  start_worker()
  cv2.setNumThreads(1)
  warnings.simplefilter("ignore", UserWarning)  # of damaged videos, which the summary names
  while not stop.is_set() and (job := todo.get()) is not None:
    origin, beside = job
    try:
      entries = []
      for progress in _make_clips(beside, origin, entries):
        results.put((origin, progress))
        if stop.is_set():
          break
      else:
        results.put((origin, entries))
        continue
    except Exception as e:  # the parent skips the input or fails
      results.put((origin, e))
    shutil.rmtree(beside, ignore_errors=True)
  if stop.is_set():
    results.cancel_join_thread()  # the rest is not read


def _make_clips(beside: pathlib.Path, origin: dict, entries: list[dict]) -> Iterator[int]:
  """Writes one input's clips below `beside`, adds to `entries`; yields 1 per frame."""
  settings = origin["settings"]
  with video.open_reader(origin["path"], *(settings["frames"] or (0, None))) as reader:
    frames: Iterator[np.ndarray] = (frame.image for frame in reader)
    if settings["shake"]:
      rng = np.random.default_rng(zlib.crc32(origin["name"].encode()))
      frames = exposure.hand_held(frames, settings["shake"], rng)
    auto = min(reader.info.height, reader.info.width) >= HALVED_FROM
    halve = settings["halve"] == "yes" or (settings["halve"] == "auto" and auto)
    source_rate = float(reader.info.frame_rate)
    high_rate = source_rate >= HIGH_FRAME_RATE
    stride = settings["stride"] * (round(source_rate / ORDINARY_RATE) if high_rate else 1)
    rate = source_rate / stride
    exposed = exposure.expose(
      _sized_frames(frames, halve, settings["scale"]),
      stride=stride,
      shutter=settings["shutter"],
      subframes=settings["subframes"],
      gamma=settings["gamma"],
      interpolate=not high_rate,
    )
    for scene, group in itertools.groupby(exposed, key=lambda frame: frame.scene):
      entry = {"name": f"{origin['name']}_scene{scene:03d}", "frames": 0, "rate": rate}
      for frame in group:
        height, width, _ = frame.sharp.shape
        _write_frame(beside / entry["name"], entry["frames"], frame, settings["scale"])
        entry.update(height=height, width=width, frames=entry["frames"] + 1, origin=origin)
        yield 1
      if entry["frames"] >= SHORTEST:
        entries.append(entry)
  if entries and reader.warning:
    entries[-1]["warning"] = reader.warning
  if not entries:
    raise UserError(f"{origin['path']}: no scene of {SHORTEST} frames")
  if scene == 0:  # no cut: the clip is named like its source
    os.replace(beside / entries[0]["name"], beside / origin["name"])
    entries[0]["name"] = origin["name"]


def _sized_frames(frames: Iterable[np.ndarray], halve: bool, scale: int) -> Iterator[np.ndarray]:
  """Yields frames, halved if asked, cropped to a multiple of the scale; refuses small ones."""
  for frame in frames:
    frame = exposure.crop_to_multiple(exposure.halve(frame) if halve else frame, scale)
    h, w = (size // scale for size in frame.shape[:2])
    if min(h, w) < SMALLEST_SIDE:
      raise UserError(
        f"low-resolution frames would be {w}x{h}, training needs {SMALLEST_SIDE} pixels a side"
      )
    yield frame


def _write_frame(
  folder: pathlib.Path, index: int, frame: exposure.ExposedFrame, scale: int
) -> None:
  images = {
    SHARP: frame.sharp,
    SHARP_BICUBIC: exposure.downsample(frame.sharp, scale),
    BLUR_BICUBIC: exposure.downsample(frame.blurry, scale),
  }
  for stream, image in images.items():
    (folder / stream).mkdir(parents=True, exist_ok=True)
    (folder / stream / f"{index:08d}.png").write_bytes(encode_image(image))


if __name__ == "__main__":
  cli.run(main)
