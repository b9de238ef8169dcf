"""Pastes restored faces into their frame: inverse warp, feathered square, enlarged background.

As in the released KEEP, with these differences: only pixels under a face change; the face is
resampled bicubically, since a second bilinear pass costs 3 dB; a face that becomes much smaller is
low-pass filtered first, to avoid shimmering; colours are rounded, not truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scipy import special

from vsr_jax.errors import UserError
from vsr_jax.faces import align, occlusion

# Enlarges a frame, uint8 RGB [h w 3], to any size; `enlarge` resizes the result where needed.
Upscaler = Callable[[np.ndarray], np.ndarray]

# OpenCV's warps address pixels with 16 bits.
MAX_SIDE = 32767

_COLOR_PARTS = 16
_GREY_THRESHOLD = 10.0
_GREY_WEIGHTS = np.array([0.2989, 0.5870, 0.1140], np.float32)


def is_grey(frame: np.ndarray) -> bool:
  """Whether a frame uint8 [h w 3] is grey, by the released code's measure.

  The differences between channels may vary a little, as coding adds colour noise.
  """
  red, green, blue = cv2.split(frame.astype(np.int16))
  differences = [red - green, green - blue, blue - red]
  return bool(np.mean([np.var(d) for d in differences]) <= _GREY_THRESHOLD)


def to_grey(faces: np.ndarray) -> np.ndarray:
  """Takes the colour from uint8 RGB [... 3]; the three channels become equal."""
  grey = np.rint(faces @ _GREY_WEIGHTS).astype(np.uint8)
  return np.repeat(grey[..., None], 3, axis=-1)


def with_colors_of(crop: np.ndarray, face: np.ndarray) -> np.ndarray:
  """Gives a restored face the colors and the brightness of what it was made of.

  What varies slowly, by a Gaussian of a sixteenth of the side, is the crop's; what varies faster
  is the face's. Degradations keep what varies slowly; a small network does not, and a square of
  another color then shows around the face.

  Args:
    crop: uint8 RGB [n n 3], the aligned face before it was restored.
    face: uint8 RGB [n n 3], restored.

  Returns:
    uint8 RGB [n n 3].
  """
  sigma = len(face) / _COLOR_PARTS
  slow = cv2.GaussianBlur(crop.astype(np.float32) - face, (0, 0), sigma)
  return np.clip(np.rint(face + slow), 0, 255).astype(np.uint8)


def enlarged_size(height: int, width: int, upscale: float) -> tuple[int, int]:
  """Height and width of a frame pasted into at `upscale`.

  Raises:
    UserError: the factor is below 1 or no number, or the frame becomes too large.
  """
  if not 1 <= upscale < MAX_SIDE:
    raise UserError(f"upscale {upscale:g}: give a factor of 1 or more, below {MAX_SIDE}")
  size = int(height * upscale), int(width * upscale)
  if max(size) > MAX_SIDE:
    raise UserError(
      f"{width}x{height} at upscale {upscale:g} becomes {size[1]}x{size[0]}; "
      f"give a factor of at most {MAX_SIDE / max(height, width):.4g}"
    )
  return size


def enlarge(frame: np.ndarray, upscale: float, upscaler: Upscaler | None = None) -> np.ndarray:
  """Makes the background that faces are pasted into.

  Args:
    frame: uint8 RGB [h w 3].
    upscale: S >= 1.
    upscaler: what enlarges the frame; a result that is too small is enlarged by Lanczos, one that
      is too large is low-pass filtered and reduced bicubically. None: Lanczos alone.

  Returns:
    uint8 RGB [int(S h) int(S w) 3], an array of its own.

  Raises:
    UserError: see `enlarged_size`.
    ValueError: the upscaler returns something other than a uint8 RGB image.
  """
  height, width, _ = frame.shape
  height, width = enlarged_size(height, width, upscale)
  image = frame if upscaler is None else upscaler(frame)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise ValueError(f"the upscaler returned {image.dtype} {image.shape}, not uint8 [h w 3]")
  if image.shape[:2] == (height, width):
    return image.copy()
  ratios = image.shape[1] / width, image.shape[0] / height
  if max(ratios) <= 1:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LANCZOS4)
  image = _low_pass(image, *ratios)
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def to_frame(matrix: np.ndarray, upscale: float, offset: float | None = None) -> np.ndarray:
  """The map [2 3] from the aligned crop to the enlarged frame.

  Args:
    matrix: [2 3] from frame to crop.
    upscale: how many times the frame is enlarged.
    offset: added to x and y, in pixels of the enlarged frame; None: what the released code adds,
      half of upscale above 1. Pixel centres would ask for (upscale - 1) / 2, half a pixel less.
  """
  inverse = align.invert(np.asarray(matrix, np.float64)) * upscale
  if offset is None:
    offset = upscale / 2 if upscale > 1 else 0
  inverse[:, 2] += offset
  return inverse


def outline(inverse: np.ndarray, size: int, inset: float = 0.0) -> np.ndarray:
  """The corners of an aligned square in the frame.

  Args:
    inverse: [2 3], from `to_frame`.
    size: the crop's side, in pixels.
    inset: how far inside the crop's edge, in pixels of the crop.

  Returns:
    [4 2] float32 (x, y), clockwise from the top left.
  """
  low, high = inset - 0.5, size - 0.5 - inset  # the edges of pixels, not their centres
  corners = np.array([(low, low), (high, low), (high, high), (low, high)])
  return (corners @ inverse[:, :2].T + inverse[:, 2]).astype(np.float32)


def feather(inverse: np.ndarray, size: int, upscale: float, frame: tuple[int, int]) -> np.ndarray:
  """The feathered mask's profile along the rows, and along the columns, of the aligned crop.

  The released code warps a square of ones into the frame, erodes it by a square of 2 S pixels, then
  by one of 2 w, and blurs it by a Gaussian of 2 w + 1 pixels, where w is a 20th of the square root
  of the face's area in the frame. A square eroded by a square is a smaller square, and blurred it
  is the product of two ramps along its sides, which are computed here in closed form. Two things
  differ: in the released code an erosion by an even number of pixels moves the mask half a pixel,
  and a side of the square that leaves the frame loses its ramp at once, here gradually.

  Args:
    inverse: [2 3], from `to_frame`.
    size: the crop's side, in pixels.
    upscale: S, how many times the frame is enlarged.
    frame: height and width of the enlarged frame, in pixels.

  Returns:
    [size] float32 in [0, 1]; the mask at (x, y) is the product of its values at x and y.
  """
  pixel = float(align.scale(inverse))  # the crop's, in pixels of the frame
  # How much a square as wide as 2 takes from each side of one that is turned against it.
  turned = np.abs(inverse[0, :2]).sum() / pixel
  height, width = frame
  inner = outline(inverse, size, min((upscale - 0.5) * turned / pixel, size / 2))
  image = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
  area, _ = cv2.intersectConvexConvex(inner, image)
  w = max(1, int(np.sqrt(area)) // 20)
  sigma = 0.3 * (w - 1) + 0.8  # OpenCV's for a kernel of 2 w + 1
  distance = (np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) * pixel
  distance -= (upscale - 0.5 + w - 0.5) * turned  # k pixels take k - 1 from the width
  tail = special.ndtr(-w / sigma)  # beyond the kernel's end
  ramp = (special.ndtr(distance / sigma) - tail) / (1 - 2 * tail)
  return ramp.clip(0, 1).astype(np.float32)


def _low_pass(image: np.ndarray, along_x: float, along_y: float) -> np.ndarray:
  """Low-pass filters an image before it is reduced by these ratios, against aliasing.

  By Lanczos kernels, cut off at the highest frequency that the reduced image can show; a ratio of 1
  or less leaves that axis as it is.
  """
  kernel_x, kernel_y = _lanczos_kernel(along_x), _lanczos_kernel(along_y)
  return cv2.sepFilter2D(image, -1, kernel_x, kernel_y, borderType=cv2.BORDER_REPLICATE)


def _lanczos_kernel(width: float) -> np.ndarray:
  if width <= 1:
    return np.ones(1)
  radius = int(3 * width)
  x = np.arange(-radius, radius + 1) / width
  kernel = np.sinc(x) * np.sinc(x / 3)
  return kernel / kernel.sum()


def _blend(
  image: np.ndarray,
  face: np.ndarray,
  matrix: np.ndarray,
  upscale: float,
  offset: float | None,
  mask: np.ndarray | None,
  heads: Sequence[np.ndarray],
  own: int,
) -> None:
  """Pastes one face into the enlarged frame, in place; its own head is `heads[own]`."""
  size = face.shape[0]
  height, width = image.shape[:2]
  inverse = to_frame(matrix, upscale, offset)
  corners = outline(inverse, size)
  left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
  right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (width, height))
  if left >= right or top >= bottom:
    return
  ramp = feather(inverse, size, upscale, (height, width))
  alpha = np.outer(ramp, ramp)
  if mask is not None:
    alpha = np.minimum(alpha, mask)
  # Less by a third than the ratio asks for: an unchanged face then loses almost nothing.
  reduction = 1 / float(align.scale(inverse)) / 1.5
  if reduction > 1:
    face = _low_pass(face, reduction, reduction)
  inverse = inverse - [[0, 0, left], [0, 0, top]]
  window = int(right - left), int(bottom - top)
  # What lies outside the crop has no weight: any border will do that leaves its edge as it is.
  face = cv2.warpAffine(
    face, inverse, window, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
  )
  alpha = cv2.warpAffine(alpha, inverse, window, flags=cv2.INTER_LINEAR)
  taken = occlusion.covered_by_others(heads, own, size, (left, top), alpha.shape) if heads else None
  if taken is not None:
    alpha *= 1 - taken
  below = image[top:bottom, left:right]
  # blendLinear divides by the weights' sum + 1e-5, which rounding hides: weight 0 changes nothing.
  below[...] = cv2.blendLinear(face, below, alpha, 1 - alpha)


def paste(
  frame: np.ndarray,
  faces: Sequence[np.ndarray | None],
  matrices: Sequence[np.ndarray],
  upscale: float = 1,
  *,
  upscaler: Upscaler | None = None,
  masks: Sequence[np.ndarray | None] | None = None,
  offset: float | None = None,
  apart: bool = False,
) -> np.ndarray:
  """Puts restored faces back into their frame.

  Args:
    frame: uint8 RGB [h w 3]; it stays as it is.
    faces: uint8 RGB [size size 3] each, as `align.align` cut them out; later ones lie on top. None:
      a face that stays as it is, which only matters if `apart`.
    matrices: [2 3] each, as `align.fit` found them for that size.
    upscale: S >= 1, how many times the frame is enlarged.
    upscaler: see `enlarge`.
    masks: float32 [size size] in [0, 1] each, such as `parsenet.face_masks`: the smaller of this
      and the feathered square counts. None: the square alone.
    offset: see `to_frame`.
    apart: do not paint over other heads, by `occlusion.covered_by_others`. The faces must be all of
      one size, the farthest first.

  Returns:
    uint8 RGB [int(S h) int(S w) 3]; outside the faces exactly what `enlarge` returns.

  Raises:
    UserError: see `enlarged_size`.
    ValueError: faces, matrices and masks differ in number, or a face is no uint8 RGB square.
  """
  image = enlarge(frame, upscale, upscaler)
  masks = [None] * len(faces) if masks is None else masks
  heads = [align.invert(to_frame(m, upscale, offset)) for m in matrices] if apart else []
  for i, (face, matrix, mask) in enumerate(zip(faces, matrices, masks, strict=True)):
    if face is None:
      continue
    size = face.shape[0]
    if face.dtype != np.uint8 or face.shape != (size, size, 3):
      raise ValueError(f"a face of {face.dtype} {face.shape}, not uint8 [size size 3]")
    if mask is not None and mask.shape != (size, size):
      raise ValueError(f"a mask of shape {mask.shape} for a face of {size}")
    _blend(image, face, matrix, upscale, offset, mask, heads, i)
  return image
