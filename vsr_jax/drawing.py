"""Text over pictures, and pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np


def write_text(image: np.ndarray, text: str) -> None:
  """Writes white text on black into the upper left corner of a uint8 image, in place."""
  for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
    cv2.putText(
      image, text, (5, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, thickness, cv2.LINE_AA
    )


def at_height(image: np.ndarray, height: int) -> np.ndarray:
  """Resizes uint8 [h w 3] to a height; what is enlarged keeps its pixels visible."""
  width = max(1, round(image.shape[1] * height / image.shape[0]))
  how = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_NEAREST_EXACT
  return cv2.resize(image, (width, height), interpolation=how)


def columns(rows: Sequence[Mapping[str, np.ndarray]], height: int) -> np.ndarray:
  """Draws rows of pictures under titles.

  Args:
    rows: pictures, uint8 [h w 3], by their column's title; the same titles in every row.
    height: a row's, in pixels.

  Returns:
    uint8 [H W 3].
  """
  drawn = [np.hstack([at_height(image, height) for image in row.values()]) for row in rows]
  picture, left = np.vstack(drawn), 0
  for title, image in rows[0].items():
    width = at_height(image, height).shape[1]
    write_text(picture[:, left : left + width], title)
    left += width
  return picture
