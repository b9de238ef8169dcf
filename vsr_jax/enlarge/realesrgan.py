"""Real-ESRGAN's small networks on clips: each frame by itself, in memory that does not grow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from vsr_jax.enlarge import srvgg_conversion
from vsr_jax.enlarge.srvgg import SRVGGNetCompact
from vsr_jax.frames import Frame, as_frames_of_one_size, stream_frames
from vsr_jax.programs import CompiledByShape
from vsr_jax.runtime import compiler_options

# Input pixels that neighbouring tiles share and are blended over. In the general models a pixel
# sees 34 pixels far, but little of what is so far away: two natural frames, whole and by tiles,
# differ by more than 2 levels in 0.05 and 0.35 % of the values, and by 11 at most.
OVERLAP = 32


class RealESRGAN:
  """Enlarges clips frame by frame; an `enlarger.Enlarger`.

  One program is compiled per frame size.

  Attributes:
    net: the network.
    context, overlap: see `enlarger.Enlarger`.
  """

  context = 0
  overlap = OVERLAP

  def __init__(self, net: SRVGGNetCompact, params: Any):
    self.net = net
    self._params = jax.device_put(params)
    function = functools.partial(_enlarge_frame, net)
    self._program = CompiledByShape(
      jax.jit(function, compiler_options=compiler_options()),
      lambda x: f"the enlargement of {x.shape[1]}x{x.shape[0]}",
    )

  @property
  def scale(self) -> int:
    return self.net.scale

  @property
  def device(self) -> jax.Device:
    return jax.devices()[0]

  def memory_needed(self, height: int, width: int) -> int:
    """Without the params: two layers' features in float32, and the enlarged frame twice.

    bfloat16 counts as float32, into which XLA turns it on CPU.
    """
    features, enlarged = 2 * 4 * self.net.features, 3 * self.scale**2 * (4 + 1)
    return height * width * (features + 2 * enlarged)

  @overload
  def stream(self, frames: Iterable[Frame]) -> Iterator[Frame]: ...
  @overload
  def stream(self, frames: Any) -> Iterator[np.ndarray]: ...
  def stream(self, frames: Any) -> Iterator[np.ndarray] | Iterator[Frame]:
    """Enlarges every frame; the next one is computed while one is yielded.

    A frame that equals the one before, pixel by pixel, is not computed again.

    Args:
      frames: uint8 or float in [0, 1], RGB [h w 3], all of one size (see `as_frames`); or `Frame`s,
        whose times are kept.

    Returns:
      uint8 RGB [s*h s*w 3], one per frame, or `Frame`s of such images.

    Raises:
      ValueError: from iteration: the frames are of another form or of several sizes.
    """
    return stream_frames(self._stream_images, frames)

  def _stream_images(self, frames: Any) -> Iterator[np.ndarray]:
    before: np.ndarray | None = None
    image: jax.Array | None = None
    for frame in as_frames_of_one_size(frames):
      pending = image
      if before is None or not np.array_equal(frame, before):
        before = np.array(frame)  # a copy: a caller may fill one buffer anew
        image = self._program(self._params, jnp.asarray(before))
      if pending is not None:
        yield np.asarray(pending)
    if image is not None:
      yield np.asarray(image)


def open_enlarger(
  weights: str | Path | None = None, dtype: str = "float32", *, denoise: float = 0.5
) -> RealESRGAN:
  """Loads a released network for enlarging.

  Args:
    weights: a file that `srvgg_conversion.load` reads; None for the general x4 models that ship.
    dtype: compute type, "float32" or "bfloat16".
    denoise: of the models that ship; see `srvgg_conversion.load_general`.

  Returns:
    the enlarger.

  Raises:
    UserError: see `srvgg_conversion.load`.
  """
  if weights is None:
    net, params = srvgg_conversion.load_general(denoise)
  else:
    net, params = srvgg_conversion.load(weights)
  return RealESRGAN(dataclasses.replace(net, dtype=jnp.dtype(dtype)), params)


def _enlarge_frame(net: SRVGGNetCompact, params: Any, frame: jax.Array) -> jax.Array:
  """uint8 [h w 3] -> uint8 [s*h s*w 3]."""
  x = frame[None].astype(jnp.float32) / 255
  (image,) = net.apply({"params": params}, x)
  return jnp.rint(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)
