"""Makes a face detector by name; all have one function type, `Detector`.

`mtcnn` ships with its weights and is the default. The others are RetinaFace and need a checkpoint:
`retinaface_resnet50` and `retinaface_mobile0.25` take the files that the released KEEP downloads
(detection_Resnet50_Final.pth, detection_mobilenet0.25_Final.pth), `retinaface_mobile0.25_1mb` the
mobilenet0.25_Final.pth of biubug6/Face-Detector-1MB-with-landmark, whose layers have the same
shapes but other ReLUs and anchors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from vsr_jax.errors import UserError
from vsr_jax.faces import mtcnn, mtcnn_conversion, retinaface, retinaface_conversion
from vsr_jax.faces.detections import BatchDetector, Detections, Detector, check_frame


class _Retina(NamedTuple):
  """A RetinaFace and the longer side that its frames are reduced to by default.

  ResNet-50 costs about a tenth of a TFLOP a 640x360 frame; the 1 MB network was trained on
  pictures of 300 pixels, and its landmarks are the better the closer frames are to that.
  """

  net: retinaface.RetinaFace
  max_side: int


_MTCNN_SIDE = 1280
_RETINA = {
  "retinaface_mobile0.25": _Retina(retinaface.MOBILE, 1280),
  "retinaface_mobile0.25_1mb": _Retina(retinaface.MOBILE_1MB, 640),
  "retinaface_resnet50": _Retina(retinaface.RESNET50, 640),
}
NAMES = ("mtcnn", *_RETINA)


def make_detector(
  name: str = "mtcnn",
  weights: str | Path | None = None,
  *,
  max_side: int | None = None,
  min_face: float = mtcnn.MIN_FACE,
) -> Detector:
  """Makes a detector of single frames.

  Args:
    name: one of `NAMES`.
    weights: RetinaFace's checkpoint; for MTCNN None, or a folder with facenet-pytorch's files.
    max_side: frames whose longer side exceeds this are reduced to it for the detection, by area;
      what is found is in the pixels of the frame given. None: 1280 for mtcnn and
      retinaface_mobile0.25, 640 for the others.
    min_face: faces whose box's longer side is below this, in pixels of the frame given, are
      left out; a larger value makes MTCNN faster.

  Returns:
    the function from a uint8 RGB frame [h w 3] to its `Detections`; it raises `UserError` for
    another array, and compiles once a frame size.

  Raises:
    UserError: the name is unknown, the weights are missing or do not fit, or a size is too small.
  """
  detect = make_batch_detector(name, weights, max_side=max_side, min_face=min_face)
  return lambda frame: detect([frame])[0]


def make_batch_detector(
  name: str = "mtcnn",
  weights: str | Path | None = None,
  *,
  max_side: int | None = None,
  min_face: float = mtcnn.MIN_FACE,
) -> BatchDetector:
  """Makes a detector of several frames of one size at once; see `make_detector`.

  The frames are batched, which uses an accelerator better; RetinaFace compiles a program for every
  number of frames.
  """
  if not min_face >= 1 or (max_side is not None and max_side < 32):
    raise UserError(
      f"min_face {min_face}, max_side {max_side}: give at least 1 and at least 32 pixels"
    )
  if name == "mtcnn":
    params = mtcnn_conversion.load(weights)
    run = functools.partial(mtcnn.detect, params)
    side = max_side or _MTCNN_SIDE
    return functools.partial(_detect, run, side, min_face, passes_min_face=True)
  if name not in _RETINA:
    raise UserError(f"{name}: no such face detector; choose one of {', '.join(NAMES)}")
  if weights is None:
    raise UserError(f"{name}: its weights do not ship; name its checkpoint, or choose mtcnn")
  net, side = _RETINA[name]
  run = functools.partial(retinaface.detect, net, retinaface_conversion.load(net, weights))
  return functools.partial(_detect, run, max_side or side, min_face, passes_min_face=False)


def _detect(
  run: Callable[..., list[Detections]],
  max_side: int,
  min_face: float,
  frames: Sequence[np.ndarray],
  *,
  passes_min_face: bool,
) -> list[Detections]:
  """Reduces the frames, runs a detector and returns to the frames' own pixels."""
  for frame in frames:
    check_frame(frame)
  if len({frame.shape for frame in frames}) > 1:
    raise UserError("frames of several sizes: detect in those of one size at a time")
  if not frames:
    return []
  height, width = frames[0].shape[:2]
  part = min(1, max_side / max(height, width))
  size = (max(1, round(width * part)), max(1, round(height * part)))
  if part < 1:
    frames = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
  options = {"min_face": min_face * part} if passes_min_face else {}
  scale = np.array([width / size[0], height / size[1]], np.float32)
  return [_large_enough(_scaled(found, scale), min_face) for found in run(frames, **options)]


def _scaled(found: Detections, scale: np.ndarray) -> Detections:
  return Detections(found.boxes * np.tile(scale, 2), found.scores, found.landmarks * scale)


def _large_enough(found: Detections, min_face: float) -> Detections:
  return found[(found.boxes[:, 2:] - found.boxes[:, :2]).max(1, initial=0) >= min_face]
