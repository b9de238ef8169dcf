"""The warping error: how much a clip flickers along the motion of the truth (Lai et al., 2018).

The flow is that of the truth, so that all methods are measured along the same paths; pixels that it
cannot follow are left out by the criteria of Ruder et al. (2016). A blurred clip changes little and
has a small error: the truth's own is what to compare with.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vsr_jax.metrics.sums import Metric
from vsr_jax.ops.warp import backward_warp

WARPING = Metric("warping", "E_warp ×1000", 3, False, "warping", shown_times=1000)


def visible(to_previous: jax.Array, to_next: jax.Array) -> jax.Array:
  """Where a frame shows what the frame before it showed, too (Ruder et al., 2016).

  Args:
    to_previous: flow [b h w 2] in pixels from a frame to the one before.
    to_next: flow [b h w 2] from the one before to the frame.

  Returns:
    bool [b h w], False where the two flows do not cancel out (an occlusion), where the flow leads
    out of the frame, and where it changes abruptly (the border of a moving thing).
  """
  _, h, w, _ = to_previous.shape
  back = backward_warp(to_next, to_previous)
  size = _squared(to_previous)
  returns = _squared(to_previous + back) <= 0.01 * (size + _squared(back)) + 0.5
  dy, dx = (_squared(gradient) for gradient in jnp.gradient(to_previous, axis=(1, 2)))
  smooth = dy + dx <= 0.01 * size + 0.002
  y, x = jnp.mgrid[:h, :w].astype(jnp.float32)
  reached_x, reached_y = x[None] + to_previous[..., 0], y[None] + to_previous[..., 1]
  inside = (reached_x >= 0) & (reached_x <= w - 1) & (reached_y >= 0) & (reached_y <= h - 1)
  return returns & smooth & inside


def warping_error(
  previous: jax.Array, frame: jax.Array, to_previous: jax.Array, mask: jax.Array
) -> jax.Array:
  """The mean squared difference of frames from the frames before them, warped.

  Args:
    previous: RGB [b h w 3] in [0, 1].
    frame: likewise, the frames after them.
    to_previous: flow [b h w 2] of the truth in pixels, from a frame to the one before.
    mask: bool [b h w], the pixels that count, from `visible`.

  Returns:
    float32 [b]: the mean over those pixels and their channels; NaN where there is none.
  """
  error = jnp.square(frame - backward_warp(previous, to_previous)).mean(-1)
  return jnp.where(mask, error, 0).sum((1, 2)) / mask.sum((1, 2)).astype(jnp.float32)


def _squared(vectors: jax.Array) -> jax.Array:
  return jnp.square(vectors).sum(-1)
