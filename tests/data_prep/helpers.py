"""Small clips on disk for the tests."""

from __future__ import annotations

import pathlib

import numpy as np

from vsr_jax.data_prep import clip_set, exposure, flow_store
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, SHARP_BICUBIC, STREAMS
from vsr_jax.images import encode_image


def texture(h: int, w: int, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
  """A smooth pattern displaced by (dx, dy): uint8 [h w 3]."""
  y, x = np.mgrid[:h, :w].astype(float)
  x, y = x - dx, y - dy
  red = np.sin(0.21 * x + 0.05 * y) + np.sin(0.13 * y)
  green = np.sin(0.11 * x - 0.17 * y)
  blue = np.cos(0.07 * x) * np.sin(0.19 * y)
  image = np.stack([red / 2, green, blue], -1)
  return np.rint(127.5 + 100 * image).astype(np.uint8)


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encode_image(image))


def write_clip(
  folders: dict[str, pathlib.Path], sharp: list[np.ndarray], names: list[str] | None = None
) -> None:
  """Writes sharp frames and their reductions; the "blurry" ones are dimmed to tell them apart."""
  for i, frame in enumerate(sharp):
    small = exposure.downsample(frame, 4)
    images = {
      SHARP: frame,
      SHARP_BICUBIC: small,
      BLUR_BICUBIC: small // 2,
    }
    for stream, folder in folders.items():
      write_png(folder / f"{names[i] if names else f'{i:08d}'}.png", images[stream])


def write_clip_set(
  root: pathlib.Path, lengths: dict[str, int], h: int = 24, w: int = 32, motion: float = 4.0
) -> None:
  """A clip set of textures that move `motion` pixels of the truth a frame, to the right."""
  for start, (name, length) in enumerate(lengths.items()):
    folders = {stream: root / stream / name for stream in STREAMS}
    frames = [texture(4 * h, 4 * w, 31 * start + motion * i) for i in range(length)]
    write_clip(folders, frames)
  clip_set.write_index(root, [{"name": name, "frames": n} for name, n in lengths.items()])


def write_flow(root: pathlib.Path, name: str, length: int, num_frames: int, dx: float) -> None:
  """Labels of a motion of `dx` low-resolution pixels a frame; zeros where there is no neighbour."""
  labels = np.zeros((length, num_frames - 1, 24, 32, 2), np.float32)
  for centre in range(length):
    for slot, offset in enumerate(flow_store.offsets(num_frames)):
      if 0 <= centre + offset < length:
        labels[centre, slot, ..., 0] = dx * offset
  folder = root / flow_store.FOLDER
  folder.mkdir(exist_ok=True)
  flow_store.write_labels(folder, name, labels, num_frames)
