"""How low-quality face video is made from good video: KEEP's degradation.

  python -m vsr_jax.data_prep.face_degrade CLIP OUT.png    what the presets do, as one picture

In KEEP's order: a Gaussian blur, one for the clip, noise, reduction, noise again, H.264. All is a
pure function of the clip and a NumPy generator, and meant to give the same bits on every host:
blur kernels are whole numbers and values are rounded to 1/16 of a level before they are summed with
weights, so that sums are exact in whatever order a CPU takes them; colours are converted in
integers; the codecs run in one thread, on which their result depends.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import cv2
import numpy as np

from vsr_jax import cli, files, video
from vsr_jax.errors import UserError
from vsr_jax.files import write_whole
from vsr_jax.images import encode_image, resized

REDUCTIONS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
_STEPS = 16  # parts of a level to which values are rounded before they are summed with weights

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Degradation:
  """The settings of the degradation; ranges (low, high) are drawn from uniformly.

  Noise is drawn for each frame, all else for each clip.

  Attributes:
    isotropic: probability of a round kernel, whose width is drawn from `sigma_x`.
    sigma_x: standard deviation of the blur along the kernel's first axis, in unreduced pixels.
    sigma_y: the same along its second axis.
    rotation: angle of the axes, in radians.
    kernel_size: side of the kernel in pixels, odd; the Gaussian is cut off there.
    noise: standard deviation of the noise, in levels of 255; drawn for each frame, both times.
    grey: probability of noise that is the same in all channels.
    reductions: relative frequencies of reducing by area, bilinearly and by cubic interpolation.
    crf: H.264's constant rate factor, a whole number; higher is worse. The upper end is never
      drawn, as in the released code.
    scale: s, the factor by which frames are reduced.
    as_released: whether to repeat two mistakes of the released code before its codec: red and
      blue are exchanged, and values are truncated instead of rounded.
  """

  isotropic: float = 0.7
  sigma_x: Range = (2.0, 10.0)
  sigma_y: Range = (2.0, 10.0)
  rotation: Range = (-math.pi, math.pi)
  kernel_size: int = 21
  noise: Range = (0.0, 10.0)
  grey: float = 0.5
  reductions: tuple[float, float, float] = (0.3, 0.3, 0.4)
  crf: tuple[int, int] = (25, 45)
  scale: int = 4
  as_released: bool = False

  def __post_init__(self):
    for name in ("sigma_x", "sigma_y", "rotation", "noise", "crf"):
      low, high = getattr(self, name)
      lowest = -math.inf if name == "rotation" else 0
      if not lowest <= low <= high or (name.startswith("sigma") and low == 0):
        raise UserError(f"degradation: {name} = ({low}, {high}) is no range for it; low, then high")
    if self.crf[0] == self.crf[1] or self.crf[1] > 52:
      raise UserError(f"degradation: crf = {tuple(self.crf)}: H.264 has 0 to 51, the end excluded")
    if not 0 <= self.isotropic <= 1 or not 0 <= self.grey <= 1:
      raise UserError(f"degradation: isotropic, grey = {self.isotropic}, {self.grey}: 0 to 1 each")
    if len(self.reductions) != 3 or min(self.reductions) < 0 or not sum(self.reductions):
      raise UserError(f"degradation: reductions = {tuple(self.reductions)}: three frequencies")
    if self.kernel_size < 1 or self.kernel_size % 2 == 0 or self.scale < 1:
      raise UserError(
        f"degradation: kernel_size = {self.kernel_size} must be odd, scale = {self.scale} positive"
      )

  def at_size(self, size: int) -> Degradation:
    """The same blur for faces of `size` pixels instead of 512, in parts of the face.

    Widths of the blur are multiplied by size / 512, and the kernel's side likewise, to an odd one.
    """
    if size == 512:
      return self
    part = size / 512
    sigma_x, sigma_y = ((part * x[0], part * x[1]) for x in (self.sigma_x, self.sigma_y))
    kernel = max(3, 2 * round((self.kernel_size * part - 1) / 2) + 1)
    return dataclasses.replace(self, sigma_x=sigma_x, sigma_y=sigma_y, kernel_size=kernel)


PRESETS = {
  # The released training configuration, and with the slips of the code beside it.
  "train": Degradation(),
  "train_as_released": Degradation(as_released=True),
  # The ranges in a folder's name of KEEP's test set of this name: Blur5-10 Noise0-10 CRF18-25.
  "mild": Degradation(sigma_x=(5, 10), sigma_y=(5, 10), noise=(0, 10), crf=(18, 25)),
  # The ranges of the harder test sets are not public. These two are our own: medium stays within
  # training's ranges without their easy ends, heavy goes beyond them in blur and noise.
  "medium": Degradation(sigma_x=(6, 10), sigma_y=(6, 10), noise=(5, 10), crf=(28, 37)),
  "heavy": Degradation(sigma_x=(8, 14), sigma_y=(8, 14), noise=(10, 20), crf=(37, 45)),
}


class Kernel(NamedTuple):
  """A Gaussian: standard deviations in pixels along its axes, which `angle` (radians) turns."""

  sigma_x: float
  sigma_y: float
  angle: float


def degrade(clip: np.ndarray, rng: np.random.Generator, settings: Degradation) -> np.ndarray:
  """Makes a low-quality clip.

  Args:
    clip: uint8 RGB [t s*h s*w 3], h and w even.
    rng: draws everything that is random; the same state gives the same clip.
    settings: the ranges, and the scale s.

  Returns:
    uint8 RGB [t h w 3].

  Raises:
    ValueError: the clip is empty, no uint8 RGB, or its sizes cannot be reduced to even ones.
  """
  if clip.ndim != 4 or not len(clip):
    raise ValueError(f"a clip is uint8 [t h w 3] with t > 0, not {clip.dtype} {clip.shape}")
  return np.stack(list(degrade_frames(clip, rng, settings)))


def degrade_frames(
  frames: Iterable[np.ndarray], rng: np.random.Generator, settings: Degradation
) -> Iterator[np.ndarray]:
  """`degrade` as a stream: the same low-quality frames, one after the other.

  No more frames are held than the codec looks ahead, some 50 low-quality ones.

  Args:
    frames: uint8 RGB [s*h s*w 3] each, of one size, h and w even.
    rng: see `degrade`.
    settings: likewise.

  Yields:
    uint8 RGB [h w 3], one a frame.

  Raises:
    ValueError: a frame is no uint8 RGB, or its sizes cannot be reduced to even ones.
  """
  kernel = draw_kernel(rng, settings)
  reduction = int(rng.choice(3, p=np.array(settings.reductions) / sum(settings.reductions)))
  crf = int(rng.integers(*settings.crf))
  order = slice(None, None, -1) if settings.as_released else slice(None)  # of the channels

  def reduced() -> Iterator[np.ndarray]:
    for frame in frames:
      _check_frame(frame, settings.scale)
      image = add_noise(blur(frame, kernel, settings.kernel_size), rng, settings)
      image = add_noise(reduce(image, settings.scale, REDUCTIONS[reduction]), rng, settings)
      image = image if settings.as_released else np.rint(image)
      yield image.astype(np.uint8)[..., order]

  for image in compress(reduced(), crf):
    yield image[..., order]


def _check_frame(frame: np.ndarray, scale: int) -> None:
  if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
    raise ValueError(f"a frame is uint8 [h w 3], not {frame.dtype} {frame.shape}")
  h, w, _ = frame.shape
  if h % (2 * scale) or w % (2 * scale):
    raise ValueError(f"frames of {w}x{h} cannot be reduced by {scale} to even sizes")


def draw_kernel(rng: np.random.Generator, settings: Degradation) -> Kernel:
  """Draws the blur of a clip."""
  isotropic = rng.random() < settings.isotropic
  sigma_x, sigma_y = rng.uniform(*settings.sigma_x), rng.uniform(*settings.sigma_y)
  angle = rng.uniform(*settings.rotation)
  return Kernel(sigma_x, sigma_x, 0.0) if isotropic else Kernel(sigma_x, sigma_y, angle)


def gaussian(kernel: Kernel, size: int) -> np.ndarray:
  """Samples a Gaussian: [size size] (rows y, columns x), with a sum of 1."""
  y, x = np.mgrid[:size, :size] - size // 2
  cos, sin = math.cos(kernel.angle), math.sin(kernel.angle)
  along, across = x * cos + y * sin, y * cos - x * sin
  weights = np.exp(-0.5 * ((along / kernel.sigma_x) ** 2 + (across / kernel.sigma_y) ** 2))
  return weights / weights.sum()


def blur(frame: np.ndarray, kernel: Kernel, size: int) -> np.ndarray:
  """Convolves with a Gaussian; the frame is mirrored at its border without repeating the edge.

  Args:
    frame: uint8 [h w 3].
    kernel: the Gaussian.
    size: side of the kernel in pixels, odd.

  Returns:
    float32 [h w 3] in levels, 0 to 255.
  """
  if kernel.sigma_x == kernel.sigma_y:
    # A round kernel is applied to rows, then columns. Single precision has 24 bits: enough for
    # 8 of a pixel and 16 of a weight, and then for 12 bits in 1/16 levels and 12 of a weight.
    line, one = gaussian(kernel, size).sum(0), np.ones(1, np.float32)
    rows = cv2.sepFilter2D(frame, cv2.CV_32F, _whole_weights(line, 16).astype(np.float32), one)
    rows = np.rint(np.float32(_STEPS / 2**16) * rows)
    both = cv2.sepFilter2D(rows, cv2.CV_32F, one, _whole_weights(line, 12).astype(np.float32))
    return np.float32(1 / _STEPS / 2**12) * both
  # OpenCV uses a Fourier transform here, whose error is far below the 0.5 that rounding removes.
  total = np.rint(cv2.filter2D(frame, cv2.CV_64F, _whole_weights(gaussian(kernel, size), 20)))
  return total.astype(np.float32) / np.float32(2**20)


def _whole_weights(weights: np.ndarray, bits: int) -> np.ndarray:
  """Weights times 2^bits as whole numbers, the largest adjusted so that their sum is 2^bits."""
  weights = np.rint(weights * 2**bits)
  weights.flat[weights.argmax()] += 2**bits - weights.sum()
  return weights


def add_noise(image: np.ndarray, rng: np.random.Generator, settings: Degradation) -> np.ndarray:
  """Adds Gaussian noise of random strength, colour or grey, to float32 [h w 3]; clips to 0..255."""
  sigma = np.float32(rng.uniform(*settings.noise))
  channels = 1 if rng.random() < settings.grey else 3
  noise = rng.standard_normal((*image.shape[:2], channels), dtype=np.float32)
  noise *= sigma
  noisy = image + noise
  return np.clip(noisy, 0, 255, out=noisy)


def reduce(image: np.ndarray, scale: int, reduction: int) -> np.ndarray:
  """Reduces float32 [s*h s*w 3] in levels to [h w 3]; `reduction` is one of `REDUCTIONS`.

  Cubic interpolation overshoots, so results may lie outside 0 to 255.
  """
  h, w = image.shape[:2]
  # For a scale of 2, 4 or 8 the weights are multiples of a small power of two as well.
  image = np.rint(_STEPS * image) / np.float32(_STEPS)
  return cv2.resize(image, (w // scale, h // scale), interpolation=reduction)


def compress(frames: Iterable[np.ndarray], crf: int) -> Iterator[np.ndarray]:
  """Passes frames through H.264: uint8 RGB [h w 3] each, h and w even; `crf` is 0 to 51."""
  encoder = av.CodecContext.create("libx264", "w")
  encoder.pix_fmt = "yuv420p"
  # KEEP's rate of one frame per second: x264 spends more bits on frames that are shown longer.
  encoder.time_base = encoder.framerate = Fraction(1)
  # With its assembly x264 gave a different stream in up to 8 % of encodings of the same clip, in
  # some processes on a CPU with AVX-512. Without assembly it is slower but always gave one stream.
  encoder.options = {"crf": str(crf), "threads": "1", "x264-params": "asm=0"}
  decoder = av.CodecContext.create("h264", "r")
  decoder.thread_count = 1
  taken = given = 0
  for image in itertools.chain(frames, [None]):
    frame = None
    if image is not None:
      if not taken:
        encoder.height, encoder.width = image.shape[:2]
      frame = av.VideoFrame.from_ndarray(to_planes(image), format="yuv420p")
      frame.pts = taken
      taken += 1
    decoded = [found for packet in encoder.encode(frame) for found in decoder.decode(packet)]
    for found in decoded if frame is not None else [*decoded, *decoder.decode(None)]:
      given += 1
      yield from_planes(found.to_ndarray(), encoder.height)
  if given != taken:
    raise RuntimeError(f"the decoder gave {given} of {taken} frames")


# BT.601 in limited range, in 1/65536: luma from 16 to 235, chroma around 128. Sums stay below 2^31.
_TO_YUV = np.rint(
  65536
  / 255
  * np.array(
    [
      [219 * 0.299, 219 * 0.587, 219 * 0.114],
      [-112 * 0.299 / 0.886, -112 * 0.587 / 0.886, 112],
      [112, -112 * 0.587 / 0.701, -112 * 0.114 / 0.701],
    ]
  )
).astype(np.int32)
_TO_RGB = np.rint(65536 * np.linalg.inv(_TO_YUV / 65536)).astype(np.int32)


def to_planes(image: np.ndarray) -> np.ndarray:
  """Converts uint8 RGB [h w 3] to yuv420p: Y, U, V stacked, [3*h/2 w]; chroma of 2x2 means."""
  h, w, _ = image.shape
  pixels = image.astype(np.int32)
  quads = pixels.reshape(h // 2, 2, w // 2, 2, 3).sum((1, 3), dtype=np.int32)
  luma = (pixels @ _TO_YUV[0] + 32768 >> 16) + 16
  chroma = (quads @ _TO_YUV[1:].T + 131072 >> 18) + 128
  return np.concatenate([luma, chroma.transpose(2, 0, 1).reshape(h // 2, w)]).astype(np.uint8)


def from_planes(planes: np.ndarray, height: int) -> np.ndarray:
  """Inverse of `to_planes`; chroma is repeated."""
  w = planes.shape[1]
  luma = planes[:height].astype(np.int32) - 16
  chroma = planes[height:].reshape(2, height // 2, w // 2).astype(np.int32) - 128
  chroma = chroma.repeat(2, 1).repeat(2, 2)
  rgb = np.stack([luma, *chroma], -1) @ _TO_RGB.T + 32768 >> 16
  return np.clip(rgb, 0, 255).astype(np.uint8)


def draw_strip(clip: np.ndarray, seed: int, rows: int = 2) -> np.ndarray:
  """Draws the clip and what presets make of it as columns, with evenly spaced frames as rows.

  The one with the released slips is left out: it looks like "train".

  Args:
    clip: uint8 RGB [t h w 3], sizes multiples of 8.
    seed: of everything random, the same for all.
    rows: number of frames shown.

  Returns:
    uint8 RGB [H W 3]; low-quality frames are enlarged bilinearly, as KEEP does before its encoder.
  """
  shown = np.linspace(0, len(clip) - 1, min(rows, len(clip))).astype(int)
  made = {"good": clip}
  for name, settings in PRESETS.items():
    if not settings.as_released:
      made[name] = degrade(clip, np.random.default_rng(seed), settings)
  h, w = clip.shape[1:3]
  columns = []
  for name, frames in made.items():
    column = np.concatenate([cv2.resize(frames[i], (w, h)) for i in shown])
    cv2.putText(column, name, (8, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 0), 2)
    columns.append(column)
  return np.concatenate(columns, axis=1)


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("vsr_jax.data_prep.face_degrade", __doc__)
  parser.add_argument("clip", metavar="CLIP", help="a video file or a folder of frames")
  parser.add_argument("out", metavar="OUT.png", type=pathlib.Path)
  parser.add_argument("--start", type=int, default=0, metavar="N", help="first frame")
  parser.add_argument(
    "--frames", type=int, default=8, metavar="N", help="how many frames are degraded"
  )
  parser.add_argument("--size", type=int, default=512, metavar="N", help="side of the square shown")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  if args.frames < 1 or args.size < 8 or args.size % 8 or args.start < 0:
    parser.error("--frames must be positive, --size a multiple of 8, --start not negative")
  if args.out.suffix.lower() != ".png":
    parser.error(f"{args.out}: the picture is a .png")
  files.check_place(args.out)
  frames = np.stack(list(_central_squares(args.clip, args.start, args.frames, args.size)))
  write_whole(args.out, encode_image(draw_strip(frames, args.seed)))
  print(f"{args.out}: the clip, and what presets make of it")


def _central_squares(path: str, start: int, count: int, size: int) -> Iterator[np.ndarray]:
  """Yields the central square of each of `count` frames from `start` on, resized to `size`."""
  with video.open_reader(path, start, start + count) as reader:
    for frame in reader:
      h, w = frame.image.shape[:2]
      side = min(h, w)
      top, left = (h - side) // 2, (w - side) // 2
      square = frame.image[top : top + side, left : left + side]
      yield resized(square, size, size)


if __name__ == "__main__":
  cli.run(main)
