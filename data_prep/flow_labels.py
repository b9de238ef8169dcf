"""Command: pseudo ground truth of optical flow, by RAFT on the sharp low-resolution frames.

  python -m vsr_jax.data_prep.flow_labels DIR [--weights raft-sintel.pth] [--frames T] [--batch N]
  python -m vsr_jax.data_prep.flow_labels DIR --released REDS/train_flow_bicubic

DIR is a clip set, REDS as released, or the folder of a data set that data_prep.build made, such as
data/reds/x4/1.0.0; --split names the split. Each frame gets the flow (dx, dy), in low-resolution
pixels, to its neighbours at -N..-1, 1..N (T = 2N + 1), zeros where there is no such neighbour.
`flow_store.py` describes the files. A run that was interrupted goes on with the next clip. Without
`--weights` the flow is that of RAFT's small variant, which ships.

`--released` takes FMA-Net's own labels of REDS, CLIP/00000001_00000000.npy and so on, instead of
making new ones; these exist for whole windows only, the others are zeros, which no window reads.

Labels are float16, which halves the released layout's space: 12.3 GB instead of 24.0 for T = 3 and
REDS. Rounding changes a component of up to 2^k pixels by at most 2^(k-12), 0.004 of up to 16; of
RAFT's flow in four clips, of up to 10.7 pixels, it changed at most 0.0039 and on average 0.0002.
zstd would save another sixth and make reading three times as slow.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import tqdm

from vsr_jax import cli, progress
from vsr_jax.data_prep import flow_store, opening
from vsr_jax.data_prep.clip import SHARP_BICUBIC, Clip, check_frames
from vsr_jax.errors import UserError
from vsr_jax.flow import raft, raft_conversion
from vsr_jax.locks import locked
from vsr_jax.programs import CompiledByShape

LARGEST_BATCH = 1024  # the last batch of a clip is filled up to the same size
ITERATIONS = 12  # of RAFT, as for the released labels

Estimate = Callable[[np.ndarray, np.ndarray], jax.Array]


def main(given: Sequence[str] | None = None) -> None:
  """Runs the command with the given arguments or the process's; see the docstring and `--help`."""
  parser = cli.Parser("vsr_jax.data_prep.flow_labels", __doc__)
  parser.add_argument("root", type=pathlib.Path, metavar="DIR")
  source = parser.add_mutually_exclusive_group()
  source.add_argument(
    "--weights",
    type=pathlib.Path,
    help="a released RAFT .pth; default: those of the small variant, which ship",
  )
  source.add_argument(
    "--released", type=pathlib.Path, metavar="FOLDER", help="FMA-Net's labels, CLIP/*.npy"
  )
  parser.add_argument("--frames", type=int, default=3, metavar="T", help="window length, odd")
  parser.add_argument("--batch", type=int, default=8, help="pairs at once")
  parser.add_argument("--split", default="train", help="the split of a release or a built set")
  parser.add_argument(
    "--channel-order",
    choices=("rgb", "bgr"),
    default="rgb",
    help="what RAFT is given: rgb, as it was trained, or bgr, as the released labels were made",
  )
  args = parser.parse_args(given)
  if args.frames < 3 or args.frames % 2 == 0:
    parser.error("--frames must be odd and at least 3")
  if not 1 <= args.batch <= LARGEST_BATCH:
    parser.error(f"--batch must be 1 to {LARGEST_BATCH}")
  opened, todo = find_unlabelled(args.root, args.split, args.frames)
  folder, done = opened.flow_folder, len(opened.clips) - len(todo)
  print(f"{args.root}: {done} of {done + len(todo)} clips have labels, {len(todo)} to do")
  with locked(folder):
    if args.released:
      damaged = convert_released(args.released, folder, todo, args.frames, opened.verified)
    else:
      damaged = _label(args, folder, todo, opened.verified)
    if damaged:
      raise UserError(
        f"{args.root}: {len(damaged)} of {len(todo)} clips could not be read and have no labels, "
        f"training will leave them out: {', '.join(damaged)}; extract them again and run this again"
      )
    summarize(folder)
  data = "--workdir", "DIR", "--config.data.root", args.root
  progress.tell_next("fmanet_jax.train", "--config", "configs/fmanet/degradation.py", *data)


