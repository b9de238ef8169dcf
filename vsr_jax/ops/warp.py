"""Backward warping by optical flow, as every model here uses it.

Equal to PyTorch's `grid_sample` (bilinear, padding_mode="zeros", align_corners=True): a flow of
(dx, dy) pixels reads the image at (x + dx, y + dy), and each of the four neighbours that lies
outside counts as 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from vsr_jax.ops.devices import by_device, kernels_may_run, true_after
from vsr_jax.ops.resize import resize_bilinear
from vsr_jax.ops.tiled_gather import AREA, CHANNELS, COLUMNS, ROWS, fits, gather_by_tiles

_NARROW = 32  # channels of a flow up to which TPUs read by tiles; more fill the lanes of a row


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


@jax.named_scope("warp")
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
  tpu = _warp_by_tiles if _fits_tiles(images) else every
  if images.shape[0] == 1:
    return lax.platform_dependent(images, flows, masks, cpu=_warp_single, tpu=tpu, default=every)
  warped = lax.platform_dependent(images, flows, cpu=_warp_by_loop, tpu=tpu, default=every)
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


def _fits_tiles(images: jax.Array) -> bool:
  """Whether `_warp_by_tiles` is for images [b h w n c]; it needs to know their sizes."""
  if not all(isinstance(size, int) for size in images.shape) or not kernels_may_run():
    return False
  _, h, w, _, c = images.shape
  return c <= _NARROW and fits(-(-(h + 1) // ROWS) * -(-(w + 1) // COLUMNS))


@functools.partial(jax.jit, static_argnames="interpret")
def _warp_by_tiles(
  images: jax.Array, flows: jax.Array, masks: jax.Array | None = None, interpret: bool = False
) -> jax.Array:
  """`jax.vmap(_warp_image)` of finite images in float32, without gathers: `ops.tiled_gather`.

  All four neighbours of a point are read at once: a table, larger than the image by a pixel above
  and left, holds at (y + 1, x + 1) the pixels (y, x), (y, x + 1), (y + 1, x) and (y + 1, x + 1).
  """
  b, h, w, n, c = images.shape
  images = jnp.moveaxis(images, (3, 4), (1, 2))
  table = _to_tiles(_neighbours(images.astype(jnp.float32)))
  offset = _to_tiles(jnp.moveaxis(flows.astype(jnp.float32), (3, 4), (1, 2)))
  whole, part = _split(offset, h, w)
  rows, columns = offset.shape[1:3]
  here = _to_tiles(jnp.mgrid[: rows * ROWS, : columns * COLUMNS][None, None])
  y, x = here[..., 0, :], here[..., 1, :]
  x0, y0 = x + whole[..., 0, :], y + whole[..., 1, :]
  inside = (x0 >= -1) & (x0 < w) & (y0 >= -1) & (y0 < h)
  # What reads zeros only is led to its own place, so that no tile far away is read for it.
  at_x, at_y = (
    jnp.clip(jnp.where(inside, there, here) + 1, 0, size)
    for there, here, size in ((x0, x, w), (y0, y, h))
  )
  tile = at_y // ROWS * table.shape[2] + at_x // COLUMNS
  index = AREA * tile + COLUMNS * (at_y % ROWS) + at_x % COLUMNS
  wx, wy = part[..., 0, :], part[..., 1, :]
  weights = ((1 - wx) * (1 - wy), wx * (1 - wy), (1 - wx) * wy, wx * wy)
  read = gather_by_tiles(table, index, interpret)
  corners = [
    read[..., c * i : c * (i + 1), :] * jnp.where(inside, weight, 0.0)[..., None, :]
    for i, weight in enumerate(weights)
  ]
  warped = (corners[0] + corners[1] + corners[2] + corners[3]).reshape(
    b, n, rows, columns, ROWS, c, COLUMNS
  )
  warped = warped.transpose(0, 2, 4, 3, 6, 1, 5).reshape(b, rows * ROWS, -1, n, c)
  warped = warped[:, :h, :w].astype(images.dtype)
  return warped if masks is None else warped * masks


def _neighbours(images: jax.Array) -> jax.Array:
  """[b n c h w] -> the table of `_warp_by_tiles`, [b n 4c h+1 w+1], filled up with zeros."""
  _, _, c, h, w = images.shape
  below, right = -(h + 1) % ROWS, -(w + 1) % COLUMNS  # at once, not by a copy of the table
  around = ((0, 0),) * 3
  shifted = [
    jnp.pad(images, (*around, (1 - dy, below + dy), (1 - dx, right + dx)))
    for dy in (0, 1)
    for dx in (0, 1)
  ]
  fill = jnp.zeros_like(shifted[0][:, :, :1]).repeat(-4 * c % CHANNELS, axis=2)
  return jnp.concatenate([*shifted, fill], axis=2)


def _to_tiles(x: jax.Array) -> jax.Array:
  """[b n c h w] -> [b*n k l 2 c 128], k times l tiles; they are filled up with zeros."""
  b, n, c, h, w = x.shape
  x = jnp.pad(x, ((0, 0),) * 3 + ((0, -h % ROWS), (0, -w % COLUMNS)))
  x = x.reshape(b * n, c, -(-h // ROWS), ROWS, -(-w // COLUMNS), COLUMNS)
  return x.transpose(0, 2, 4, 3, 1, 5)


def _sample(image: jax.Array, origin: jax.Array, offset: jax.Array) -> jax.Array:
  """Reads an image [h w n c] at origin (int32) + offset (real), both [... n 2] as (x, y).

  The integer parts are added as int32: a sum in float32 would lose low bits of the offset.
  """
  h, w, n, c = image.shape
  whole, part = _split(offset, h, w)
  first = origin + whole
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


def _split(offset: jax.Array, h: int, w: int) -> tuple[jax.Array, jax.Array]:
  """The integer (int32) and fractional (float32) part of flow in an image of h x w pixels."""
  # Clipping keeps the integer conversion defined for any finite flow; so far
  # outside everything is 0 anyway.
  limit = float(2 * max(h, w) + 2)
  offset = jnp.clip(offset.astype(jnp.float32), -limit, limit)
  whole = jnp.floor(offset)
  return whole.astype(jnp.int32), offset - whole


def resize_flow(flow: jax.Array, scale: int) -> jax.Array:
  """Enlarges flow [b h w 2] by an integer factor, bilinearly, and its vectors with it."""
  return scale * resize_bilinear(flow, scale)
