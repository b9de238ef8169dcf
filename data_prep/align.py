"""Command: makes a clip set of aligned faces from videos, for training or evaluation.

  python -m vsr_jax.data_prep.align CLIP... --out DIR [--size 128]
    [--detector mtcnn] [--sigma 5]

Each CLIP is what `data_prep.landmarks` takes. The landmarks are found and smoothed as there, every
frame of the clip is aligned by them as in restoring, and reduced to the size without aliases; grey
is what lies beyond the frame. DIR becomes, or gains, a clip set of sharp frames and landmarks that
`open_clips` opens and KEEP's batches take as they are. A clip that exists with the same settings is
kept. For size 512 the landmarks alone are enough: `data_prep.landmarks`, then `build vfhq`.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vsr_jax import cli, progress
from vsr_jax.data_prep import aligned_clips, face_pipeline, landmarks
from vsr_jax.data_prep.aligned_clips import Origin
from vsr_jax.data_prep.landmarks import Source
from vsr_jax.errors import UserError
from vsr_jax.faces import align, detector


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  detect = detector.make_detector(args.detector, args.detector_weights)
  settings = {"size": args.size, "detector": args.detector, "sigma": args.sigma}
  make_set(landmarks.find_clips(args.inputs), args.out, settings, detect)


def _parse() -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.data_prep.align", __doc__)
  parser.add_argument(
    "inputs", nargs="+", type=pathlib.Path, metavar="CLIP", help="videos, or frames"
  )
  parser.add_argument(
    "--out", type=pathlib.Path, metavar="DIR", required=True, help="the clip set to write or add to"
  )
  parser.add_argument("--size", type=int, default=128, metavar="N", help="side; default: 128")
  landmarks.add_detector_arguments(parser)
  args = parser.parse_args()
  if not 16 <= args.size <= 1024:
    parser.error(f"--size {args.size}: must be 16 to 1024")
  landmarks.check_detector_arguments(parser, args)
  return args


def make_set(
  sources: Sequence[Source],
  out: pathlib.Path,
  settings: dict[str, Any],
  detect: detector.Detector,
) -> None:
  """Makes the aligned clips that a set does not have yet.

  Args:
    sources: the clips.
    out: the clip set.
    settings: size, detector and sigma, as the command's arguments.
    detect: the detector of that name.

  Raises:
    UserError: no clip could be made, or see `aligned_clips`.
  """
  by_name = {source.name: source for source in sources}
  skipped = {}
  with aligned_clips.writing(out) as entries:
    origins = [Origin(s.name, str(s.path.resolve()), settings) for s in sources]
    todo = aligned_clips.missing(out, entries, origins)
    with progress.bar("aligning", len(todo), unit="clip") as bar:
      for origin in todo:
        try:
          source = by_name[origin.name]
          points, rate = landmarks.clip_landmarks(source, detect, settings["sigma"])
          if points is None:
            raise UserError(f"{source.path}: no face found; leave it out")
          matrices, _ = align.fit(points, settings["size"])
          frames = _aligned(source, matrices, settings["size"])
          aligned_clips.add(out, entries, origin, frames, align.move(points, matrices), rate)
        except UserError as e:
          skipped[origin.name] = str(e)
        bar.update()
    count = sum(entry["frames"] for entry in entries)
  for name, reason in skipped.items():
    print(f"skipped {name}: {reason}")
  if not entries:
    raise UserError(f"{out}: no clip could be made; the reasons stand above")
  done = len(origins) - len(todo)
  print(f"{out}: {len(entries)} clips, {count} frames; {done} of {len(origins)} were there")


def _aligned(source: Source, matrices: np.ndarray, size: int) -> Iterator[np.ndarray]:
  with landmarks.open_frames(source) as (_, images):
    for image, matrix in zip(images, matrices, strict=True):
      yield align.align_reduced(image, matrix, size, face_pipeline.BORDER)


if __name__ == "__main__":
  cli.run(main)