def find_unlabelled(
  root: pathlib.Path, split: str, num_frames: int
) -> tuple[opening.OpenedSet, list[Clip]]:
  """Finds the clips that lack labels.

  Args:
    root: a set of clips, see `opening`.
    split: the split of a release or a built set.
    num_frames: T.

  Returns:
    The set, and those of its clips that lack labels for windows of T frames.

  Raises:
    UserError: no such set or split, a stream is missing, or no clip has T frames.
  """
  opened = opening.open_clips(root, split=split, num_frames=num_frames)
  return opened, [clip for clip in opened.clips if not opening.has_flow(clip, num_frames)]


def _check(clip: Clip, verified: bool) -> None:
  """Raises `UserError` for a frame of any stream that cannot be decoded."""
  if not verified:
    check_frames(clip)


def convert_released(
  released: pathlib.Path,
  folder: pathlib.Path,
  todo: Sequence[Clip],
  num_frames: int,
  verified: bool = False,
) -> list[str]:
  """Converts labels in the released layout to ours.

  Args:
    released: holds a folder of .npy files per clip, with frames named 00000000, 00000001, ...
    folder: where labels are kept; it must exist.
    todo: the clips to convert.
    num_frames: T.
    verified: whether the frames are known to be whole; otherwise all are decoded first.

  Returns:
    The names of damaged clips, which get no labels.

  Raises:
    UserError: labels of a clip are missing, damaged or of another size; those written before stay.
  """
  if todo:
    flow_store.check_origin(folder, {"released": released.name})
  damaged: list[str] = []
  for clip in tqdm.tqdm(todo, unit="clip"):
    try:
      _check(clip, verified)
    except UserError as e:
      _warn(clip, e, damaged)
      continue
    size = clip.sizes[SHARP_BICUBIC]
    names = tuple(f"{i:08d}" for i in range(clip.length))
    labels = flow_store.ReleasedFlow(released / clip.name, names, *size)
    if not labels.serve(clip.length, num_frames, *size):
      raise UserError(
        f"{labels.folder}: lacks labels of clip {clip.name}; extract them again, or make all "
        "without --released"
      )
    flow_store.write_labels(
      folder, clip.name, _released(labels, clip.length, num_frames), num_frames
    )
  return damaged


def _warn(clip: Clip, error: UserError, damaged: list[str]) -> None:
  tqdm.tqdm.write(f"warning: {clip.name} gets no labels: {error}", file=sys.stderr)
  damaged.append(clip.name)


def _released(labels: flow_store.ReleasedFlow, count: int, num_frames: int) -> Iterator[np.ndarray]:
  n = num_frames // 2
  for centre in range(count):
    if n <= centre < count - n:
      yield np.delete(labels.read(centre, num_frames), n, axis=0)
    else:
      yield np.zeros((num_frames - 1, labels.height, labels.width, 2), np.float32)


def _label(
  args: argparse.Namespace, folder: pathlib.Path, todo: Sequence[Clip], verified: bool
) -> list[str]:
  net, params = raft_conversion.load(args.weights)
  if todo:
    weights = args.weights or raft_conversion.ASSET
    origin = {"weights": weights.name, "channel_order": args.channel_order}
    flow_store.check_origin(folder, {**origin, "iterations": ITERATIONS})
  estimate = make_estimate(net, params, bgr=args.channel_order == "bgr")
  damaged: list[str] = []
  total = sum(len(list(pairs(clip.length, args.frames))) for clip in todo)
  with progress.Clock(), progress.bar(None, total, "pair", disable=not todo) as bar:
    for clip in todo:
      bar.set_description(clip.name)
      try:
        _check(clip, verified)
        label_clip(clip, folder, estimate, args.frames, args.batch, bar.update)
      except UserError as e:
        _warn(clip, e, damaged)
  return damaged


