"""Scores restored clips of faces frame by frame: what docs/metrics.md defines, in constant memory.

The metrics are functions of what networks see (`vsr_jax/metrics`); here frames pass through the
networks. Faces are looked at in one place in the truth and in every output, which the landmarks of
the truth tell.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from keep_jax.forward import to_signed
from vsr_jax import lpips
from vsr_jax.errors import UserError
from vsr_jax.faces import align, identity, mesh
from vsr_jax.flow.estimators import Estimator
from vsr_jax.flow.following import Follower, scaled
from vsr_jax.metrics import Score, Sums, warping
from vsr_jax.metrics.faces import (
  AKD,
  IDS,
  SIGMA_AKD,
  SIGMA_IDS,
  TLME,
  identity_similarity,
  keypoint_distance,
  landmark_motion_error,
)
from vsr_jax.metrics.magnitude import magnitude, range_of
from vsr_jax.metrics.pictures import rgb_psnr, ssim
from vsr_jax.metrics.sums import LPIPS, PSNR, SSIM
from vsr_jax.programs import CompiledByShape

METRICS = (PSNR, SSIM, LPIPS, IDS, AKD, SIGMA_IDS, SIGMA_AKD, TLME, warping.WARPING)

# The square of an aligned face of 512 pixels that the face mesh sees: left, top and side. It is the
# largest within it about (257, 297), which is about the middle of the landmarks. In all of the
# aligned face the landmarks are 3.6 instead of 2.7 pixels from those in the square that MediaPipe
# would take, on average of 48 portraits.
MESH_SQUARE = (42.0, 82.0, 430.0)
LEAST_SCORE = 0.5  # of the face mesh, from which on a true frame shows a face

TRUTH = "truth"  # the row of what is measured of the truth itself

Frame = np.ndarray  # uint8 RGB [h w 3]
Points = np.ndarray  # [k 2], (x, y)


class Networks(NamedTuple):
  """What looks at frames; None: what it measures is left out.

  Attributes:
    distance: LPIPS of two frames.
    embed: the identity embedding [d] of the face with five landmarks [5 2] in a frame.
    find: its 468 landmarks [468 2], in pixels of the aligned face of 512; and a score, from 0 to 1,
      for there being a face.
    follow: the flow [1 h w 2] from a frame to the one before, given as (before, frame), and where
      it can be trusted, bool [1 h w].
  """

  distance: Callable[[Frame, Frame], float] | None = None
  embed: Callable[[Frame, Points], np.ndarray] | None = None
  find: Callable[[Frame, Points], tuple[Points, float]] | None = None
  follow: Callable[[Frame, Frame], tuple[jax.Array, jax.Array]] | None = None


def make_networks(
  lpips_params: lpips.Params | None = None,
  identity_params: Any = None,
  mesh_params: Any = None,
  flow: tuple[Estimator, Any] | None = None,
) -> Networks:
  """The networks of which there are parameters, as functions of frames."""
  found: dict[str, Any] = {}
  if lpips_params is not None:
    found["distance"] = functools.partial(_distance, _program("LPIPS", _lpips), lpips_params)
  if identity_params is not None:
    program = _program("the identity of a face", identity.embed)
    found["embed"] = functools.partial(_embed, program, identity_params)
  if mesh_params is not None:
    program = _program("the landmarks of a face", mesh.landmarks)
    found["find"] = functools.partial(_find, program, mesh_params)
  if flow is not None:
    found["follow"] = Follower(*flow, _flow_and_mask)
  return Networks(**found)


def _program(name: str, function: Callable) -> CompiledByShape:
  return CompiledByShape(jax.jit(function), lambda *_: name)


def _lpips(params: lpips.Params, a: jax.Array, b: jax.Array) -> jax.Array:
  return lpips.distance(params, to_signed(a)[None], to_signed(b)[None])[0]


def _distance(program: CompiledByShape, params: lpips.Params, a: Frame, b: Frame) -> float:
  return float(program(params, a, b))


def _embed(program: CompiledByShape, params: Any, frame: Frame, points: Points) -> np.ndarray:
  face = identity.align(frame, points)
  return np.asarray(program(params, np.asarray(face, np.float32)[None])[0])


def _find(
  program: CompiledByShape, params: Any, frame: Frame, points: Points
) -> tuple[Points, float]:
  left, top, side = MESH_SQUARE
  matrix = align.fit(points[None], robust=False)[0][0]  # to the aligned face of 512 pixels
  scale = mesh.SIZE / side
  # Pixel centres have whole coordinates.
  matrix = scale * matrix
  matrix[:, 2] += 0.5 * (scale - 1) - scale * np.array([left, top])
  face = align.align_reduced(frame, matrix, mesh.SIZE)
  found, score = program(params, face[None].astype(np.float32) / 255)
  places = np.asarray(found[0, :, :2], np.float64)
  return (places - 0.5 * (scale - 1)) / scale + (left, top), float(score[0])


def _flow_and_mask(
  estimator: Estimator, params: Any, before: Any, features: Any, pixels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The flow [1 h w 2] from a frame to the one before and where it is good, for `pixels` [h w]."""
  join = functools.partial(jax.tree.map, lambda *x: jnp.concatenate(x))
  flows = estimator.between(params, join(features, before), join(before, features))
  back, forth = jnp.split(scaled(flows, *pixels.shape), 2)
  return back, warping.visible(back, forth)


