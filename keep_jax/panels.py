"""The pictures that training shows of a batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from keep_jax import forward
from keep_jax.model import KEEP, Params
from vsr_jax.maps import flow_colours, heat
from vsr_jax.train.stage import Batch


def make_images(model: KEEP, single: bool) -> Callable:
  """Makes `Stage.images`.

  Args:
    model: the model.
    single: whether batches are stage I's single images: columns restored and truth. Otherwise a
      clip's middle frame: input, restored, truth, the gain and the flow to the frame before.
  """

  def of_images(params: Params, batch: Batch) -> dict[str, jax.Array]:
    truth = forward.to_signed(batch["gt"])
    image = forward.reconstruct_images(model, params, truth)
    return {"restored": _to_unit(image), "truth": _to_unit(truth)}

  def of_clips(params: Params, batch: Batch) -> dict[str, jax.Array]:
    restored, _, gains, flows = forward.restore_batch(model, params, batch)
    middle = batch["gt"].shape[1] // 2
    return {
      "input": _to_unit(forward.to_signed(batch["lq"][:, middle])),
      "restored": _to_unit(restored.image[:, middle]),
      "truth": _to_unit(forward.to_signed(batch["gt"][:, middle])),
      "gain": heat(gains[:, middle]),
      "flow": flow_colours(flows[:, middle - 1]),
    }

  return of_images if single else of_clips


def _to_unit(images: jax.Array) -> jax.Array:
  return jnp.clip((images.astype(jnp.float32) + 1) / 2, 0, 1)