def summarize(folder: pathlib.Path) -> None:
  """Prints the size of the labels in a folder, that of the released layout, the rounding error."""
  if labels := flow_store.open_labels(folder).values():
    size = sum(label.size for label in labels)
    released = sum(
      (label.frames - label.neighbours) * label.neighbours * label.height * label.width * 8
      for label in labels
    )
    print(
      f"{folder}: labels of {len(labels)} clips, {size / 1e9:.3f} GB; as released, in float32, "
      f"{released / 1e9:.3f} GB; float16 changed them by at most "
      f"{max(label.error for label in labels):.4f} pixels"
    )


def pairs(frames: int, num_frames: int) -> Iterator[tuple[int, int, int]]:
  """Yields (centre, slot, neighbour) of all labels of a clip; slot indexes `flow_store.offsets`."""
  for centre in range(frames):
    for slot, offset in enumerate(flow_store.offsets(num_frames)):
      if 0 <= centre + offset < frames:
        yield centre, slot, centre + offset


def make_estimate(net: raft.Raft, params: dict, *, bgr: bool = False) -> Estimate:
  """Makes a function of two uint8 RGB batches [b h w 3], compiled per size, to flow [b h w 2]."""

  @jax.jit
  def run(params: dict, image1: jax.Array, image2: jax.Array) -> jax.Array:
    h, w = image1.shape[1:3]
    bottom, right = -h % raft.MULTIPLE, -w % raft.MULTIPLE
    if bgr:
      image1, image2 = image1[..., ::-1], image2[..., ::-1]
    padding = ((0, 0), (0, bottom), (0, right), (0, 0))  # with zeros, as for the released labels
    image1, image2 = (jax.numpy.pad(x, padding) for x in (image1, image2))
    return raft.raft(net, params, image1, image2, ITERATIONS)[:, :h, :w]

  compiled = CompiledByShape(
    run, lambda x, _: f"RAFT for {len(x)} pairs of {x.shape[2]}x{x.shape[1]}"
  )
  return functools.partial(compiled, params)


def label_clip(
  clip: Clip,
  folder: pathlib.Path,
  estimate: Estimate,
  num_frames: int,
  batch: int,
  advance: Callable[[int], object],
) -> flow_store.FlowRecords:
  """Writes one clip's labels; what the folder held before stays until they are whole.

  Args:
    clip: a clip with at least one pair of frames.
    folder: where labels are kept; it must exist.
    estimate: from `make_estimate`.
    num_frames: T.
    batch: pairs per call of `estimate`; the last is filled up, so that a clip needs one shape.
    advance: called with the number of pairs done since the last call.
  """

  def by_frame() -> Iterator[np.ndarray]:
    labels = _labels(clip, estimate, num_frames, batch, advance)
    for _, group in itertools.groupby(labels, key=lambda label: label[0]):
      slots = {slot: flow for _, slot, flow in group}
      zeros = np.zeros_like(next(iter(slots.values())))
      yield np.stack([slots.get(slot, zeros) for slot in range(num_frames - 1)])

  return flow_store.write_labels(folder, clip.name, by_frame(), num_frames)


def _labels(
  clip: Clip,
  estimate: Estimate,
  num_frames: int,
  batch: int,
  advance: Callable[[int], object],
) -> Iterator[tuple[int, int, np.ndarray]]:
  """Yields (centre, slot, flow [h w 2]) of a clip's labels, in the order of `pairs`."""
  read = functools.lru_cache(maxsize=num_frames + batch)(
    functools.partial(clip.decode, SHARP_BICUBIC)
  )
  todo = list(pairs(clip.length, num_frames))
  for i in range(0, len(todo), batch):
    some = todo[i : i + batch]
    filled = some + some[-1:] * (batch - len(some))
    centres = np.stack([read(centre) for centre, _, _ in filled])
    neighbours = np.stack([read(neighbour) for _, _, neighbour in filled])
    flow = np.asarray(estimate(centres, neighbours))
    yield from ((centre, slot, x) for (centre, slot, _), x in zip(some, flow, strict=False))
    advance(len(some))


if __name__ == "__main__":
  cli.run(main)
