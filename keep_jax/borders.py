"""Command: plots how steady restored clips are around the borders of chunks.

  python -m keep_jax.borders FACE.mp4 PLOT.png --checkpoint DIR [--label WEIGHTS] [--window 20]

FACE.mp4 is a clip of one aligned face. It is restored in both modes, the state carried over the
whole clip (`stream`) and begun anew in every chunk (`as_released`), and each frame is compared with
the one before it, moved by the optical flow of the input: what differs beyond the motion is
flicker. Needs matplotlib: `pip install -e ".[plot]"`.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType

import cv2
import numpy as np

from keep_jax import streaming
from vsr_jax import cli, progress, runtime, video, video_cli
from vsr_jax.errors import UserError

EDGE = 1 / 32  # the part of the face's size, at its border, that is not compared: flow leaves it


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  video.check_output(args.output, args.input)
  _import_figure()  # not only after the work
  with progress.Clock():
    runtime.enable_compilation_cache()
    runtime.keep_freed_memory()
    model, params = streaming.load(args.checkpoint)
    size = model.arch.image_size
    with video.open_reader(args.input, *args.frames) as reader:
      frames = [cv2.resize(frame.image, (size, size)) for frame in reader]
    if len(frames) <= args.window:
      raise UserError(f"{args.input}: {len(frames)} frames are one chunk; give a longer clip")
    flows = list(input_flows(frames))
    curves = {"input": list(differences(frames, flows))}
    for mode in ("stream", "as_released"):
      restorer = streaming.Restorer(model, params, mode, args.window)
      curves[mode] = []
      with progress.bar(mode, len(frames) - 1) as bar:
        for difference in differences(restorer.stream(frames), flows):
          curves[mode].append(difference)
          bar.update()
  label = args.label or str(args.checkpoint)
  plot(args.output, curves, args.window, f"{args.input}, weights: {label}")
  borders = np.arange(args.window, len(frames), args.window) - 1
  inside = np.setdiff1d(np.arange(len(frames) - 1), borders)
  print("mean difference from the frame before, moved by the input's flow (of 255)")
  for name, curve in curves.items():
    at, off = (np.mean(np.array(curve)[where]) for where in (borders, inside))
    print(f"{name:12} {at:6.2f} at chunk borders, {off:6.2f} elsewhere")


def input_flows(frames: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
  """Flow [h w 2] in pixels from each frame, uint8 RGB [h w 3], to the one before it; by DIS."""
  dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
  for before, frame in itertools.pairwise(grey):
    yield dis.calc(frame, before, None)


def differences(frames: Iterable[np.ndarray], flows: Sequence[np.ndarray]) -> Iterator[float]:
  """Mean absolute difference of each frame but the first from the one before, moved by flow."""
  before = None
  remaining = iter(flows)
  for frame in frames:
    if before is not None:
      flow = next(remaining)
      y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
      moved = cv2.remap(before, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
      edge = int(EDGE * len(flow))
      inner = np.s_[edge:-edge, edge:-edge]
      yield float(cv2.absdiff(frame, moved)[inner].mean())
    before = frame


def plot(path: str, curves: Mapping[str, Sequence[float]], window: int, title: str) -> None:
  """Draws the curves over the frames' numbers, the chunks' borders as lines; a PNG."""
  page = _import_figure().Figure(figsize=(9, 4), layout="constrained")
  axes = page.subplots()
  for name, curve in curves.items():
    axes.plot(np.arange(1, len(curve) + 1), curve, label=name)
  for border in range(window, len(next(iter(curves.values()))) + 1, window):
    axes.axvline(border, color="0.7", linestyle=":")
  axes.set(xlabel="frame", ylabel="difference from the frame before, of 255", title=title)
  axes.legend()
  page.savefig(path, format="png", dpi=120)


def _import_figure() -> ModuleType:
  try:
    from matplotlib import figure
  except ImportError:
    raise UserError('matplotlib is missing; install the extra: pip install -e ".[plot]"') from None
  return figure


def _parse() -> argparse.Namespace:
  parser = cli.Parser("keep_jax.borders", __doc__)
  add = parser.add_argument
  add("input", metavar="FACE", help="a clip of one aligned face, longer than a chunk")
  add("output", metavar="PLOT.png")
  add("--checkpoint", metavar="DIR", required=True, help="what keep_jax.convert wrote")
  add("--label", metavar="TEXT", help="names the weights; default: the checkpoint's folder")
  add("--window", type=int, default=streaming.WINDOW, metavar="N", help="frames of a chunk")
  add("--frames", type=video_cli.frame_range, metavar="A:B", default=(0, None))
  args = parser.parse_args()
  if not streaming.LOOK_AHEAD + 2 <= args.window <= streaming.LONGEST_WINDOW:
    span = f"{streaming.LOOK_AHEAD + 2} to {streaming.LONGEST_WINDOW}"
    parser.error(f"--window {args.window}: must be {span}")
  return args


if __name__ == "__main__":
  cli.run(main)
