"""Pictures of an evaluation, by clip: a strip of frames, and identity and landmarks over time."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vsr_jax import drawing
from vsr_jax.files import write_whole
from vsr_jax.images import encode_image
from vsr_jax.plotting import new_figure

STRIP_FRAMES = 4  # rows of a strip
STRIP_HEIGHT = 256  # a row's, in pixels


class FrameStrip:
  """Collects a few frames of a clip, spread over its length: input, methods, truth."""

  def __init__(self, length: int):
    picks = np.linspace(0, length - 1, min(STRIP_FRAMES, length)).round().astype(int)
    self._frames = set(picks.tolist())
    self._rows: list[dict[str, np.ndarray]] = []

  def add(
    self, number: int, low: np.ndarray, outputs: Mapping[str, np.ndarray], truth: np.ndarray
  ) -> None:
    """Takes a frame of the clip: uint8 RGB [h w 3] each; `low` may be of another size."""
    if number in self._frames:
      row = {"input": low, **outputs, "truth": truth}
      shown = {name: drawing.at_height(image, STRIP_HEIGHT) for name, image in row.items()}
      self._rows.append(shown)

  def save(self, path: pathlib.Path) -> None:
    """Writes the strip as PNG; raises `OSError` where it cannot be written."""
    write_whole(path, encode_image(drawing.columns(self._rows, STRIP_HEIGHT)))


def save_curves(
  path: pathlib.Path,
  title: str,
  frames: Sequence[int],
  values: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
  """Draws a clip's identity similarity and landmark distance over time, a line a method, as PNG.

  Args:
    path: the file.
    title: of the picture.
    frames: numbers of the frames that the values are of.
    values: by method: "ids" and "akd", one a frame; one of them may be missing.

  Raises:
    UserError: matplotlib is not installed.
    OSError: the file cannot be written.
  """
  labels = {
    "ids": "identity similarity (higher is better)",
    "akd": "landmark distance, pixels at 512 (lower is better)",
  }
  drawn = [name for name in labels if any(name in series for series in values.values())]
  page = new_figure(9, 3 * len(drawn))
  axes = page.subplots(len(drawn), 1, squeeze=False, sharex=True)[:, 0]
  for name, axis in zip(drawn, axes, strict=True):
    for method, series in values.items():
      axis.plot(frames, series[name], label=method, linewidth=1.2, marker="." * (len(frames) < 2))
    axis.set_title(labels[name], fontsize="medium", loc="left")
    axis.grid(alpha=0.3)
  axes[0].legend(fontsize="small")
  axes[-1].set_xlabel("frame")
  page.suptitle(title)
  data = io.BytesIO()
  page.savefig(data, dpi=110, format="png")
  write_whole(path, data.getvalue())
