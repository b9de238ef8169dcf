"""REDS, VFHQ and GoPro in the layouts they are released in, with few and small frames."""

from __future__ import annotations

import contextlib
import io
import pathlib
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from vsr_jax.data_prep import meta_info
from vsr_jax.data_prep.builders import vfhq
from vsr_jax.data_prep.builders.vfhq import release
from vsr_jax.images import encode_image

Write = Callable[[str, bytes], None]

REDS4 = ("000", "011", "015", "020")
GOPRO_TRAIN = [f"GOPR0{372 + i}_{(7, 11)[i % 2]:02d}_{i % 3:02d}" for i in range(22)]
GOPRO_TEST = [f"GOPR0{400 + i}_11_00" for i in range(11)]


def png(seed: int, h: int, w: int) -> bytes:
  """A frame that no other seed gives: its first pixel tells the seed."""
  y, x = np.mgrid[:h, :w]
  image = np.stack([x * 7 + seed, y * 5 + seed // 256, x + y + seed // 65536], -1) % 256
  return encode_image(image.astype(np.uint8))


@contextlib.contextmanager
def archive(root: pathlib.Path, name: str, zipped: bool) -> Iterator[Write]:
  """Gives a function that writes files into NAME.zip, or into the folder NAME."""
  root.mkdir(parents=True, exist_ok=True)
  if zipped:
    with zipfile.ZipFile(root / f"{name}.zip", "w") as z:
      yield z.writestr
    return

  def write(path: str, data: bytes) -> None:
    target = root / name / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)

  yield write


def reds_folder(subset: str, stream: str) -> str:
  """Where an archive of REDS has its clips."""
  return f"{subset}/{subset}_{stream}" + ("/X4" if stream.endswith("bicubic") else "")


def write_reds(
  root: pathlib.Path,
  streams: tuple[str, ...],
  clips: dict[str, range],
  frames: int = 2,
  zipped: bool = True,
  h: int = 2,
  w: int = 3,
) -> None:
  """REDS's archives; reductions are h x w, other streams four times that."""
  for subset, numbers in clips.items():
    for k, stream in enumerate(streams):
      if (subset, stream) == ("test", "sharp"):
        continue
      size = (h, w) if stream.endswith("bicubic") else (4 * h, 4 * w)
      with archive(root, f"{subset}_{stream}", zipped) as write:
        for clip in numbers:
          for i in range(frames):
            seed = 16 * clip + 4 * i + k + (5000 if subset == "val" else 0)
            path = f"{reds_folder(subset, stream)}/{clip:03d}/{i:08d}.png"
            write(path, png(seed, *size))


def write_gopro(root: pathlib.Path, frames: int = 2, zipped: bool = True) -> None:
  """GOPRO_Large with frames of 8x12; like the released ones they are not numbered from 0."""
  with archive(root, "GOPRO_Large", zipped) as write:
    for split, names in (("train", GOPRO_TRAIN), ("test", GOPRO_TEST)):
      for n, name in enumerate(names):
        for k, folder in enumerate(("sharp", "blur", "blur_gamma")):
          for i in range(frames):
            seed = 32 * n + 4 * i + k + (4000 if split == "test" else 0)
            write(f"{split}/{name}/{folder}/{47 + i:06d}.png", png(seed, 8, 12))


def vfhq_name(i: int) -> str:
  return f"Clip+_HebIzK_L{i:02d}+P2+C1+F{100 * i}-{100 * i + 50}"


def points(clip: int, frame: int) -> np.ndarray:
  """Landmarks of a frame: [5 2]."""
  return np.arange(10).reshape(5, 2) * 40 + clip + 0.125 * frame


def write_meta(folder: pathlib.Path, clips: range, frames: int, fps: float = 0) -> None:
  """meta_info/CLIP.txt of some clips."""
  (folder / meta_info.FOLDER).mkdir(parents=True, exist_ok=True)
  for i in clips:
    rows = {f"{k:08d}.png": points(i, k) for k in range(frames)}
    path = folder / meta_info.FOLDER / f"{vfhq_name(i)}.txt"
    path.write_text(meta_info.format_clip(rows, fps))


def write_vfhq_train(root: pathlib.Path, clips: range, frames: int = 2) -> None:
  """Clips in one zip and, every third, in a folder; landmarks; the list of clips."""
  place = root / "VFHQ-512-new"
  place.mkdir(parents=True)
  with zipfile.ZipFile(place / "group1.zip", "w") as z:
    for i in clips:
      for k in range(frames):
        path, data = f"{vfhq_name(i)}/{k:08d}.png", png(100 * i + k, 512, 512)
        if i % 3:
          z.writestr(f"group1/{path}", data)
        else:
          (place / path).parent.mkdir(exist_ok=True)
          (place / path).write_bytes(data)
  write_meta(root, clips, frames, fps=25)
  lines = [f"{vfhq_name(i)}/{frames}\n" for i in clips]
  (root / meta_info.GLOBAL).write_text("".join(lines))


def write_vfhq_test(root: pathlib.Path, clips: range, frames: int = 2) -> None:
  """VFHQ-Test's folder with the mild set within."""
  for i in clips:
    for place, side in (
      (f"GT/Interval1_512x512_LANCZOS4/{vfhq_name(i)}", 512),
      (
        f"Blind-LR/{vfhq.MILD}/{vfhq_name(i)}",
        128,
      ),
    ):
      folder = root / release.TEST / place
      folder.mkdir(parents=True)
      for k in range(frames):
        (folder / f"{k:08d}.png").write_bytes(png(100 * i + 10 * (side == 512) + k, side, side))
  write_meta(root / release.TEST, clips, frames)


def damage(data: bytes) -> bytes:
  """The data with one byte in the middle changed."""
  changed = io.BytesIO(data)
  changed.seek(len(data) // 2)
  changed.write(bytes([data[len(data) // 2] ^ 1]))
  return changed.getvalue()
