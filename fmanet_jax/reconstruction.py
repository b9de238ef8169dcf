"""What Net^D makes of the truth: the blurred low-resolution frames, to be scored (Table 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fmanet_jax.model import FMANet, Params, degrade, learn_degradation
from vsr_jax import maps
from vsr_jax.programs import CompiledByShape

NAME = "reconstruction"  # the row in a table


class Reconstructor:
  """Reconstructs the blurred frames of clips by the definition of Net^D, a window at a time."""

  def __init__(self, model: FMANet, params: Params):
    """Takes the model; nothing is compiled yet."""

    def run(
      params: Params, blurry: jax.Array, sharp: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
      blurry, sharp = (x[None].astype(jnp.float32) / 255 for x in (blurry, sharp))
      degradation = learn_degradation(model, params, blurry)
      image, _ = degrade(model, degradation, sharp)
      flow = degradation.image_flow
      before = None if flow is None else flow[0, model.arch.frames // 2 - 1].astype(jnp.float32)
      return jnp.rint(255 * jnp.clip(image[0], 0, 1)).astype(jnp.uint8), before

    self._frames = model.arch.frames
    self._params = {"net_d": params["net_d"]}
    self._run = CompiledByShape(jax.jit(run), lambda *_: "Net^D's reconstruction")

  def stream(
    self, decode: Callable[[int], tuple[np.ndarray, np.ndarray]], length: int, span: range
  ) -> Iterator[tuple[np.ndarray, jax.Array | None]]:
    """The reconstructed frames of a clip, and what they were warped by.

    Args:
      decode: gives the blurred [h w 3] and the sharp frame [sh sw 3] of a number, uint8 RGB.
      length: the clip's.
      span: numbers of the frames, one after the other. Windows that reach over the clip's ends are
        filled up with copies of its end frames.

    Yields:
      A frame, uint8 RGB [h w 3], and f^Y to the frame before it, [h w 3], (dx, dy, mask logit) in
      pixels of the input; None without flow guidance.
    """
    window: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=self._frames)
    half = self._frames // 2
    for number in range(span.start - half, span.stop + half):
      window.append(decode(min(max(number, 0), length - 1)))
      if len(window) == self._frames:
        blurry, sharp = (np.stack(frames) for frames in zip(*window, strict=True))
        image, flow = self._run(self._params, blurry, sharp)
        yield np.asarray(image), flow


def draw_flow(flow: jax.Array) -> np.ndarray:
  """An f^Y of `Reconstructor.stream` as colours, uint8 RGB [h w 3]; black where the mask is 0."""
  return maps.picture(maps.flow_colours(flow[None, ..., :2])[0] * jax.nn.sigmoid(flow[..., 2:]))
