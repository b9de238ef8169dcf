"""What a step of KEEP's training asks of a device: abstract arrays of its state and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from keep_jax.architecture import Architecture
from keep_jax.model import KEEP
from keep_jax.train import initialiser, stage_from_config
from vsr_jax import lpips
from vsr_jax.configs.keep import base
from vsr_jax.sharding import make_mesh
from vsr_jax.train.state import abstract_state
from vsr_jax.train.step import make_train_step

SAMPLES = {"vqgan": 4, "prediction": 1, "fusion": 1, "end_to_end": 1}  # images or clips a device
SCALE = 4  # of the low-quality frames


def training_step(name: str, dtype: str) -> tuple[Callable, list[Any]]:
  """A step of the paper's recipe of a stage for one device, with remat, and its arguments.

  Args:
    name: the stage.
    dtype: of convolutions and products.

  Returns:
    The function and its arguments, trees of `jax.ShapeDtypeStruct`; the first one is donated.
  """
  config = base.defaults(name)
  config.update({"dtype": dtype, "train": {"remat": True}})
  model = KEEP(Architecture(**config.model), jnp.dtype(dtype), config.train.remat)
  stage = stage_from_config(model, config)
  mesh = make_mesh(devices=jax.devices()[:1])
  state = abstract_state(stage, initialiser(model, config), mesh, ema=True)
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  auxiliary = {}
  if name != "prediction":
    auxiliary["lpips"] = lpips.template(config.loss.perceptual_network)
  count, side = SAMPLES[name], config.model.image_size
  lead = (count,) if name == "vqgan" else (count, config.data.frames)
  batch = {"gt": jax.ShapeDtypeStruct((*lead, side, side, 3), jnp.uint8)}
  if name != "vqgan":
    batch["lq"] = jax.ShapeDtypeStruct((*lead, side // SCALE, side // SCALE, 3), jnp.uint8)
  step = make_train_step(stage, ema_decay=config.train.ema_decay)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return step, [state, batch, key, auxiliary]
