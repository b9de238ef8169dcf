"""Strips of an evaluation: a few frames of a clip side by side, with their scores beside them."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vsr_jax import drawing
from vsr_jax.files import write_whole
from vsr_jax.images import encode_image

FRAMES = 4  # rows of a strip
HEIGHT = 256  # a row's, in pixels

INPUT, TRUTH = "input", "truth"  # the first and the last column


class FrameStrip:
  """Collects a few frames of a clip, spread over its length: input, methods, truth."""

  def __init__(self, numbers: Sequence[int], side: int | None = None):
    """Begins a clip.

    Args:
      numbers: of the frames that `add` will get, in order.
      side: of the square about the middle that is shown, in pixels of the truth; None for all.
    """
    picks = np.linspace(0, len(numbers) - 1, min(FRAMES, len(numbers))).round().astype(int)
    self._picks = {numbers[i] for i in picks.tolist()}
    self._side = side
    self._rows: list[dict[str, np.ndarray]] = []
    self._told: list[dict] = []

  def shows(self, number: int) -> bool:
    """Whether a frame is among those that are kept."""
    return number in self._picks

  def add(
    self,
    number: int,
    low: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    truth: np.ndarray,
    scores: Mapping[str, Mapping[str, float]],
    maps: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    """Takes a frame of the clip.

    Args:
      number: the frame's.
      low: the input, uint8 RGB [h w 3]; may be of another size than the truth.
      outputs: by method, of the truth's size.
      truth: the truth.
      scores: by method the frame's measures.
      maps: further pictures of the whole frame, by title; the same in every frame.
    """
    if not self.shows(number):
      return
    row = {INPUT: low, **outputs, **(maps or {}), TRUTH: truth}
    if self._side:
      part = min(1.0, self._side / truth.shape[0]), min(1.0, self._side / truth.shape[1])
      row = {name: _middle(image, part) for name, image in row.items()}
    self._rows.append({name: drawing.at_height(image, HEIGHT) for name, image in row.items()})
    finite = {
      method: {name: x for name, x in values.items() if math.isfinite(x)}
      for method, values in scores.items()
    }
    self._told.append({"number": number, "scores": finite})

  def save(self, folder: pathlib.Path, name: str) -> None:
    """Writes NAME.png, and NAME.json: where each column is, and the frames' numbers and scores.

    Raises:
      OSError: a file cannot be written.
    """
    widths = {title: image.shape[1] for title, image in self._rows[0].items()}
    told = {"height": HEIGHT, "widths": widths, "frames": self._told}
    write_whole(folder / f"{name}.png", encode_image(drawing.columns(self._rows, HEIGHT)))
    write_whole(folder / f"{name}.json", json.dumps(told, allow_nan=False))


def _middle(image: np.ndarray, part: tuple[float, float]) -> np.ndarray:
  """The middle of an image, a part of its height and of its width."""
  sides = [max(1, round(x * whole)) for x, whole in zip(part, image.shape[:2], strict=True)]
  top, left = ((whole - x) // 2 for x, whole in zip(sides, image.shape[:2], strict=True))
  return image[top : top + sides[0], left : left + sides[1]]
