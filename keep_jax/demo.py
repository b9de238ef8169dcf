"""Command: restores the packaged clip of a face, whole frames with sound, by the packaged weights.

  python -m keep_jax.demo [--out demo_output] [--checkpoint DIR]

Writes restored.mp4, side_by_side.mp4 (bicubic | restored), side_by_side.png (bicubic | restored |
truth, and a detail of each below) and the scores of all frames, metrics.json and metrics.md.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from keep_jax import streaming
from keep_jax.face_scores import FaceClipScore, make_networks
from keep_jax.faces import find_faces, restore_faces
from vsr_jax import cli, demo, files, runtime, video
from vsr_jax.errors import UserError
from vsr_jax.evaluation import BICUBIC
from vsr_jax.faces import detector, identity, mesh
from vsr_jax.faces.detections import Detector
from vsr_jax.frames import Frame
from vsr_jax.metrics.faces import AKD, IDS
from vsr_jax.metrics.sums import PSNR, SSIM
from vsr_jax.score_table import ScoreTable

CLIP = pathlib.Path(__file__).parent / "assets" / "demo_clip"
NAME = "KEEP"
ZOOM = 2  # how many times details are enlarged
NOTE = (
  "Whole frames. IDS by MobileFace, AKD by the face mesh, in pixels of an aligned face of 512 "
  "(docs/metrics.md)."
)


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = demo.parse_arguments("keep_jax.demo", __doc__)
  files.check_folder(args.out)
  runtime.enable_compilation_cache()
  runtime.keep_freed_memory()
  restorer = streaming.Restorer(*streaming.load(args.checkpoint))
  demo.prepare(args.out)
  setting = {"data": CLIP.name, "checkpoint": args.checkpoint, "scored": "whole frames"}
  table = ScoreTable([BICUBIC, NAME], (PSNR, SSIM, IDS, AKD), setting, [NOTE])
  scores, detect = new_scores(), detector.make_detector()
  landmarks = find_landmarks(read(CLIP / "truth.mp4"), detect)
  following = iter(landmarks)

  def measure(truth: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
    scores.add(truth, outputs, next(following))

  restored = restore(restorer, read(CLIP / "input.mp4"), detect)
  picture = demo.show_clip(CLIP, restored, NAME, measure, args.out)
  table.scores["face"] = scores.scores
  face = landmarks[picture.number].mean(0)
  demo.finish(args.out, demo.side_by_side(picture.images, ZOOM, face), table)


def new_scores() -> FaceClipScore:
  """Scores of both methods, by the networks that ship."""
  networks = make_networks(identity_params=identity.load(), mesh_params=mesh.load())
  return FaceClipScore(networks, [BICUBIC, NAME])


def read(path: pathlib.Path) -> list[Frame]:
  """The frames of a clip that is short."""
  with video.open_reader(str(path)) as reader:
    return list(reader)


def find_landmarks(frames: Sequence[Frame], detect: Detector) -> np.ndarray:
  """The landmarks of a clip's face, [t 5 2] in pixels of its frames.

  Raises:
    UserError: there is not one face in all frames.
  """
  faces, total = find_faces((frame.image for frame in frames), detect)
  for face in faces:
    if len(face.frames) == total:
      return face.track.landmarks
  raise UserError(f"{CLIP}: its truth has no face throughout; get the whole repository again")


def restore(
  restorer: streaming.Restorer, frames: Sequence[Frame], detect: Detector
) -> Iterator[tuple[np.ndarray, Frame]]:
  """The frames of a clip, which are enlarged already, and restored."""
  size = restorer.model.arch.image_size
  faces, _ = find_faces((frame.image for frame in frames), detect, size=size)
  for result in restore_faces(frames, faces, restorer.stream_tracks, size=size, input_colors=True):
    yield result.frame.image, dataclasses.replace(result.frame, image=result.image)


if __name__ == "__main__":
  cli.run(main)
