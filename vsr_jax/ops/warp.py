"""Backward warping by optical flow, as every model here uses it.

Equal to PyTorch's `grid_sample` (bilinear, padding_mode="zeros", align_corners=True): a flow of
(dx, dy) pixels reads the image at (x + dx, y + dy), and each of the four neighbours that lies
outside counts as 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.ops.devices import by_device, true_after
from vsr_jax.ops.resize import resize_bilinear


def sample_bilinear(image: jax.Array, points: jax.Array) -> jax.Array:
  """Reads one image at real-valued points.

  Args:
    image: [h w c].
    points: [... 2], the (x, y) to read at, in pixels.

  Returns:
    [... c] in the image's dtype; weights are float32.
  """
  points = points[..., None, :]
  return _sample(image[:, :, None], jnp.zeros_like(points, jnp.int32), points)[..., 0, :]


def backward_warp(image: jax.Array, flow: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Warps images by flow.

  Args:
    image: [b h w c].
    flow: [b h w 2], (dx, dy) in pixels: where each output pixel is read from,
      relative to itself. Or [b h w n 2]: n flows, each for c/n channels.
    mask: [b h w] or [b h w n], factor of the samples.

  Returns:
    [b h w c] in the image's dtype; samples outside the image are 0.

  Raises:
    ValueError: the shapes do not belong together.
  """
  return by_device(_warp_batch, *_in_groups(image, flow, mask)).reshape(image.shape)


def backward_warp_definition(
  image: jax.Array, flow: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """The definition of `backward_warp`: every pixel is read at its own point, bilinearly."""
  return jax.vmap(_warp_image)(*_in_groups(image, flow, mask)).reshape(image.shape)


def _in_groups(
  image: jax.Array, flow: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Splits channels into the n groups of the flow: [b h w n c/n], [b h w n 2] and [b h w n 1]."""
  b, h, w, c = image.shape
  n = flow.shape[3] if flow.ndim == 5 else 1
  if flow.shape[:3] != (b, h, w) or flow.shape[3:] not in ((2,), (n, 2)) or c % n:
    raise ValueError(f"flow of shape {flow.shape} for images of shape {image.shape}")
  if mask is not None and mask.shape != flow.shape[:-1]:
    raise ValueError(f"mask of shape {mask.shape} for flow of shape {flow.shape}")
  images, flows = image.reshape(b, h, w, n, c // n), flow.reshape(b, h, w, n, 2)
  return images, flows, None if mask is None else mask.reshape(b, h, w, n, 1).astype(image.dtype)


def _warp_batch(images: jax.Array, flows: jax.Array, masks: jax.Array | None) -> jax.Array:
  """Images [b h w n c], their flows [b h w n 2] and masks [b h w n 1] -> [b h w n c]."""
  every = jax.vmap(_warp_image)
  if images.shape[0] == 1:
    return lax.platform_dependent(images, flows, masks, cpu=_warp_single, default=every)
  warped = lax.platform_dependent(images, flows, cpu=_warp_by_loop, default=every)
  return warped if masks is None else warped * masks


def _warp_image(image: jax.Array, flow: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Image [h w n c], its n flows [h w n 2] and masks [h w n 1] -> [h w n c]."""
  y, x = jnp.mgrid[: image.shape[0], : image.shape[1]]
  warped = _sample(image, jnp.stack([x, y], axis=-1)[:, :, None], flow)
  return warped if mask is None else warped * mask


def _warp_single(images: jax.Array, flows: jax.Array, masks: jax.Array | None) -> jax.Array:
  """`jax.vmap(_warp_image)` of a batch of one image, in a third of the time on CPU.

  The branch, which is always taken, keeps XLA from fusing the gather into its consumer: a loop over
  [h w n*c] that would find each number's group by a division.
  """
  image, flow, mask = jax.tree.map(lambda x: x[0], (images, flows, masks))
  return lax.cond(
    true_after(flow), lambda: _warp_image(image, flow, mask), lambda: jnp.zeros_like(image)
  )[None]


@jax.custom_vjp
def _warp_by_loop(images: jax.Array, flows: jax.Array) -> jax.Array:
  """`jax.vmap(_warp_image)` as a loop, in half the time on CPU: the gather stays in the cache.

  The loop overwrites each image with its warp. Collecting the results instead (`lax.map`) would
  allocate a second array at the program's start.
  """

  def warp(i, images):
    image, flow = (lax.dynamic_index_in_dim(x, i, keepdims=False) for x in (images, flows))
    return lax.dynamic_update_index_in_dim(images, _warp_image(image, flow), i, axis=0)

  return lax.fori_loop(0, images.shape[0], warp, images)


def _warp_by_map(images: jax.Array, flows: jax.Array) -> jax.Array:
  """The same by `lax.map`, for gradients: those of the other loop keep all images per iteration."""
  return lax.map(lambda pair: _warp_image(*pair), (images, flows))


_warp_by_loop.defvjp(
  lambda images, flows: jax.vjp(_warp_by_map, images, flows), lambda vjp, g: vjp(g)
)


def _sample(image: jax.Array, origin: jax.Array, offset: jax.Array) -> jax.Array:
  """Reads an image [h w n c] at origin (int32) + offset (real), both [... n 2] as (x, y).

  The integer parts are added as int32: a sum in float32 would lose low bits of the offset.
  """
  h, w, n, c = image.shape
  # Clipping keeps the integer conversion defined for any finite flow; so far
  # outside everything is 0 anyway.
  limit = float(2 * max(h, w) + 2)
  offset = jnp.clip(offset.astype(jnp.float32), -limit, limit)
  whole = jnp.floor(offset)
  part = offset - whole
  first = origin + whole.astype(jnp.int32)
  x0, y0, wx, wy = first[..., 0], first[..., 1], part[..., 0], part[..., 1]
  rows = image.reshape(h * w * n, c)
  group = jnp.arange(n).reshape((1,) * (x0.ndim - 1) + (n,))

  def corner(xi, yi, weight):
    inside = (xi >= 0) & (xi < w) & (yi >= 0) & (yi < h)
    index = (jnp.clip(yi, 0, h - 1) * w + jnp.clip(xi, 0, w - 1)) * n + group
    weight = jnp.where(inside, weight, 0.0).astype(image.dtype)
    return rows.at[index].get(mode="promise_in_bounds") * weight[..., None]

  return (
    corner(x0, y0, (1 - wx) * (1 - wy))
    + corner(x0 + 1, y0, wx * (1 - wy))
    + corner(x0, y0 + 1, (1 - wx) * wy)
    + corner(x0 + 1, y0 + 1, wx * wy)
  )


def resize_flow(flow: jax.Array, scale: int) -> jax.Array:
  """Enlarges flow [b h w 2] by an integer factor, bilinearly, and its vectors with it."""
  return scale * resize_bilinear(flow, scale)
