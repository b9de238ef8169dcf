"""How blurry low-resolution frames are made from sharp video: the exposure model.

Ordinary footage of 24-30 frames per second is too coarse in time for plain
averaging, which leaves ghosts; sub-frames are interpolated by optical flow
first. High-frame-rate footage is averaged as it is. Pure functions of the frames.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np

from vsr_jax.ops.resize import resize_bicubic

# Mean absolute grey-level differences, of 255, above which two neighbouring frames count as a cut.
# Measured: neighbours of hand-held and fast sports clips reach 5 after motion
# compensation (25 before, at 30 frames per second); frames of different scenes start at 32.
CUT_RESIDUAL = 12.0
CUT_DIFFERENCE = 30.0
# Sub-frames are at most this many pixels apart where motion is fast: half a pixel after x4.
SUBFRAME_STEP = 2.0
MAX_SUBFRAMES = 32


class ExposedFrame(NamedTuple):
  """A sharp frame and its blurry exposure, uint8 [h w 3] each; `scene` counts cuts from 0."""

  scene: int
  sharp: np.ndarray
  blurry: np.ndarray


class _Frame(NamedTuple):
  rgb: np.ndarray  # uint8 [h w 3]
  grey: np.ndarray  # uint8 [h w]
  light: np.ndarray  # float32 [h w 3], linear


class _Motion(NamedTuple):
  forward: np.ndarray  # float32 [h w 2], pixels, from the earlier frame to the later
  backward: np.ndarray  # the reverse
  # Samples of the motion: start [n 2], displacement [n 2], and time of the start, 0 or 1, [n 1].
  splats: tuple[np.ndarray, np.ndarray, np.ndarray]
  speed: float  # 99th percentile of the forward flow's length


@dataclasses.dataclass
class _Shot:
  light: np.ndarray
  sharp: np.ndarray | None = None


def expose(
  frames: Iterable[np.ndarray],
  *,
  stride: int = 1,
  shutter: float = 1.0,
  subframes: int = 8,
  gamma: float = 2.2,
  interpolate: bool = True,
) -> Iterator[ExposedFrame]:
  """Gives every `stride`-th frame together with its blurry exposure.

  The blurry frame at time t (in source frames) is the mean light of the exposure
  [t - e/2, t + e/2] with e = shutter * stride: centred on the sharp frame, the
  whole frame interval for a shutter of 1, as in REDS. The mean is taken over
  light, value ** gamma, and the result is encoded again. Between two source
  frames light is sampled at the midpoints of at least `subframes` equal steps a
  source interval, more where motion is fast, each sub-frame warped from both
  neighbours by dense flow (DIS, both directions) and blended by time and by
  agreement with the motion there, so that occluded content is taken from the
  frame that shows it. With `interpolate=False` (high frame rates) light is
  linear in time between source frames, which is the trapezoidal mean. Frames
  whose exposure would cross a cut or an end of the clip are left out.

  Args:
    frames: uint8 RGB [h w 3] each, all of one size, in display order.
    stride: source frames between outputs.
    shutter: fraction of the output frame interval that is exposed, in (0, 1].
    subframes: number of sub-frames per source interval, at least.
    gamma: exponent of the encoding; 1 averages the encoded values.
    interpolate: whether to interpolate sub-frames by flow.

  Yields:
    Frames in order. Memory does not grow with the clip's length.

  Raises:
    ValueError: a parameter is out of range.
  """
  _check(stride, shutter, subframes, gamma)
  half = Fraction(shutter).limit_denominator(1000) * stride / 2
  start = math.ceil(half)  # the first frame whose exposure lies inside the scene
  dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  scene, index, shots = 0, 0, {}
  prepared = (
    _Frame(rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), to_light(rgb, gamma)) for rgb in frames
  )
  for earlier, later in itertools.pairwise(prepared):
    motion = _motion(dis, earlier.grey, later.grey) if interpolate else None
    if _is_cut(earlier.grey, later.grey, motion):
      scene, index, shots = scene + 1, 0, {}
      continue
    for t in _overlapping(index, start, stride, half):
      shot = shots.setdefault(t, _Shot(np.zeros_like(later.light)))
      low, high = (float(_limit_to_unit(x - index)) for x in (t - half, t + half))
      shot.light += _light_between(earlier, later, motion, low, high, subframes)
      if t in (index, index + 1):
        shot.sharp = (earlier if t == index else later).rgb
    index += 1
    for t in [t for t in shots if t + half <= index]:
      shot = shots.pop(t)
      yield ExposedFrame(scene, shot.sharp, from_light(shot.light / float(2 * half), gamma))


def hand_held(
  frames: Iterable[np.ndarray], speed: float, rng: np.random.Generator, margin: float = 0.1
) -> Iterator[np.ndarray]:
  """Adds the motion of an unsteady camera: frames are cropped by a window that moves.

  Footage from a tripod holds little motion to learn from. The window's path is a
  sum of sinusoids of random phase along each axis, with periods that differ by up
  to a factor of four; its offsets are whole pixels, so nothing is resampled.

  Args:
    frames: uint8 [h w 3] each.
    speed: root mean square speed of the window along either axis, in pixels per frame.
    rng: determines the path.
    margin: fraction of height and width that the window can move in; it shows 1 - margin of each.

  Yields:
    uint8 [h' w' 3], all of one size: 1 - margin of the input's height and width.
  """
  phases = rng.uniform(0, 2 * np.pi, (3, 2))
  pace = 2.0 ** rng.uniform(-1, 1, (3, 2))  # relative angular speeds
  pace /= np.sqrt((pace**2).mean(axis=0))
  for t, frame in enumerate(frames):
    room = margin * np.array(frame.shape[:2])
    # The mean of k sinusoids of amplitude a, angular speed w has speed a * w / sqrt(2 k).
    angular = pace * speed * np.sqrt(2 * len(pace)) / (room / 2)
    path = np.sin(angular * t + phases).mean(axis=0)
    top, left = np.rint(room / 2 * (1 + path)).astype(int)
    h, w = (np.array(frame.shape[:2]) - np.ceil(room)).astype(int)
    yield frame[top : top + h, left : left + w]


def to_light(image: np.ndarray, gamma: float) -> np.ndarray:
  """Converts encoded values to light: uint8 -> float32 in [0, 1], (value / 255) ** gamma."""
  return ((np.arange(256) / 255) ** gamma).astype(np.float32)[image]


def from_light(light: np.ndarray, gamma: float) -> np.ndarray:
  """Inverse of `to_light`, rounded and clipped to uint8."""
  value = np.clip(light, 0, 1) ** np.float32(1 / gamma)
  return np.floor(255 * value + 0.5).astype(np.uint8)


def halve(frame: np.ndarray) -> np.ndarray:
  """Averages 2x2 pixels: uint8 [h w 3] -> [h//2 w//2 3]; an odd last row or column is cut off."""
  h, w = frame.shape[0] // 2, frame.shape[1] // 2
  return cv2.resize(frame[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA)


def crop_to_multiple(frame: np.ndarray, scale: int) -> np.ndarray:
  """Cuts the right and bottom edges so that `scale` divides both sizes."""
  h, w = frame.shape[:2]
  return frame[: h - h % scale, : w - w % scale]


def downsample(frame: np.ndarray, scale: int) -> np.ndarray:
  """Reduces uint8 [s*h s*w 3] to [h w 3] by MATLAB's bicubic filter, as REDS does; s is `scale`."""
  return resize_bicubic(frame, Fraction(1, scale))


def _check(stride: int, shutter: float, subframes: int, gamma: float) -> None:
  if stride < 1 or subframes < 1 or gamma <= 0 or not 0 < shutter <= 1:
    raise ValueError(
      f"impossible exposure: stride {stride}, shutter {shutter}, subframes {subframes}, "
      f"gamma {gamma}"
    )


def _limit_to_unit(x: Fraction) -> Fraction:
  """Limits a time to [0, 1]."""
  return min(max(x, Fraction(0)), Fraction(1))


def _overlapping(index: int, start: int, stride: int, half: Fraction) -> Iterator[int]:
  """Yields output times whose exposure overlaps the source interval [index, index + 1]."""
  k = max(0, math.floor((index - half - start) / stride) + 1)
  while (t := start + k * stride) - half < index + 1:
    yield t
    k += 1


def _light_between(
  earlier: _Frame, later: _Frame, motion: _Motion | None, low: float, high: float, subframes: int
) -> np.ndarray:
  """Integrates light over times [low, high] within one source interval [0, 1]: float32 [h w 3]."""
  if motion is None:
    middle = (low + high) / 2
    return np.float32(high - low) * ((1 - middle) * earlier.light + middle * later.light)
  rate = min(max(subframes, math.ceil(motion.speed / SUBFRAME_STEP)), max(subframes, MAX_SUBFRAMES))
  n = math.ceil((high - low) * rate)
  total = np.zeros_like(earlier.light)
  for i in range(n):
    total += _interpolate(earlier.light, later.light, motion, low + (high - low) * (i + 0.5) / n)
  return np.float32((high - low) / n) * total


def _motion(dis: cv2.DISOpticalFlow, earlier: np.ndarray, later: np.ndarray) -> _Motion:
  forward = dis.calc(earlier, later, None)
  backward = dis.calc(later, earlier, None)
  grid = _grid(*earlier.shape)
  # Every second pixel of both frames gives a sample of the motion (DIS itself works at half the
  # resolution). They are sorted, the least consistent ones first: `_motion_at` writes them in this
  # order, so that better ones overwrite them.
  starts, ahead, back = (x[::2, ::2].reshape(-1, 2) for x in (grid, forward, backward))
  ahead_there = _sample(backward, grid + forward, cv2.INTER_LINEAR)[::2, ::2].reshape(-1, 2)
  back_there = _sample(forward, grid + backward, cv2.INTER_LINEAR)[::2, ::2].reshape(-1, 2)
  order = np.argsort(-_length(np.concatenate([ahead + ahead_there, back + back_there])).ravel())
  times = (order >= len(starts)).astype(np.float32)[:, None]
  starts = np.concatenate([starts, starts])[order]
  displacements = np.concatenate([ahead, -back])[order]
  speed = float(np.percentile(_length(forward), 99))
  return _Motion(forward, backward, (starts, displacements, times), speed)


def _interpolate(
  earlier: np.ndarray, later: np.ndarray, motion: _Motion, time: float
) -> np.ndarray:
  """Interpolates light at `time` in (0, 1) between two frames: float32 [h w 3]."""
  grid = _grid(*earlier.shape[:2])
  through = _motion_at(motion, grid, time)
  at_earlier = grid - np.float32(time) * through
  at_later = grid + np.float32(1 - time) * through
  # A frame has weight where the content that it shows moves with the motion found for this place.
  misfit_earlier = _length(_sample(motion.forward, at_earlier, cv2.INTER_LINEAR) - through)
  misfit_later = _length(_sample(motion.backward, at_later, cv2.INTER_LINEAR) + through)
  weight_earlier = np.float32(1 - time) * (np.exp(-misfit_earlier) + np.float32(1e-3))
  weight_later = np.float32(time) * (np.exp(-misfit_later) + np.float32(1e-3))
  share = (weight_later / (weight_earlier + weight_later))[..., None]
  first = _sample(earlier, at_earlier, cv2.INTER_CUBIC)
  return first + share * (_sample(later, at_later, cv2.INTER_CUBIC) - first)


def _motion_at(motion: _Motion, grid: np.ndarray, time: float) -> np.ndarray:
  """Motion from frame to frame of the content at each place at `time`: float32 [h w 2], pixels."""
  through = np.float32(1 - time) * motion.forward - np.float32(time) * motion.backward
  through = through[::2, ::2].copy()
  h, w = through.shape[:2]
  starts, displacements, times = motion.splats
  target = np.rint((starts + (np.float32(time) - times) * displacements) / 2).astype(np.int32)
  x, y = target[:, 0], target[:, 1]
  inside = np.flatnonzero((x >= 0) & (x < w) & (y >= 0) & (y < h))
  # Where indices repeat the last assignment stays: the most consistent sample.
  through.reshape(-1, 2)[y[inside] * w + x[inside]] = displacements[inside]
  through = np.dstack([cv2.medianBlur(channel, 3) for channel in cv2.split(through)])
  return _sample(through, grid / 2, cv2.INTER_LINEAR)


def _is_cut(earlier: np.ndarray, later: np.ndarray, motion: _Motion | None) -> bool:
  if motion is None:
    return cv2.absdiff(earlier, later).mean() > CUT_DIFFERENCE
  warped = _sample(later, _grid(*earlier.shape) + motion.forward, cv2.INTER_LINEAR)
  return cv2.absdiff(earlier, warped).mean() > CUT_RESIDUAL


def _grid(h: int, w: int) -> np.ndarray:
  x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
  return np.dstack([x, y])


def _sample(image: np.ndarray, points: np.ndarray, interpolation: int) -> np.ndarray:
  return cv2.remap(image, points, None, interpolation, borderMode=cv2.BORDER_REPLICATE)


def _length(vectors: np.ndarray) -> np.ndarray:
  return cv2.magnitude(vectors[..., 0], vectors[..., 1])
