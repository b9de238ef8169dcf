"""Command: pseudo ground truth of optical flow, by RAFT on the sharp low-resolution frames.

  python -m data_prep.flow_labels DIR --weights raft-small.pth [--frames T] [--batch N]

For every clip below DIR (a clip set or REDS) it writes DIR/flow/CLIP.npy, float16
[frames T-1 h w 2]: the flow (dx, dy), in low-resolution pixels, from each frame to its
neighbours at -N..-1, 1..N (T = 2N + 1); zeros where there is no such neighbour. Clips
that have labels are left alone. float16 halves the space; its rounding is at most
0.016 px for motion below 32 px, far below RAFT's own error.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm

from data_prep import clips
from vsr_jax import errors
from vsr_jax.errors import UserError
from vsr_jax.flow import raft, raft_weights

ITERATIONS = 12  # as the released labels
ORIGIN = "origin.json"  # beside the labels: how they were made

Estimate = Callable[[np.ndarray, np.ndarray], jax.Array]


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = errors.Parser(description=__doc__.partition("\n")[0])
  parser.add_argument("root", type=pathlib.Path, metavar="DIR")
  parser.add_argument("--weights", required=True, type=pathlib.Path, help="a released RAFT .pth")
  parser.add_argument("--frames", type=int, default=3, metavar="T", help="window length, odd")
  parser.add_argument("--batch", type=int, default=8, help="pairs at once")
  parser.add_argument("--split", choices=("train", "test"), default="train", help="of REDS")
  parser.add_argument(
    "--channel-order",
    choices=("rgb", "bgr"),
    default="rgb",
    help="what RAFT is given: rgb, as it was trained, or bgr, as the released labels were made",
  )
  args = parser.parse_args()
  if args.frames < 3 or args.frames % 2 == 0:
    parser.error("--frames must be odd and at least 3")
  if args.batch < 1:
    parser.error("--batch must be at least 1")
  found = clips.find_clips(
    args.root,
    split=args.split,
    streams=(clips.BLUR_BICUBIC, clips.SHARP_BICUBIC),
    num_frames=args.frames,
  )
  with clips.locked(args.root / clips.FLOW):
    _label(args, found)


def _label(args: argparse.Namespace, found: list[clips.Clip]) -> None:
  todo = [clip for clip in found if not clips.has_flow(clip, args.frames)]
  net, params = raft_weights.load(args.weights)
  if todo:
    origin = {"weights": args.weights.name, "channel_order": args.channel_order}
    _check_origin(args.root, {**origin, "iterations": ITERATIONS})
  estimate = make_estimate(net, params, bgr=args.channel_order == "bgr")
  total = sum(len(list(pairs(len(clip.blurry), args.frames))) for clip in todo)
  print(f"{args.root}: {len(found) - len(todo)} of {len(found)} clips have labels")
  with tqdm.tqdm(total=total, unit="pair", disable=not todo) as bar:
    for clip in todo:
      bar.set_description(clip.name)
      label_clip(
        clip, clips.flow_path(args.root, clip.name), estimate, args.frames, args.batch, bar.update
      )


def pairs(frames: int, num_frames: int) -> Iterator[tuple[int, int, int]]:
  """(centre, slot, neighbour) of all labels of a clip; slot counts `clips.offsets`."""
  for centre in range(frames):
    for slot, offset in enumerate(clips.offsets(num_frames)):
      if 0 <= centre + offset < frames:
        yield centre, slot, centre + offset


def make_estimate(net: raft.Raft, params: dict, *, bgr: bool = False) -> Estimate:
  """A compiled function of two uint8 RGB batches [b h w 3] of any size to flow [b h w 2]."""

  @jax.jit
  def run(params, image1, image2):
    h, w = image1.shape[1:3]
    bottom, right = -h % raft.STRIDE, -w % raft.STRIDE
    if bgr:
      image1, image2 = image1[..., ::-1], image2[..., ::-1]
    padding = ((0, 0), (0, bottom), (0, right), (0, 0))  # zeros, as the released labels
    image1, image2 = (jax.numpy.pad(x, padding) for x in (image1, image2))
    return raft.raft(net, params, image1, image2, ITERATIONS)[:, :h, :w]

  return functools.partial(run, params)


def label_clip(
  clip: clips.Clip,
  path: pathlib.Path,
  estimate: Estimate,
  num_frames: int,
  batch: int,
  advance: Callable[[int], object],
) -> None:
  """Writes one clip's labels, beside first, so that `path` is complete or absent.

  Args:
    clip: with `sharp_lr`.
    path: the `.npy` to write, in an existing folder.
    estimate: from `make_estimate`.
    num_frames: T.
    batch: pairs a call; the last call is filled up, so that there is one shape a clip.
    advance: called with the number of pairs done since the last call.
  """
  part = path.with_suffix(".npy.part")
  shape = (len(clip.blurry), num_frames - 1, clip.height, clip.width, 2)
  try:
    # Written in order, not through a memory map: that one dies of a full disk without a word.
    with part.open("wb") as f:
      header = {"descr": "<f2", "fortran_order": False, "shape": shape}
      np.lib.format.write_array_header_1_0(f, header)
      labels = _labels(clip, estimate, num_frames, batch, advance)
      for _, group in itertools.groupby(labels, key=lambda label: label[0]):
        one = np.zeros(shape[1:], "<f2")
        for _, slot, flow in group:
          one[slot] = flow
        f.write(one)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def _labels(
  clip: clips.Clip,
  estimate: Estimate,
  num_frames: int,
  batch: int,
  advance: Callable[[int], object],
) -> Iterator[tuple[int, int, np.ndarray]]:
  """(centre, slot, flow [h w 2]) of a clip's labels, in order."""
  read = functools.lru_cache(maxsize=num_frames + batch)(clips.read_frame)
  todo = list(pairs(len(clip.blurry), num_frames))
  for i in range(0, len(todo), batch):
    some = todo[i : i + batch]
    filled = some + some[-1:] * (batch - len(some))
    centres = np.stack([read(clip.sharp_lr[centre]) for centre, _, _ in filled])
    neighbours = np.stack([read(clip.sharp_lr[neighbour]) for _, _, neighbour in filled])
    flow = np.asarray(estimate(centres, neighbours))
    yield from ((centre, slot, x) for (centre, slot, _), x in zip(some, flow, strict=False))
    advance(len(some))


def _check_origin(root: pathlib.Path, origin: dict) -> None:
  """Keeps labels of different makes from being mixed in one folder."""
  path = root / clips.FLOW / ORIGIN
  if not path.exists():
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(origin) + "\n")
    os.replace(part, path)
    return
  try:
    before = json.loads(path.read_text())
  except ValueError:
    before = "unreadable"
  if before != origin:
    raise UserError(f"{path.parent}: has labels made otherwise ({before}); remove the folder first")


if __name__ == "__main__":
  errors.run(main)