@jax.jit
def _warping_error(before: Frame, frame: Frame, flow: jax.Array, mask: jax.Array) -> jax.Array:
  a, b = (jnp.asarray(x, jnp.float32)[None] / 255 for x in (before, frame))
  return warping.warping_error(a, b, flow, mask)[0]


class _Seen(NamedTuple):
  """A frame and what the networks saw in it; None: nothing, or not looked at."""

  frame: Frame
  identity: np.ndarray | None = None
  points: Points | None = None


@dataclasses.dataclass
class _Part:
  """Frames of a clip whose motion is alike: how many, and `FaceClipScore.values` of them."""

  values: dict[str, dict[str, list[float]]]
  frames: int = 0


class FaceClipScore:
  """Scores several methods on one clip, frame by frame, holding no more than the previous frames.

  What is measured follows from the networks; PSNR and SSIM always are.

  Attributes:
    values: method -> measure -> one value a frame, or a pair of frames, that has one. The truth is
      among the methods, for its own warping error.
    faces: numbers of the frames in which the truth shows a face. Measures of faces are of these,
      TLME of pairs of these.
  """

  def __init__(self, networks: Networks, methods: Sequence[str]):
    names = [*methods, TRUTH]
    self.values: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    self.faces: list[int] = []
    self._parts: dict[str, _Part] = {}
    self._networks = networks
    self._frames = 0
    self._truth: _Seen | None = None
    self._outputs: dict[str, _Seen] = {}

  def add(self, truth: Frame, outputs: Mapping[str, Frame], landmarks: Points) -> None:
    """Takes the clip's next frame.

    Args:
      truth: uint8 RGB [h w 3]; not to be changed afterwards, as the outputs are not.
      outputs: what each method made of it, of the same size.
      landmarks: the true face's eyes, nose and mouth corners, [5 2] in pixels.

    Raises:
      UserError: a value is not finite.
    """
    there, has_face = self._look(truth, landmarks)
    there = there if has_face else _Seen(truth)
    if has_face:
      self.faces.append(self._frames)
    before, followed, part = self._truth, None, None
    if before is not None and self._networks.follow is not None:
      flow, mask = self._networks.follow(before.frame, truth)
      followed = (flow, mask) if bool(mask.any()) else None
      if moved := range_of(float(magnitude(flow)[0])):
        part = self._parts.setdefault(moved, _Part({name: {} for name in self.values}))
        part.frames += 1
      self._keep(TRUTH, _warping(before.frame, truth, followed), part)
    for method, frame in outputs.items():
      seen = self._look(frame, landmarks)[0] if has_face else _Seen(frame)
      values = self._compare(there, seen)
      if before is not None:
        values |= _compare_motion(before, there, self._outputs[method], seen, followed)
      self._keep(method, values, part)
      self._outputs[method] = seen
    self._truth = there
    self._frames += 1

  @property
  def latest(self) -> dict[str, dict[str, float]]:
    """By method, the measures of the latest frame that every frame has: PSNR, SSIM and LPIPS."""
    names = ("psnr", "ssim", "lpips")
    return {
      method: {name: values[name][-1] for name in names if name in values}
      for method, values in self.values.items()
      if method != TRUTH
    }

  @property
  def scores(self) -> dict[str, Score]:
    """The scores of the frames so far, by method.

    Raises:
      UserError: faces are to be measured, and the truth shows none.
    """
    if self._networks.find is not None and not self.faces:
      raise UserError(
        "the truth shows no face; leave the clip out, or name metrics that need none, such as "
        "--metrics psnr,ssim"
      )
    return {
      method: Score(
        self._frames,
        _sums(values),
        {name: Score(p.frames, _sums(p.values[method])) for name, p in self._parts.items()},
      )
      for method, values in self.values.items()
    }

  def _look(self, frame: Frame, landmarks: Points) -> tuple[_Seen, bool]:
    """What the networks see in a frame, and whether there is a face."""
    if self._networks.find is None:
      return _Seen(frame), False
    points, score = self._networks.find(frame, landmarks)
    embed = self._networks.embed
    embedding = None if embed is None else embed(frame, landmarks)
    return _Seen(frame, embedding, points), score >= LEAST_SCORE

  def _compare(self, truth: _Seen, output: _Seen) -> dict[str, float]:
    """The measures of a frame."""
    frames = truth.frame, output.frame
    values = {"psnr": rgb_psnr(*frames, border=0), "ssim": ssim(*frames, border=0)}
    if self._networks.distance is not None:
      values["lpips"] = self._networks.distance(*frames)
    if truth.identity is not None and output.identity is not None:
      similarity = identity_similarity(truth.identity[None], output.identity[None])
      values["ids"] = float(similarity[0])
    if truth.points is not None and output.points is not None:
      values["akd"] = float(keypoint_distance(truth.points[None], output.points[None])[0])
    return values

  def _keep(self, method: str, values: Mapping[str, float], part: _Part | None) -> None:
    for name, x in values.items():
      if not math.isfinite(x) and (name, x) != ("psnr", math.inf):
        raise UserError(f"frame {self._frames} of {method}: {name} is {x}, not finite")
      for kept in (self.values, *([part.values] if part else [])):
        kept[method].setdefault(name, []).append(x)


def _sums(values: Mapping[str, Sequence[float]]) -> dict[str, Sums]:
  return {name: Sums.of(x) for name, x in values.items()}


def _compare_motion(
  true_before: _Seen,
  truth: _Seen,
  before: _Seen,
  output: _Seen,
  followed: tuple[jax.Array, jax.Array] | None,
) -> dict[str, float]:
  """The measures of a frame and the one before it."""
  values = _warping(before.frame, output.frame, followed)
  frames = true_before, truth, before, output
  points = [seen.points for seen in frames if seen.points is not None]
  if len(points) == len(frames):
    values["tlme"] = float(landmark_motion_error(np.stack(points[:2]), np.stack(points[2:]))[0])
  return values


def _warping(
  before: Frame, frame: Frame, followed: tuple[jax.Array, jax.Array] | None
) -> dict[str, float]:
  """The warping error along a flow that can be trusted somewhere; None: there is none."""
  if followed is None:
    return {}
  return {"warping": float(_warping_error(before, frame, *followed))}
