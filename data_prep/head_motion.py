"""Simulated motion of a portrait: where each pixel of each frame is taken from, and its light.

All of it is made up, not measured: smooth random curves of time move the head (turning, nodding,
tilting, shifting, before a background that moves less), the camera (a similarity and a
perspective), a mesh of long waves, the face (jaw, mouth's corners, brows, lids), and the light.

A warp is a function from points of a frame to points of the still. Coordinates are (x, y) with
the picture from 0 to 1, whatever its size: the centre of pixel i of n is (i + 0.5) / n.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from vsr_jax.faces import align


class Curve(NamedTuple):
  """A smooth random function of time: its standard deviation and frequencies, in Hz."""

  sigma: float
  slowest: float
  fastest: float


# At an amplitude of 1. Shifts are parts of the picture's side, angles radians, zooms logarithms.
MOTION = {
  "head_x": Curve(0.010, 0.15, 0.9),
  "head_y": Curve(0.008, 0.15, 1.2),
  "head_zoom": Curve(0.010, 0.1, 0.6),
  "roll": Curve(0.030, 0.15, 0.9),
  "yaw": Curve(0.110, 0.12, 0.9),
  "pitch": Curve(0.070, 0.15, 1.2),
  "camera_x": Curve(0.005, 0.2, 1.5),
  "camera_y": Curve(0.005, 0.2, 1.5),
  "camera_zoom": Curve(0.006, 0.1, 0.6),
  "camera_roll": Curve(0.008, 0.2, 1.0),
  "tilt_x": Curve(0.015, 0.1, 0.6),
  "tilt_y": Curve(0.015, 0.1, 0.6),
  "smile": Curve(0.5, 0.1, 0.8),
  "brow": Curve(0.5, 0.2, 1.0),
}
WAVES = 4  # of the mesh
WAVE = Curve(0.0025, 0.2, 1.2)
LIGHT = {
  "exposure": Curve(0.06, 0.1, 0.8),
  "slope_x": Curve(0.12, 0.1, 0.7),
  "slope_y": Curve(0.08, 0.1, 0.7),
  "warmth": Curve(0.015, 0.05, 0.4),
}
SYLLABLES = (2.0, 5.0)  # Hz, of the jaw
BLINKS = 0.4  # a second, on average
BLINK_SECONDS = 0.28
FLICKERS = 0.25  # a second: the light blinks, as that of a screen or a passing car
FLICKER_SECONDS = 0.16

CENTRE, NECK = (0.5, 0.55), (0.5, 0.95)
HEAD = (0.30, 0.42)  # half axes of the head in an aligned picture
REACH = (0.44, 0.54)  # half axes of what moves with it
DEPTH, NOSE_DEPTH = 0.30, 0.05


@dataclasses.dataclass(frozen=True)
class Motion:
  """The motion of one clip of t frames.

  Attributes:
    landmarks: float64 [5 2], those of the still.
    curves: by name of `MOTION` and `LIGHT`, and "jaw", "blink" (0 open, 1 closed), float64 [t].
    waves: float64 [n 4]: wave vector (x, y) and direction (x, y) of each wave of the mesh.
    heights: float64 [t n 2], the waves' heights, at two phases.
  """

  landmarks: np.ndarray
  curves: dict[str, np.ndarray]
  waves: np.ndarray
  heights: np.ndarray

  def __len__(self) -> int:
    return len(self.heights)


def template() -> np.ndarray:
  """The landmarks that a portrait aligned to FFHQ has on average, float64 [5 2]."""
  return (align.TEMPLATE + 0.5) / align.SIZE


def draw(
  rng: np.random.Generator,
  landmarks: np.ndarray,
  frames: int,
  *,
  rate: float = 25.0,
  amplitude: float = 1.0,
) -> Motion:
  """Draws the motion of a clip.

  Args:
    rng: determines everything.
    landmarks: float64 [5 2]: eyes, nose, mouth's corners in the still, as parts of its side.
    frames: t, at least 1.
    rate: frames per second.
    amplitude: factor of all motion, but for lids and jaw of at most 1, and not of the light; up to
      2 nothing folds over.
  """
  seconds = np.arange(frames) / rate
  curves = {name: amplitude * _wave(rng, seconds, curve) for name, curve in MOTION.items()}
  speech = _wave(rng, seconds, Curve(1, *SYLLABLES))
  loudness = np.clip(0.5 + _wave(rng, seconds, Curve(0.5, 0.1, 0.6)), 0, 1)
  curves["jaw"] = min(amplitude, 1) * loudness * np.clip(0.4 + 0.4 * speech, 0, 1)
  curves["blink"] = min(amplitude, 1) * _pulses(rng, seconds, BLINKS, BLINK_SECONDS)
  curves |= {name: _wave(rng, seconds, curve) for name, curve in LIGHT.items()}
  sign = rng.choice([-1, 1])
  curves["exposure"] += 0.12 * sign * _pulses(rng, seconds, FLICKERS, FLICKER_SECONDS)
  angles, cycles = rng.uniform(0, 2 * np.pi, (2, WAVES)), rng.uniform(1, 2.2, WAVES)
  vectors = 2 * np.pi * cycles[:, None] * np.stack([np.cos(angles[0]), np.sin(angles[0])], 1)
  directions = np.stack([np.cos(angles[1]), np.sin(angles[1])], 1)
  heights = [[_wave(rng, seconds, WAVE) for _ in range(2)] for _ in range(WAVES)]
  return Motion(
    np.asarray(landmarks, np.float64),
    curves,
    np.concatenate([vectors, directions], 1),
    amplitude * np.moveaxis(np.array(heights), -1, 0),
  )


def _wave(rng: np.random.Generator, seconds: np.ndarray, curve: Curve) -> np.ndarray:
  """A sum of three sines of random frequencies and phases."""
  low, high = np.log([curve.slowest, curve.fastest])
  frequencies, phases = np.exp(rng.uniform(low, high, 3)), rng.uniform(0, 2 * np.pi, 3)
  sines = np.sin(2 * np.pi * frequencies * seconds[:, None] + phases)
  return curve.sigma * np.sqrt(2 / 3) * sines.sum(1)


def _pulses(
  rng: np.random.Generator, seconds: np.ndarray, often: float, width: float
) -> np.ndarray:
  """Pulses from 0 to 1 and back, `often` a second on average, each `width` seconds long."""
  length = seconds[-1] + 2 * width
  centres = rng.uniform(-width, length - width, rng.poisson(often * length))
  away = np.abs(seconds[:, None] - centres) / (width / 2)
  return np.where(away < 1, np.cos(np.pi / 2 * np.minimum(away, 1)) ** 2, 0).max(1, initial=0)


def source_points(motion: Motion, frame: int | slice, points: np.ndarray) -> np.ndarray:
  """Where the still has what a frame shows at some points.

  Args:
    motion: of the clip.
    frame: which one; or several, whose points are `points[i]` for the i-th of them.
    points: float [... 2], of one frame; [t n 2] of several.

  Returns:
    [... 2] of the same type, in the still.
  """
  x, y = points[..., 0], points[..., 1]
  at = {name: _column(curve[frame], x) for name, curve in motion.curves.items()}
  x, y = _camera(at, x, y)
  landmarks = motion.landmarks.tolist()  # plain numbers keep the points' type
  x, y = _head(at, landmarks[2], x, y)
  x, y = _mesh(motion, frame, x, y)
  return np.stack(_face(at, landmarks, x, y), -1)


def _column(values: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Values of one frame, or by frame, as an array of the type of `x` that broadcasts with it."""
  values = np.asarray(values, x.dtype)
  return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def _turned(
  x: np.ndarray, y: np.ndarray, angle: np.ndarray, zoom: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  scale = np.exp(-zoom)
  cos, sin = scale * np.cos(angle), scale * np.sin(angle)
  return cos * x + sin * y, cos * y - sin * x


def _camera(
  at: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A similarity and a perspective of the whole picture."""
  x, y = x - 0.5 - at["camera_x"], y - 0.5 - at["camera_y"]
  x, y = _turned(x, y, at["camera_roll"], at["camera_zoom"])
  distance = 1 + at["tilt_x"] * x + at["tilt_y"] * y
  return 0.5 + x / distance, 0.5 + y / distance


def _head(
  at: dict[str, np.ndarray], nose: list[float], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Moves the head as a solid with depth, fading towards the background and the shoulders."""
  u, v = (x - CENTRE[0]) / REACH[0], (y - CENTRE[1]) / REACH[1]
  weight = np.exp(-0.7 * np.square(u * u + v * v))
  dx, dy = x - NECK[0], y - NECK[1]
  rx, ry = _turned(dx, dy, at["roll"], at["head_zoom"])
  u, v = (x - CENTRE[0]) / HEAD[0], (y - CENTRE[1]) / HEAD[1]
  depth = DEPTH * np.exp(-1.3 * (u * u + v * v))
  near = (np.square(x - nose[0]) + np.square(y - nose[1])) / 0.06**2
  depth = depth + NOSE_DEPTH * np.exp(-near)
  x = x + weight * (rx - dx - at["head_x"]) - depth * np.sin(at["yaw"])
  y = y + weight * (ry - dy - at["head_y"]) - depth * np.sin(at["pitch"])
  return x, y


def _mesh(
  motion: Motion, frame: int | slice, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Adds long waves of displacement."""
  dx, dy = 0.0, 0.0
  for i, (kx, ky, ax, ay) in enumerate(motion.waves.tolist()):
    even, odd = (_column(motion.heights[frame, i, phase], x) for phase in range(2))
    phase = kx * x + ky * y
    height = even * np.cos(phase) + odd * np.sin(phase)
    dx, dy = dx + ax * height, dy + ay * height
  return x + dx, y + dy


def _face(
  at: dict[str, np.ndarray], landmarks: list[list[float]], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Moves brows, lids, mouth's corners and jaw; lengths are parts of the eyes' distance."""
  eyes, corners = landmarks[:2], landmarks[3:]
  unit = math.dist(*eyes)
  middle = [sum(pair) / 2 for pair in zip(*corners, strict=True)]
  # Jaw: below the line between the lips all moves down, above it the upper lip a little up.
  u, v = (x - middle[0]) / unit, (y - middle[1]) / unit
  across = _band(u, 0.75)
  opened = _smooth_step(v / 0.22) * (1 - _smooth_step((v - 0.45) / 0.8))
  lifted = _bump(v, -0.35, -0.03, 0.03)
  y = y - unit * at["jaw"] * across * (0.09 * opened - 0.015 * lifted)
  for side, corner in zip((-1, 1), corners, strict=True):
    near = (np.square(x - corner[0]) + np.square(y - corner[1])) / (0.25 * unit) ** 2
    pull = unit * at["smile"] * np.exp(-near)
    x, y = x - side * 0.045 * pull, y + 0.04 * pull
  for eye in eyes:
    u, v = (x - eye[0]) / unit, (y - eye[1]) / unit
    raised = _band(u, 0.5) * np.exp(-np.square((v + 0.42) / 0.22))
    y = y + unit * 0.05 * at["brow"] * raised
    # The upper lid comes down, the lower one a little up, and what is between becomes a line.
    closed = 0.13 * _bump(v, -0.2, 0.06, 0.2) - 0.06 * _bump(v, 0.06, 0.16, 0.45)
    y = y - unit * at["blink"] * _band(u, 0.45) * closed
  return x, y


def _band(x: np.ndarray, width: float) -> np.ndarray:
  """1 in the middle, 0 beyond about twice the width."""
  return np.exp(-np.square(np.square(x / width)))


def _smooth_step(x: np.ndarray) -> np.ndarray:
  x = np.clip(x, 0, 1)
  return x * x * (3 - 2 * x)


def _bump(x: np.ndarray, start: float, top: float, end: float) -> np.ndarray:
  """Rises from 0 at `start` to 1 at `top` and falls to 0 at `end`."""
  return _smooth_step((x - start) / (top - start)) * _smooth_step((end - x) / (end - top))


def moved_landmarks(motion: Motion) -> np.ndarray:
  """Where the still's landmarks are in each frame, float64 [t 5 2], by Newton's method."""
  found = np.tile(motion.landmarks, (len(motion), 1, 1))
  step, every = 1e-6, slice(None)
  for _ in range(30):
    error = source_points(motion, every, found) - motion.landmarks
    if np.abs(error).max() < 1e-10:
      break
    slopes = [
      (source_points(motion, every, found + offset) - motion.landmarks - error) / step
      for offset in step * np.eye(2)
    ]
    change = np.linalg.solve(np.stack(slopes, -1), error[..., None])[..., 0]
    found -= np.clip(change, -0.02, 0.02)  # lids bend the warp too much for longer steps
  return found


def light(motion: Motion, frame: int, points: np.ndarray) -> np.ndarray:
  """By what the light multiplies the colours at points [... 2] of a frame: float RGB [... 3].

  Beyond the portrait it is as at its border.
  """
  points = np.clip(points, 0, 1)
  at = {name: motion.curves[name][frame] for name in LIGHT}
  slope = at["slope_x"] * (points[..., 0] - 0.5) + at["slope_y"] * (points[..., 1] - 0.5)
  colour = np.array([at["warmth"], 0.0, -at["warmth"]])
  return np.exp(at["exposure"] + slope[..., None] + colour)
